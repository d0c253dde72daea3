"""Batch norms folded into the layers before them, without a change of the model's structure.

A batch norm in evaluation multiplies each channel by ``g = γ / sqrt(σ² + ε)`` and adds a number.
Solved without it, a convolution is pruned and rounded by weights that are not the ones that act;
and a converter that folds later rounds weights the solver never saw. So ``fold`` moves the factor
into the layer before anything is solved:

    W' = g W    b' = 0    γ' = 1    μ' = 0    σ²' = 1 - ε    β' = β + g (b - μ)

Every tensor keeps its name and shape, and the norm that is left only adds ``β'``. A converter can
then make ``β'`` the bias of the layer and drop the norm (``absorb``): no number changes by that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from edgesparse.capture.structure import copy_structure, on_meta
from edgesparse.model import CapturedModel

_LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Layer = (
    nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)  # fmt: skip
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
IDENTITY_TOLERANCE = 1e-6
"""How far from 1 the factor of a norm that only adds may be: float32 rounds ``1 - ε + ε``."""


@dataclass(frozen=True)
class Pair:
    """A layer whose output goes to one batch norm and nowhere else.

    Attributes:
        layer: Path of the layer.
        norm: Path of the norm.
    """

    layer: str
    norm: str


def find_pairs(captured: CapturedModel) -> tuple[Pair, ...]:
    """Return the pairs of a model, in the order they run.

    Found by one forward pass on the meta device that watches every operator: shapes only, no
    arithmetic, no weights. () when the pass cannot run there.
    """
    module = captured.skeleton()
    if not any(isinstance(child, _NORMS) for child in module.modules()):
        return ()
    module = on_meta(copy_structure(module))
    inputs = tree_map_only(Tensor, lambda t: t.to("meta"), dict(captured.example_inputs))
    with _Watch(module) as watch:
        try:
            with torch.no_grad(), torch.device("meta"):
                outputs = module(**inputs)
        except Exception:  # whatever a stranger's forward raises on shapes without values
            return ()
    return tuple(watch.pairs(outputs))


def fold(model: nn.Module, captured: CapturedModel, packed: Set[str]) -> dict[str, Tensor]:
    """Fold every batch norm that can be into the layer before it, in place.

    What is added, and a layer's weight that will not be packed, are rounded to float16, the type
    that files for devices keep them in: so the numbers there are the ones of this model.

    Args:
        model: A private copy of the model with its weights, in float32.
        captured: Where it came from.
        packed: Names of the tensors that will be packed.

    Returns:
        The tensors that changed and will not be packed, by name, in their stored types.
    """
    changed: dict[str, Tensor] = {}
    dtypes = {name: getattr(torch, info.dtype) for name, info in captured.by_name.items()}
    tied = {name for name, info in captured.by_name.items() if info.aliases}
    for pair in find_pairs(captured):
        if tied & set(_names(model, pair)):
            continue
        stored = dtypes[f"{pair.norm}.running_var"]
        values = _folded(model, pair, stored, keep=f"{pair.layer}.weight" not in packed)
        if not all(bool(torch.isfinite(value).all()) for value in values.values()):
            continue
        for name, value in values.items():
            path, _, leaf = name.rpartition(".")
            getattr(model.get_submodule(path), leaf).data.copy_(value)
            if name not in packed:
                changed[name] = value.to(dtypes[name])
    return changed


def absorb(module: nn.Module, captured: CapturedModel) -> None:
    """Make what folded norms add the bias of the layer before them, and drop the norms, in place.

    A norm that does more than add stays as it is.

    Args:
        module: A module made from a compressed model, its kept tensors in place.
        captured: Where that came from.
    """
    for pair in find_pairs(captured):
        layer, norm = _parts(module, pair)
        if not _only_adds(norm) or (layer.bias is not None and bool(layer.bias.any())):
            continue
        layer.bias = nn.Parameter(norm.bias.detach().clone(), requires_grad=False)
        parent, _, leaf = pair.norm.rpartition(".")
        setattr(module.get_submodule(parent), leaf, nn.Identity())


def _folded(model: nn.Module, pair: Pair, stored: torch.dtype, *, keep: bool) -> dict[str, Tensor]:
    """Return the new value of every tensor of a pair, float32, by name."""
    layer, norm = _parts(model, pair)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    factor = norm.weight.double() * torch.rsqrt(variance + norm.eps)
    # In float16 1 - ε is rounded; what is then left of the norm's factor is taken out again.
    left = torch.full_like(variance, 1 - norm.eps).to(stored).double()
    shape = [1] * layer.weight.dim()
    shape[1 if isinstance(layer, _TRANSPOSED) else 0] = -1
    scaled = layer.weight.double() * (factor * torch.sqrt(left + norm.eps)).reshape(shape)
    bias = torch.zeros_like(mean) if layer.bias is None else layer.bias.double()
    values = {
        f"{pair.layer}.weight": scaled.half() if keep else scaled,
        f"{pair.norm}.weight": torch.ones_like(mean),
        f"{pair.norm}.bias": (norm.bias.double() + factor * (bias - mean)).half(),
        f"{pair.norm}.running_mean": torch.zeros_like(mean),
        f"{pair.norm}.running_var": left,
    }
    if layer.bias is not None:
        values[f"{pair.layer}.bias"] = torch.zeros_like(mean)
    return {name: value.float() for name, value in values.items()}


def _parts(module: nn.Module, pair: Pair) -> tuple[Layer, Norm]:
    layer, norm = module.get_submodule(pair.layer), module.get_submodule(pair.norm)
    assert isinstance(layer, _LAYERS)
    assert isinstance(norm, _NORMS)
    return layer, norm


def _only_adds(norm: Norm) -> bool:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    near = (factor - 1).abs().max() <= IDENTITY_TOLERANCE
    return bool(near) and not bool(norm.running_mean.any())


def _names(model: nn.Module, pair: Pair) -> Iterator[str]:
    for path in (pair.layer, pair.norm):
        for leaf, _ in model.get_submodule(path).named_parameters():
            yield f"{path}.{leaf}"


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which operators read the output of each layer that a norm could be folded into."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._outputs: dict[str, Tensor] = {}
        self._readers: dict[str, set[str]] = {}
        self._calls: Counter[str] = Counter()
        self._inside = ""
        for path, child in module.named_modules():
            if isinstance(child, _LAYERS) and not (
                isinstance(child, _TRANSPOSED) and child.groups > 1
            ):
                child.register_forward_hook(partial(self._leave, path))
            elif isinstance(child, _NORMS) and child.affine and child.running_var is not None:
                child.register_forward_pre_hook(partial(self._enter, path))
                child.register_forward_hook(partial(self._leave, path))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Note whose outputs ``func`` reads, then run it."""
        read = {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for path, output in self._outputs.items():
            if id(output) in read:
                self._readers.setdefault(path, set()).add(self._inside)
        return func(*args, **(kwargs or {}))

    def pairs(self, outputs: Any) -> Iterator[Pair]:
        """Yield each layer whose output one norm alone reads, both called once."""
        returned = {id(leaf) for leaf in tree_leaves(outputs)}
        for layer, output in self._outputs.items():
            norm = next(iter(self._readers.get(layer, {""})))
            alone = self._readers.get(layer) == {norm} and id(output) not in returned
            if norm and alone and self._calls[layer] == 1 == self._calls[norm]:
                yield Pair(layer, norm)

    def _enter(self, path: str, norm: nn.Module, inputs: Any) -> None:
        self._inside = path

    def _leave(self, path: str, child: nn.Module, inputs: Any, output: Any) -> None:
        self._inside = ""
        self._calls[path] += 1
        # A linear layer's channels are the norm's only without further dimensions between them.
        if isinstance(child, _LAYERS) and not (isinstance(child, nn.Linear) and output.dim() != 2):
            self._outputs[path] = output
