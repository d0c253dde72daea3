"""The work that ``compress`` and ``demo`` share: carry a plan out, measure it, print the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesparse.cli._calibration import Data
from edgesparse.cli._console import Step, command_line, remark, show, verbosity, working
from edgesparse.cli._options import cache_directory
from edgesparse.cli._training import each_step
from edgesparse.errors import UsageError

if TYPE_CHECKING:
    from edgesparse.budget import Budget
    from edgesparse.compression import Progress
    from edgesparse.model import CapturedModel, CompressedModel
    from edgesparse.planner import Plan
    from edgesparse.planner.cutting import Way
    from edgesparse.recipe import Recipe
    from edgesparse.report.comparison import Comparison


def carry_out(
    captured: CapturedModel,
    plan: Plan,
    data: Data,
    *,
    compare: bool,
    dense: CapturedModel | None = None,
    minutes: float | None = None,
    **solver: Any,
) -> tuple[CompressedModel, Comparison | None]:
    """Compress by ``plan`` and, when asked to compare, by its equal-byte alternative too.

    Args:
        captured: The model.
        plan: What to do.
        data: What to calibrate and to measure on.
        compare: Measure the result against the dense model and the alternative.
        dense: The dense model, where ``captured`` is what a cut left of it.
        minutes: Time to recover in, with the dense model as the teacher; None for none.
        **solver: Options of ``edgesparse.compression.compress``.

    Returns:
        The model, with the comparison in its metadata, and the comparison.
    """
    from edgesparse.compression import compress, compress_dense_alternative

    with working("compressing") as step:
        compressed = compress(captured, plan, data.calibration, progress=_each(step), **solver)
    if minutes is not None:
        compressed = _recovered(compressed, dense or captured, data, minutes, solver)
    compressed = _with_metadata(compressed, command=command_line())
    team = solver.get("team")
    if not compare:
        return compressed, None
    with working("the equal-byte dense alternative") as step:
        alternative = compress_dense_alternative(
            captured, plan, data.calibration, progress=_each(step), **solver
        )
    if team is not None and not team.leads:  # one process measures
        return compressed, None
    comparison = _measure(dense or captured, compressed, alternative, data)
    return _with_metadata(compressed, evaluation=comparison.to_json()), comparison


def _recovered(
    compressed: CompressedModel,
    dense: CapturedModel,
    data: Data,
    minutes: float,
    solver: Mapping[str, Any],
) -> CompressedModel:
    """Return the model distilled from the dense one on what it was calibrated on."""
    from edgesparse.recovery import recover

    with working("recovering") as step:
        return recover(
            compressed, teacher=dense, data=data.calibration, minutes=minutes,
            window=solver["window"], seed=solver["seed"], device=solver["device"],
            progress=each_step(step, says_every=None),
        )  # fmt: skip


def _with_metadata(compressed: CompressedModel, **values: Any) -> CompressedModel:
    return replace(compressed, metadata={**compressed.metadata, **values})


def better_plan(
    captured: CapturedModel, recipe: Recipe | None, plan: Plan, calibration: object, **options: Any
) -> Plan:
    """Return ``plan`` made again with what the model itself says it minds.

    Only where that can change anything: a budget that costs something, and rules that leave open
    what is done to more than the embeddings.

    Args:
        captured: The model.
        recipe: The recipe of ``plan``.
        plan: A plan made from shapes alone.
        calibration: What the model is run on.
        **options: ``window``, ``seed`` and ``device`` of ``measure_sensitivity``.
    """
    from edgesparse.planner import default_recipe, leaves_open
    from edgesparse.planner import plan as make_plan

    if plan.loss == 0 or plan.budget.is_unlimited:
        return plan
    if not leaves_open(recipe or default_recipe(), captured):
        return plan
    from edgesparse.planner.sensitivity import measure_sensitivity

    with working("measuring which tensors the model minds") as step:
        sensitivity = measure_sensitivity(
            captured, calibration, cache=cache_directory(), progress=step, **options
        )
    return make_plan(
        captured, recipe, budget=plan.budget, target=plan.target, sensitivity=sensitivity,
        options=plan.options,
    )  # fmt: skip


def way_of(
    captured: CapturedModel,
    recipe: Recipe | None,
    budget: Budget | None,
    target: str | None,
    calibration: object,
    *,
    settings: Mapping[str, Any],
    **options: Any,
) -> Way:
    """Return the cheapest way to keep the budget, cutting whole parts out first among them.

    ``settings`` are the ``options`` of ``plan``; ``options`` are ``window`` and ``seed``.

    Raises:
        UsageError: There is no budget, or nothing to measure losses on.
        BudgetExceeded: None keeps it.
    """
    if budget is None or budget.is_unlimited or calibration is None:
        raise UsageError(
            "--allow structured weighs cuts against a --budget, by what they lose on --calibration"
        )
    from edgesparse.planner.cutting import Search, best_way
    from edgesparse.planner.sensitivity import measure_sensitivity

    with working("measuring which tensors the model minds") as step:
        sensitivity = measure_sensitivity(
            captured, calibration, cache=cache_directory(), progress=step, **options
        )
    with working("cutting whole parts out, for a try"):
        return best_way(
            Search(
                captured=captured, recipe=recipe, budget=budget, target=target,
                settings=settings, calibration=calibration, sensitivity=sensitivity, tried=_tried,
                **options,
            )
        )  # fmt: skip


def _tried(words: str, cut: float, whole: float | None) -> None:
    said = "no way within the budget" if whole is None else f"{whole:.4f} with the plan of the rest"
    remark(f"without {words}: loss {cut:.4f}, {said}")


def cut_first(way: Way, output: Path, *, force: bool) -> CapturedModel:
    """Return the model a way plans; what a cut left is written beside ``output`` and read again."""
    if way.cuts is None:
        remark("no cut of whole parts is cheaper than what the plan does alone")
        return way.captured
    from edgesparse.capture import load
    from edgesparse.structured.writing import write_either

    path = write_either(way.captured, output.with_name(f"{output.name}-cut"), force=force)
    remark(f"cut {way.words}: loss {way.cut_loss:.4f}; what is left is at {path}")
    return load(path)


def shared_out(
    captured: CapturedModel, plan: Plan, calibration: object, allocation: str, **options: Any
) -> Plan:
    """Return the plan with its sparsity shared out over the layers by ``allocation``.

    ``options`` are those of ``share_sparsity``.
    """
    from edgesparse.planner.sharing import UNIFORM, share_sparsity

    if allocation == UNIFORM or not plan.is_sparse:
        return plan
    with working("asking which layers can lose most"):
        return share_sparsity(captured, plan, calibration, allocation, **options)


def _each(step: Step) -> Callable[[Progress], None]:
    """Return what ``compress`` calls after every tensor: the bar moves, --verbose says more."""

    def one(progress: Progress) -> None:
        step(progress.done, progress.total)
        if verbosity().verbose:
            remark(f"{progress.name}: relative output error {progress.error:.2e}")

    return one


def _measure(
    captured: CapturedModel,
    compressed: CompressedModel,
    alternative: CompressedModel | None,
    data: Data,
) -> Comparison:
    from edgesparse.report.comparison import measure

    with working("measuring") as progress:
        return measure(
            captured, compressed, alternative, measured_on=data.measured_on,
            progress=progress, **data.measure,
        )  # fmt: skip


def show_plan(captured: CapturedModel, plan: Plan, data: Data) -> None:
    """Print what will be done before it takes time."""
    from edgesparse.report.tables import budget_line, title

    show(title(captured), budget_line(plan), f"calibration  {data.calibrated_on}")
    for note in plan.notes:
        show(f"note: {note}")


def show_comparison(comparison: Comparison) -> None:
    """Print the table of dense, compressed and equal-byte alternative."""
    from edgesparse.report.tables import comparison_table

    show("", comparison_table(comparison), f"measured on {comparison.measured_on}", "")


def show_hints(comparison: Comparison | None, path: Path | None = None) -> None:
    """Print what the numbers advise; with the model's ``path``, how to recover it too."""
    from edgesparse.report.comparison import hints

    found = hints(comparison) if comparison else []
    for hint in found:
        show(f"hint: {hint}")
    if found and path is not None:
        again = f"edgesparse recover {path} -o {path}-recovered --data TEXT --minutes 10"
        show(f"hint: distillation from the dense model wins most of it back: {again}")


def summary(
    compressed: CompressedModel, comparison: Comparison | None, path: Path
) -> dict[str, Any]:
    """Return the JSON form of a compression."""
    return {
        "path": str(path),
        "nbytes": compressed.nbytes,
        "file_nbytes": (path / "weights.safetensors").stat().st_size,
        "predicted_nbytes": compressed.plan.nbytes,
        "bits_per_weight": compressed.bits_per_weight,
        "sparsity": compressed.sparsity,
        "notes": list(compressed.plan.notes),
        "evaluation": None if comparison is None else comparison.to_json(),
    }
