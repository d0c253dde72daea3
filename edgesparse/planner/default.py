"""What is done when nobody says what to do, and what a recipe leaves open."""

from __future__ import annotations

from dataclasses import replace

from edgesparse.model import CapturedModel, TensorKind
from edgesparse.pattern import DENSE
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


def with_patterns(recipe: Recipe | None) -> Recipe:
    """Return the recipe, or the default one, with the shape of every mask open to a budget."""
    recipe = recipe or default_recipe()
    rules = (
        rule
        if rule.kind == TensorKind.EMBEDDING
        else replace(rule, adjustable=rule.adjustable | {"pattern"})
        for rule in recipe.rules
    )
    return replace(recipe, rules=tuple(rules))


def leaves_open(recipe: Recipe, captured: CapturedModel) -> bool:
    """Whether a budget may choose what is done to any tensor that is no embedding."""
    rules = (
        recipe.rule_for(tensor)
        for tensor in captured.tensors
        if tensor.compressible and tensor.kind != TensorKind.EMBEDDING
    )
    return any(rule is not None and rule.adjustable for rule in rules)


def without_sparsity(recipe: Recipe) -> Recipe:
    """Return the recipe with every rule dense, and kept so."""
    return Recipe(
        tuple(
            replace(rule, pattern=DENSE, adjustable=rule.adjustable - {"sparsity"})
            for rule in recipe.rules
        )
    )
