"""One forward pass, watched: in which order modules run, which share an input, where the chain is.

A *chain* is a list of blocks of which each passes its output on, unchanged, as the hidden input of
the next. Where a model has one, calibration needs one block in memory at a time; that it really is
one is seen from the tensors that were passed, never from names.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgesparse.calibrate.windows import Batch


@dataclass(frozen=True, kw_only=True)
class Group:
    """Modules that multiply the very same input, in the order they run.

    Attributes:
        modules: Module paths; the first one's input stands for all.
        calls: How often each runs in one forward pass; 0 if the recorded pass never reached it.
    """

    modules: tuple[str, ...]
    calls: int = 1


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Blocks that run one after the other on one hidden tensor.

    Attributes:
        blocks: Module paths in running order.
        hidden: Position or keyword of the hidden tensor among a block's arguments.
        tuple_length: Length of the tuple a block returns, hidden first; 0 for a bare tensor.
    """

    blocks: tuple[str, ...]
    hidden: int | str
    tuple_length: int

    def owner(self, module: str) -> str | None:
        """Return the block that ``module`` is part of."""
        return next((b for b in self.blocks if module == b or module.startswith(f"{b}.")), None)


@dataclass
class _Call:
    """What one module was given and returned, tensors kept alive so that ids stay distinct."""

    module: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any = None


@dataclass(frozen=True)
class Recording:
    """The calls of one forward pass, in the order they began."""

    calls: list[_Call] = field(default_factory=list)

    def of(self, module: str) -> list[_Call]:
        """Return the calls of one module."""
        return [call for call in self.calls if call.module == module]


def call_model(
    model: nn.Module,
    batch: Batch,
    device: torch.device,
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> Any:
    """Run one batch of keyword arguments, with other ``weights`` in the model's place if given.

    ``weights`` are by every name of ``own_parameters``, so that ties are in them already.
    """
    moved = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in batch.items()}
    moved = {
        n: v.to(first_float_dtype(model)) if isinstance(v, Tensor) and v.is_floating_point() else v
        for n, v in moved.items()
    }
    if weights is not None:
        return torch.func.functional_call(model, dict(weights), (), moved, tie_weights=False)
    return model(**moved)


def own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of every module once, tied ones under the name of each owner.

    torch's own ties take a module that is in two places for two owners, and fail on the second.
    """
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            yield f"{path}.{leaf}".lstrip("."), parameter


def disable_cache(model: nn.Module) -> None:
    """Keep a language model from carrying keys and values from one pass into the next."""
    config: Any = getattr(model, "config", None)
    if config is not None and hasattr(config, "use_cache"):
        config.use_cache = False


def first_float_dtype(model: nn.Module) -> torch.dtype:
    """Return the type the model computes in; float32 if it has no parameters."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def record(model: nn.Module, batch: Batch, modules: list[str], device: torch.device) -> Recording:
    """Run ``batch`` and record the calls of ``modules`` and of every list's children."""
    recording = Recording()
    watched = {*modules, *(child for chain in _lists(model) for child in chain)}
    handles = []
    open_calls: list[_Call] = []

    def before(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = _Call(name, args, kwargs)
            recording.calls.append(call)
            open_calls.append(call)

        return hook

    def after(_: nn.Module, args: object, output: Any) -> None:
        open_calls.pop().output = output

    named = dict(model.named_modules())
    for name in sorted(watched):
        handles.append(named[name].register_forward_pre_hook(before(name), with_kwargs=True))
        handles.append(named[name].register_forward_hook(after))
    try:
        call_model(model, batch, device)
    finally:
        for handle in handles:
            handle.remove()
    return recording


def groups_of(recording: Recording, modules: list[str]) -> list[Group]:
    """Return ``modules`` in running order, those with the very same inputs together.

    Modules that never ran come last, each alone, with ``calls`` 0.
    """
    keys: dict[str, tuple[int, ...]] = {}
    wanted = set(modules)
    for call in recording.calls:
        if call.module in wanted:
            keys[call.module] = (*keys.get(call.module, ()), id(_first_input(call)))
    together: dict[tuple[int, ...], list[str]] = {}
    for name, key in keys.items():
        together.setdefault(key, []).append(name)
    groups = [Group(modules=tuple(n), calls=len(key)) for key, n in together.items()]
    groups.extend(Group(modules=(n,), calls=0) for n in modules if n not in keys)
    return groups


def find_chain(model: nn.Module, recording: Recording, modules: list[str]) -> Chain | None:
    """Return the chain that holds the most of ``modules``, None where nothing qualifies."""
    best, most = None, 0
    for blocks in _lists(model):
        chain = _as_chain(recording, blocks)
        held = sum(chain.owner(name) is not None for name in modules) if chain else 0
        if held > most and chain is not None and _runs_in_order(recording, chain, modules):
            best, most = chain, held
    return best


def _lists(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """Yield the children of every ModuleList and Sequential with two or more."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1:
            yield tuple(
                f"{name}.{child}" if name else child for child, _ in module.named_children()
            )


def _as_chain(recording: Recording, blocks: tuple[str, ...]) -> Chain | None:
    """Return the blocks as a chain if each was called once with its predecessor's output."""
    calls = [call for block in blocks for call in recording.of(block)]
    if [call.module for call in calls] != list(blocks):
        return None
    order = [call.module for call in recording.calls if call.module in set(blocks)]
    lengths = {len(call.output) if isinstance(call.output, tuple) else 0 for call in calls}
    if order != list(blocks) or len(lengths) != 1:
        return None
    hidden_at: set[int | str] = set()
    for earlier, later in itertools.pairwise(calls):
        hidden = earlier.output[0] if isinstance(earlier.output, tuple) else earlier.output
        rest = earlier.output[1:] if isinstance(earlier.output, tuple) else ()
        places = [place for place, value in _arguments(later) if value is hidden]
        if not isinstance(hidden, Tensor) or len(places) != 1 or any(r is not None for r in rest):
            return None
        hidden_at.add(places[0])
    if len(hidden_at) != 1 or not hidden_at <= {place for place, _ in _arguments(calls[0])}:
        return None
    return Chain(blocks=blocks, hidden=hidden_at.pop(), tuple_length=lengths.pop())


def _runs_in_order(recording: Recording, chain: Chain, modules: list[str]) -> bool:
    """Whether every target inside a block runs only there, and none runs between two blocks."""
    inside: str | None = None
    started = finished = False
    for call in recording.calls:
        if call.module in chain.blocks:
            inside, started = call.module, True
            finished = call.module == chain.blocks[-1]
        elif call.module in set(modules):
            owner = chain.owner(call.module)
            between = owner is None and started and not finished
            if between or (owner is not None and owner != inside):
                return False
    return True


def _arguments(call: _Call) -> list[tuple[int | str, Any]]:
    """Return a call's arguments with their positions or keywords."""
    return [*enumerate(call.args), *call.kwargs.items()]


def _first_input(call: _Call) -> Any:
    """Return the tensor a module multiplies: its first argument."""
    return call.args[0] if call.args else next(iter(call.kwargs.values()), None)
