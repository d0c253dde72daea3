"""What a part of the model computed before its first unsolved layer, kept to be told again.

Every group of layers is solved on inputs that went through all groups before it, so the part that
holds them runs once for each. Up to the group everything is as it was the time before: a run then
takes the outputs of modules with weights, and of attention, from the run before it, and computes
only what comes behind. So each is computed once for a batch, whatever the module looks like.

An output is told again only if it is still what it was: no module with an unsolved layer is in it,
nobody has changed it in place, and the module did not change itself while it ran. What exceeds
``Room`` is computed again. Results are the same to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from edgesparse.calibrate.watch import stubbed

_MOST = {"cpu": 1 << 31, "cuda": 1 << 30}  # a GPU computes again in no time


@dataclass
class Room:
    """Bytes that may still be kept."""

    nbytes: int = 0

    @classmethod
    def on(cls, device: torch.device) -> Room:
        """Return a quarter of the memory that is free where ``device`` computes, within bounds."""
        if device.type == "cuda":
            free = int(torch.cuda.mem_get_info(device)[0])
        else:
            pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
            free = os.sysconf("SC_PAGE_SIZE") * os.sysconf(pages)
        return cls(min(_MOST.get(device.type, 0), free // 4))


@dataclass(frozen=True)
class _Output:
    """What a module or function returned, in parts."""

    of: object
    leaves: list[Any]
    versions: list[int]
    spec: TreeSpec

    @classmethod
    def made(cls, of: object, value: Any) -> Self | None:
        """Return it taken apart, or None if it cannot be seen whether it stays as it is."""
        leaves, spec = tree_flatten(value)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        plain = all(leaf is None or isinstance(leaf, (Tensor, int, float, str)) for leaf in leaves)
        if not plain or any(tensor.is_inference() for tensor in tensors):
            return None
        return cls(of, leaves, [tensor._version for tensor in tensors], spec)

    @property
    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def is_untouched(self) -> bool:
        return [tensor._version for tensor in self.tensors] == self.versions

    @property
    def value(self) -> Any:
        return tree_unflatten(self.leaves, self.spec)


class Replay:
    """The outputs of one batch, in the order they were made, outermost modules only."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._outputs: list[_Output] = []
        self._next = 0
        self._is_last = True
        self._is_whole = False  # everything before is kept: only then has what follows a place
        self._unsolved: frozenset[nn.Module] = frozenset()

    @contextmanager
    def running(self, root: nn.Module, unsolved: Collection[nn.Module] | None) -> Iterator[None]:
        """Let ``root`` run on this batch meanwhile.

        Args:
            root: The same in every run.
            unsolved: Modules whose weights may yet change; None for a last run, after which
                nothing is kept any longer.
        """
        self._next, self._is_last, self._is_whole = 0, unsolved is None, True
        self._unsolved = frozenset(unsolved or ())
        parts = {name: module for name, module in root.named_modules() if name and _weighs(module)}
        stubs: dict[str, Callable[..., Any]] = {
            name: partial(self._forward, m, m.forward) for name, m in parts.items()
        }
        try:
            with stubbed(root, stubs), _Attention(self):
                yield
        finally:
            if unsolved is None:
                self._drop(0)

    def call(self, of: object, compute: Callable[[], tuple[Any, bool]]) -> Any:
        """Return what ``of`` returned here last time, else ``compute`` it.

        Args:
            of: The module or function.
            compute: Returns its output, and whether that is the output of any later run.
        """
        begin, is_whole = self._next, self._is_whole
        if begin < len(self._outputs) and self._outputs[begin].of is of:
            if self._outputs[begin].is_untouched:
                self._next += 1
                return self._outputs[begin].value
            self._drop(begin)
        value, stays = compute()
        output = _Output.made(of, value) if stays and is_whole and not self._is_last else None
        self._is_whole = output is not None and self._keep(begin, output)
        return value

    def _forward(
        self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Stand in for the forward method of a module."""

        def compute() -> tuple[Any, bool]:
            before = _state(module)
            value = forward(*args, **kwargs)
            after = _state(module)
            same = len(before) == len(after)
            same = same and all(a is b for a, b in zip(before, after, strict=True))
            return value, same and self._unsolved.isdisjoint(module.modules())

        return self.call(module, compute)

    def _keep(self, begin: int, output: _Output) -> bool:
        """Put an output in the place of those of its parts, if there is room."""
        freed = sum(part.nbytes for part in self._outputs[begin:])
        if output.nbytes - freed > self._room.nbytes:
            return False
        self._drop(begin)
        self._room.nbytes -= output.nbytes
        self._outputs.append(output)
        self._next = begin + 1
        return True

    def _drop(self, begin: int) -> None:
        self._room.nbytes += sum(part.nbytes for part in self._outputs[begin:])
        del self._outputs[begin:]


class _Attention(TorchFunctionMode):
    """Tells attention again too: it has no weights, but costs as much as what has."""

    def __init__(self, replay: Replay) -> None:
        super().__init__()
        self._replay = replay

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        compute = partial(func, *args, **(kwargs or {}))
        if func is scaled_dot_product_attention:
            return self._replay.call(func, lambda: (compute(), True))
        return compute()


def has_ties(root: nn.Module, solved: Collection[nn.Module]) -> bool:
    """Whether solving some modules of ``root`` also changes another one of it."""
    own = {id(p) for module in solved for p in module.parameters(recurse=False)}
    owners = [id(p) for m in root.modules() for p in m.parameters(recurse=False) if id(p) in own]
    return len(owners) != len(set(owners))


def _weighs(module: nn.Module) -> bool:
    """Whether running a module takes long enough to keep its output: it has a matrix."""
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _state(module: nn.Module) -> list[object]:
    """Return everything a module's own attributes and buffers are, but for its parts."""
    return [
        value
        for part in module.modules()
        for value in (*vars(part).values(), *part._buffers.values())
    ]
