"""What ``compress`` does before it touches a weight: open, cut, plan, choose the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesparse.budget import Budget
from edgesparse.cli import _calibration, _job
from edgesparse.cli._console import working
from edgesparse.errors import UsageError

if TYPE_CHECKING:
    from edgesparse.calibrate.team import Team
    from edgesparse.model import CapturedModel
    from edgesparse.planner import Plan
    from edgesparse.recipe import Recipe


def require_alone(team: Team, *, cuts_parts: bool, recovers: bool) -> None:
    """Refuse what one process does for itself when several share the work.

    Raises:
        UsageError: Several do.
    """
    if team.size > 1 and (cuts_parts or recovers):
        raise UsageError(
            "--allow structured and --recover work in one process; use 'edgesparse prune' before "
            "and 'edgesparse recover' afterwards"
        )


def opened(
    model: str,
    recipe: Recipe | None,
    *,
    cuts_parts: bool,
    budget: Budget | None,
    target: str | None,
    settings: Mapping[str, Any],
    calibration: Path | None,
    text: Path | None,
    output: Path,
    force: bool,
    windows: int | None,
    window: int,
    seed: int,
) -> tuple[CapturedModel, CapturedModel]:
    """Return the model, and what is compressed: the same, or what a cut left of it."""
    from edgesparse.capture import load

    whole = load(model)
    if not cuts_parts:
        return whole, whole
    data = _calibration.choose(whole, calibration, text, windows=windows, window=window, seed=seed)
    way = _job.way_of(
        whole, recipe, budget, target, data.calibration, settings=settings, window=window, seed=seed
    )
    return whole, _job.cut_first(way, output, force=force)


def prepared(
    captured: CapturedModel,
    recipe: Recipe | None,
    journal: Path,
    *,
    budget: Budget | None,
    target: str | None,
    settings: Mapping[str, Any],
    calibration: Path | None,
    text: Path | None,
    output: Path,
    team: Team,
    memory_limit: int | None,
    windows: int | None,
    window: int,
    seed: int,
    device: str,
    allocation: str | None,
) -> tuple[CapturedModel, Plan, _calibration.Data]:
    """Return the model, the plan (an earlier run's, if it was of the same job) and the data."""
    from edgesparse.journal.beside import recall, remember
    from edgesparse.planner import plan as make_plan
    from edgesparse.preflight import room_for
    from edgesparse.recipe import Recipe
    from edgesparse.store.space import require_space

    with working("planning"):  # timing a runtime takes minutes, once
        asked = make_plan(captured, recipe, budget=budget, target=target, options=settings)
    # The journal of the plan, that of its alternative, and the result.
    require_space(output, (3 if asked.dense_alternative else 2) * asked.nbytes)
    room_for(
        captured, asked, device=device, window=window, memory_limit=memory_limit,
        measured=calibration is not None,
    )  # fmt: skip
    data = _calibration.choose(
        captured, calibration, text, windows=windows, window=window, seed=seed
    )
    shared = allocation or (recipe or Recipe()).allocation
    request = {"plan": asked.to_json(), "allocation": shared}
    plan = recall(journal, request, captured) if team.leads else None
    if plan is None and team.leads:
        plan = asked
        if can_measure(captured, memory_limit):
            plan = _job.better_plan(
                captured, recipe, asked, data.calibration, window=window, seed=seed, device=device
            )
            plan = _job.shared_out(
                captured, plan, data.calibration, shared, window=window, seed=seed, device=device
            )
        remember(journal, request, plan)
    plan = team.agree(plan)
    assert plan is not None
    return captured, plan, data


def can_measure(captured: CapturedModel, memory_limit: int | None) -> bool:
    """Whether the dense and the packed model can run whole."""
    if memory_limit is None:
        return True
    from edgesparse.footprint import LOADED_LATER
    from edgesparse.memory import resident_nbytes

    # The dense model in float32, the packed ones, activations; beside them the program.
    needed = 8 * captured.num_parameters + resident_nbytes() + LOADED_LATER
    return needed <= memory_limit
