"""``plan``: what to do with every tensor of a model, and what it will cost.

Only shapes are read. A recipe alone is applied as it stands. With a budget the fields its rules
leave open are chosen for all tensors together, least predicted loss within the limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgesparse.budget import Budget, format_size
from edgesparse.errors import BudgetExceeded, Unsupported
from edgesparse.model import CapturedModel
from edgesparse.packed import SYMMETRIC
from edgesparse.pattern import DENSE
from edgesparse.planner.candidates import expected_loss, plan_tensor
from edgesparse.planner.choose import readable_by
from edgesparse.planner.default import default_recipe
from edgesparse.planner.download import download_nbytes
from edgesparse.planner.fitting import Fit, Ruled
from edgesparse.planner.peak import memory_terms
from edgesparse.planner.predict import artifact_prediction, weights_nbytes
from edgesparse.planner.rates import Sensitivity
from edgesparse.planner.types import MemoryTerm, Plan, TensorPlan
from edgesparse.recipe import Recipe, Rule


def plan(
    captured: CapturedModel,
    recipe: Recipe | None = None,
    *,
    budget: Budget | None = None,
    target: str | None = None,
    sensitivity: Sensitivity | None = None,
    options: Mapping[str, Any] | None = None,
) -> Plan:
    """Plan what to do with every tensor, without reading a weight.

    Args:
        captured: The model.
        recipe: What is wanted; None is 4 bits everywhere, all of it open to the budget.
        budget: Limits; what the recipe leaves open is chosen to keep them.
        target: Exporter whose file and runtime the budget is about; None for the packed model.
        sensitivity: How much the model minds errors in each tensor, from
            ``measure_sensitivity``; None takes all weights as alike.
        options: What the target's ``export`` will be given, as far as times depend on it: with
            executorch ``{"activations": "int8"}``. ``export`` then takes it by default.

    Raises:
        BudgetExceeded: No choice keeps the budget; says what could be reached.
        UnknownName: A method, quantizer or target that no registry knows.
        UsageError: The peak memory cannot be predicted, and the budget limits it; or an option that
            no time depends on.
        MissingDependency: There are options, or a limit on latency, and the target's tools are not
            installed.
        RecipeError: A scheme that the rule's quantizer does not find.
        Unsupported: A scheme that the target does not hold.

    Example:
        >>> import torch, edgesparse
        >>> model = edgesparse.load(torch.nn.Linear(256, 64), example_inputs=torch.zeros(1, 256))
        >>> [entry.spec.name for entry in plan(model).tensors if entry.spec]
        ['dense4']
    """
    recipe, budget, options = recipe or default_recipe(), budget or Budget(), options or {}
    _check_names(recipe, target)
    if options:
        from edgesparse.exporters import require_counted

        require_counted(target, options)
    ruled = [(tensor, recipe.rule_for(tensor)) for tensor in captured.tensors]
    if budget.is_unlimited:
        formats = readable_by(target)
        entries = [plan_tensor(tensor, rule, formats) for tensor, rule in ruled]
    else:
        entries = _fit(captured, ruled, budget, target, sensitivity or {}, options)
    made = _finish(captured, entries, budget, target, sensitivity or {}, options)
    made = replace(made, notes=(*made.notes, *_unused(recipe, captured)))
    return _with_alternative(captured, made, sensitivity or {}) if made.is_sparse else made


def _check_names(recipe: Recipe, target: str | None) -> None:
    """Refuse names no registry knows before anything is done."""
    from edgesparse.prune import PRUNERS
    from edgesparse.quantize import QUANTIZERS

    for rule in recipe.rules:
        if rule.method not in PRUNERS:
            PRUNERS.get(rule.method)
        if rule.quantizer not in QUANTIZERS:
            QUANTIZERS.get(rule.quantizer)
    if target is not None:
        from edgesparse.exporting import EXPORTERS

        if target not in EXPORTERS:
            EXPORTERS.get(target)
    for rule in recipe.rules:
        if rule.scheme != SYMMETRIC:
            _check_scheme(rule, target)


def _check_scheme(rule: Rule, target: str | None) -> None:
    """Refuse a scheme that the rule's quantizer does not find or the target does not hold."""
    from edgesparse.exporting import schemes_of
    from edgesparse.quantize import require_scheme

    require_scheme(rule.quantizer, rule.scheme)
    if target is not None and rule.scheme not in schemes_of(target):
        raise Unsupported(
            f"{target} holds no {rule.scheme} codes, which a rule of the recipe asks for; use "
            f"scheme {SYMMETRIC!r} there, or another target"
        )


