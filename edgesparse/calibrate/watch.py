"""Watching and steering forward passes: catch a module's inputs, stop early, stub blocks out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgesparse.calibrate.inputs import input_rows
from edgesparse.calibrate.record import Chain, Group
from edgesparse.calibrate.residence import Residence


class Stop(Exception):
    """Ends a forward pass once what was wanted from it is there."""


def rows_of(root: nn.Module, path: str, group: Group, run: Callable[[], object]) -> Tensor | None:
    """Run until the module at ``path`` has had all its calls; return its inputs, [samples, K]."""
    module = root.get_submodule(path)
    seen: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = args[0] if args else next(iter(kwargs.values()))
        seen.append(input_rows(module, value))
        if len(seen) == group.calls:
            raise Stop

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with stopping():
            run()
    finally:
        handle.remove()
    if len(seen) == 1:
        return seen.pop()  # no copy: of a wide layer this is the largest tensor there is
    return torch.cat(seen) if seen else None


@contextmanager
def stopping() -> Iterator[None]:
    """Take ``Stop`` for the normal end it is."""
    try:
        yield
    except Stop:
        return


@contextmanager
def stubbed(model: nn.Module, stubs: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward methods of some modules for a while."""
    modules = [model.get_submodule(name) for name in stubs]
    own = [(m, m.__dict__["forward"]) for m in modules if "forward" in m.__dict__]
    for module, stub in zip(modules, stubs.values(), strict=True):
        module.__dict__["forward"] = stub
    try:
        yield
    finally:
        for module in modules:
            del module.__dict__["forward"]
        for module, forward in own:
            module.__dict__["forward"] = forward


@contextmanager
def outside(
    model: nn.Module, chain: Chain, device: torch.device, residence: Residence
) -> Iterator[None]:
    """Bring everything but the blocks onto ``device`` for a while."""
    skip = {id(m) for block in chain.blocks for m in model.get_submodule(block).modules()}
    outside = [module for module in model.modules() if id(module) not in skip]
    residence.bring(outside, device)
    try:
        yield
    finally:
        residence.release(outside)
