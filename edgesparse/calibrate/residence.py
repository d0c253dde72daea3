"""Where weights are during calibration: all in memory, or only those of the part that runs.

``Residence`` holds a whole model and moves a part to the device while it runs. ``Streamed`` holds a
skeleton whose parameters are on the meta device, and reads those of a part when it is brought.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgesparse.capture.assemble import place
from edgesparse.errors import CalibrationError
from edgesparse.memory import give_back
from edgesparse.model import TensorInfo

CPU = torch.device("cpu")

Read = Callable[[Sequence[str]], Iterator[tuple[str, Tensor]]]
"""Yields (name, value) of tensors by ``TensorInfo.name``, floating ones as float32 on the CPU."""


class Residence:
    """All weights are in memory; a part is moved to the device and back."""

    def bring(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        """Have the own tensors of ``modules`` (not those of their children) on ``device``."""
        for module in modules:
            _move(module, device)

    def release(self, modules: Iterable[nn.Module]) -> None:
        """Say that what was brought does not run for now."""
        for module in modules:
            _move(module, CPU)

    @contextmanager
    def passing(self, model: nn.Module) -> Iterator[None]:
        """Let a whole forward pass of ``model`` run on the CPU meanwhile."""
        yield

    def require_whole(self) -> None:
        """Say that all weights will be needed at once."""


class Streamed(Residence):
    """The parameters of a skeleton are read when a part is brought, and dropped after it.

    A parameter of several parts (tied weights) stays as long as one of them is there. Tensors that
    are buffers are read once and stay.

    Args:
        model: Its parameters on the meta device in the types they compute in.
        tensors: ``CapturedModel.tensors``.
        read: Where the values are.
    """

    def __init__(self, model: nn.Module, tensors: Iterable[TensorInfo], read: Read) -> None:
        self._model, self._read = model, read
        self._by_name = {tensor.name: tensor for tensor in tensors}
        self._own: dict[int, list[str]] = {}
        self._parts: Counter[str] = Counter()
        buffers = []
        for tensor in self._by_name.values():
            owners = [model.get_submodule(n.rpartition(".")[0]) for n in _names(tensor)]
            if tensor.name.rpartition(".")[2] in owners[0]._buffers:
                buffers.append(tensor.name)
                continue
            for owner in {id(module): module for module in owners}.values():
                self._own.setdefault(id(owner), []).append(tensor.name)
        for name, value in read(buffers):
            place(model, _names(self._by_name[name]), value)

    def bring(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        """Read what is not there yet, straight to ``device``."""
        modules = list(modules)
        names = self._names_of(modules)
        for name, value in self._read([name for name in names if not self._parts[name]]):
            place(self._model, _names(self._by_name[name]), value.to(device))
        self._parts.update(names)
        for module in modules:
            _move_buffers(module, device)

    def release(self, modules: Iterable[nn.Module]) -> None:
        """Drop what no other part that is there needs."""
        modules = list(modules)
        for name in self._names_of(modules):
            self._parts[name] -= 1
            if self._parts[name] == 0:
                self._drop(name)
        for module in modules:
            _move_buffers(module, CPU)
        give_back()

    @contextmanager
    def passing(self, model: nn.Module) -> Iterator[None]:
        """Bring the children of every outermost list one by one as they run."""
        blocks = outermost_blocks(model)
        inside = {id(m) for block in blocks for m in block.modules()}
        rest = [module for module in model.modules() if id(module) not in inside]
        handles = [h for block in blocks for h in self._hooks(block)]
        before = Counter(self._parts)
        self.bring(rest, CPU)
        try:
            yield
        except RuntimeError as error:
            if "meta" not in str(error):
                raise
            raise CalibrationError(
                f"this model reads weights of layers that are not running ({error}); it cannot be "
                "streamed, run it without a memory limit"
            ) from None
        finally:
            for handle in handles:
                handle.remove()
            for name in [name for name, parts in self._parts.items() if parts > before[name]]:
                self._parts[name] = before[name]
                if not before[name]:
                    self._drop(name)

    def require_whole(self) -> None:
        """Refuse.

        Raises:
            CalibrationError: Always: not all weights are there.
        """
        raise CalibrationError(
            "this model is no chain of blocks, so all of it is needed at once; run it without a "
            "memory limit"
        )

    def _hooks(self, block: nn.Module) -> Iterator[Any]:
        yield block.register_forward_pre_hook(lambda b, _: self.bring(b.modules(), CPU))
        yield block.register_forward_hook(lambda b, _args, _output: self.release(b.modules()))

    def _names_of(self, modules: Iterable[nn.Module]) -> list[str]:
        """Return every tensor of ``modules`` once."""
        return list(dict.fromkeys(n for m in modules for n in self._own.get(id(m), ())))

    def _drop(self, name: str) -> None:
        value = self._model.get_parameter(name)
        empty = torch.empty(value.shape, dtype=value.dtype, device="meta")
        place(self._model, _names(self._by_name[name]), empty)


def outermost_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the children of every ModuleList and Sequential of two or more that is in no other."""
    blocks: dict[int, nn.Module] = {}
    inside: set[int] = set()
    for module in model.modules():  # parents before their children
        if id(module) in inside or not isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        if len(module) > 1:
            blocks |= {id(child): child for child in module}
            inside |= {id(m) for m in module.modules()}
    return list(blocks.values())


def _names(tensor: TensorInfo) -> tuple[str, ...]:
    return (tensor.name, *tensor.aliases)


def _move(module: nn.Module, device: torch.device) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(device)
    _move_buffers(module, device)


def _move_buffers(module: nn.Module, device: torch.device) -> None:
    for name, buffer in module.named_buffers(recurse=False):
        module._buffers[name] = buffer.to(device)
