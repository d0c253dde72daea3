"""Hidden tensors: what the blocks of a model pass on, for a loss that asks for more than outputs.

An encoder or a network of convolutions has few outputs, and little is said by them about the first
layers. Compared with the teacher's are the outputs of every child of one list of the model's
modules, the list that holds the most parameters.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from edgesparse.errors import UsageError
from edgesparse.runtime.forward import floating_tensors


class Watched:
    """Keeps what some modules return in one forward pass, until it is taken.

    Args:
        model: Any module; its forward passes are watched from here on.
        paths: Of the modules to watch.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str]) -> None:
        self._seen: list[Tensor] = []
        for path in paths:
            model.get_submodule(path).register_forward_hook(self._see)

    def take(self) -> list[Tensor]:
        """Return the tensors of the pass before, in the order they were made, and forget them."""
        seen, self._seen = self._seen, []
        return seen

    def _see(self, _module: nn.Module, _inputs: object, output: object) -> None:
        self._seen.extend(itertools.islice(floating_tensors(output), 1))


def blocks_of(model: nn.Module) -> list[str]:
    """Return the paths of the blocks whose outputs are compared.

    Raises:
        UsageError: The model has no list of modules.
    """
    lists = list(_lists(model))
    if not lists:
        raise UsageError(
            "this model has no list of blocks (ModuleList, Sequential) whose hidden tensors could "
            "be compared; recover it without hidden"
        )
    path, module = max(lists, key=lambda found: sum(p.numel() for p in found[1].parameters()))
    return [f"{path}.{child}".lstrip(".") for child, _ in module.named_children()]


def _lists(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every list of two or more modules, outer ones first."""
    for path, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1:
            yield path, module
