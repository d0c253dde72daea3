"""Say at once that a budget cannot be met, before torch and the model's class are imported.

That import takes seconds, and a limit on bytes that even the smallest plan breaks needs neither.
"""

from __future__ import annotations

from pathlib import Path

from edgesparse.budget import Budget
from edgesparse.capture.outline import outline
from edgesparse.planner.default import default_recipe
from edgesparse.planner.fitting import Fit
from edgesparse.planner.predict import artifact_prediction, weights_nbytes
from edgesparse.recipe import Recipe


def refuse_hopeless(
    source: str, recipe: Recipe | None, budget: Budget | None, target: str | None
) -> None:
    """Return if a closer look is needed: ``plan`` then decides.

    Args:
        source: As for ``edgesparse.load``.
        recipe: As for ``plan``; one that names tensors is left to it.
        budget: As for ``plan``; only limits that shapes decide are looked at.
        target: As for ``plan``.

    Raises:
        BudgetExceeded: Not even the smallest plan the recipe allows keeps the limit.
        UnknownName: No such target.
    """
    recipe, budget = recipe or default_recipe(), budget or Budget()
    by_shape = Budget(file=budget.file, download=budget.download)
    if by_shape.is_unlimited or any(rule.name is not None for rule in recipe.rules):
        return
    captured = outline(Path(source))
    if captured is None:
        return
    ruled = [(tensor, recipe.rule_for(tensor)) for tensor in captured.tensors]
    predict = weights_nbytes if target is None else artifact_prediction(target)
    Fit(captured, ruled, by_shape, target, predict, {}).refuse()