def _fit(
    captured: CapturedModel,
    ruled: Ruled,
    budget: Budget,
    target: str | None,
    sensitivity: Sensitivity,
    options: Mapping[str, Any],
) -> list[TensorPlan]:
    predict = weights_nbytes if target is None else artifact_prediction(target)
    return Fit(captured, ruled, budget, target, predict, sensitivity, options).solve()


def _finish(
    captured: CapturedModel,
    entries: Sequence[TensorPlan],
    budget: Budget,
    target: str | None,
    sensitivity: Sensitivity,
    options: Mapping[str, Any],
) -> Plan:
    """Return the plan of these entries, with everything predicted about it."""
    memory: tuple[MemoryTerm, ...] = ()
    if budget.peak is not None or budget.context is not None or target is not None:
        memory = memory_terms(captured, entries, target, budget.context)
    weights = 1 if sensitivity else max(1, captured.num_parameters)
    return Plan(
        tensors=tuple(entries),
        nbytes=weights_nbytes(entries),
        budget=budget,
        target=target,
        artifact_nbytes=None if target is None else artifact_prediction(target)(entries),
        memory=memory,
        download_nbytes=sum(map(download_nbytes, entries)),
        loss=sum(expected_loss(entry, sensitivity) for entry in entries) / weights,
        options=dict(options),
        **(_latency(captured, entries, target, options) if budget.latency is not None else {}),
    )


def _latency(
    captured: CapturedModel,
    entries: Sequence[TensorPlan],
    target: str | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the fields of a plan that say how long the products take, and whose they are."""
    from edgesparse.planner.products import OWN, Products

    products = Products(captured, target, options)
    note = (
        f"latency is of the products of edgesparse's own kernels on this machine: the runtime of "
        f"{target} is not timed here"
    )
    return {
        "latency_ns": products.total_ns(entries),
        "latency_of": products.of,
        "notes": (note,) if target is not None and products.of == OWN else (),
    }


def _unused(recipe: Recipe, captured: CapturedModel) -> list[str]:
    """Return a note for every rule that decides nothing: most often a name mistyped."""
    used = {id(recipe.rule_for(tensor)) for tensor in captured.tensors}
    return [
        f"rule {i + 1} of the recipe decides about no tensor"
        for i, rule in enumerate(recipe.rules)
        if id(rule) not in used and rule.name is not None
    ]


def _with_alternative(captured: CapturedModel, made: Plan, sensitivity: Sensitivity) -> Plan:
    """Add the plan of at most the same bytes that removes nothing and gives up bits instead.

    Pruned tensors become dense with as many bits as the bytes pay for, mixed over the tensors;
    everything else stays as in the plan.
    """
    ruled = []
    for entry in made.tensors:
        rule = entry.rule
        if rule is not None:
            open_fields = () if rule.pattern.is_dense else ("bits",)
            rule = replace(rule, pattern=DENSE, adjustable=frozenset(open_fields))
        ruled.append((entry.tensor, rule))
    try:
        entries = _fit(captured, ruled, Budget(file=made.nbytes), None, sensitivity, {})
    except BudgetExceeded:
        note = f"no plan without sparsity is as small as {format_size(made.nbytes)}"
        return replace(made, notes=(*made.notes, note))
    other = _finish(captured, entries, made.budget, made.target, sensitivity, made.options)
    return replace(made, dense_alternative=other)
