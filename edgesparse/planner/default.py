"""What is done when nobody says what to do."""

from __future__ import annotations

from edgesparse.model import TensorKind
from edgesparse.recipe import ADJUSTABLE, Recipe, Rule

EMBEDDINGS = Rule(
    kind=TensorKind.EMBEDDING,
    bits=8,
    group_size=32,
    quantizer="rtn",
    adjustable=frozenset({"bits", "group_size"}),
)
EVERYTHING = Rule(bits=4, group_size=128, method="admm", adjustable=ADJUSTABLE)


def default_recipe() -> Recipe:
    """Return 4 bits for every weight and 8 for embeddings; a budget may change all of it.

    Without a budget nothing is removed: at equal bytes fewer bits lose less than sparsity does.
    """
    return Recipe((EMBEDDINGS, EVERYTHING))
