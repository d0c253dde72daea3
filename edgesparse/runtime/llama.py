"""What the compiled step needs to know of a Llama-family model, found in its modules.

Whatever is not understood is an obstacle, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from edgesparse_kernels import _jit, attention, decoder, dispatch
from edgesparse_kernels.activations import Activations, supports
from edgesparse_kernels.held import as_dense, for_products
from edgesparse_kernels.matmul import has_octets
from edgesparse_kernels.matrix import PackedMatrix
from edgesparse_kernels.structured import StructuredMatrix
from numpy.typing import NDArray
from torch import nn

from edgesparse.capture.experts import is_unstacked
from edgesparse.formats.operand import open_matrix

Floats = NDArray[np.float32]
Held = list[PackedMatrix | StructuredMatrix | Floats]

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_UNITS = ("gate_proj", "up_proj", "down_proj")
_EXPERTS = ("gate_up_proj", "down_proj")
_FAMILIES = {"llama", "qwen3", "mixtral", "qwen3_moe"}
_FIXED_ROTARY = {"default", "linear", "llama3", "yarn"}
_NORMS = ("input_layernorm", "post_attention_layernorm")


def obstacle(module: nn.Module) -> str:
    """Return why a packed module cannot run as one compiled step, "" if it can.

    Args:
        module: What ``build_packed`` returned.
    """
    config: Any = getattr(module, "config", None)
    family = getattr(config, "model_type", type(module).__name__)
    if family not in _FAMILIES:
        return f"a model of type {family}"
    if not _jit.is_enabled():
        return "numba is disabled"
    heads: Any = _head_dim(module)
    rotary: Any = module.get_submodule("model.rotary_emb")
    checks = {
        f"heads of {heads} dimensions": heads % 32 != 0,
        f"{config.hidden_size} hidden values": config.hidden_size % 16 != 0,
        f"activation {config.hidden_act}": config.hidden_act not in {"silu", "swish"},
        "a sliding window": _slides(config),
        f"rotary positions of type {rotary.rope_type}": rotary.rope_type not in _FIXED_ROTARY,
        "positions of only a part of each head": 2 * len(rotary.inv_freq) != heads,
    }
    found = [what for what, stops in checks.items() if stops]
    found += [what for layer in _layers(module) for what in _unit_obstacles(layer)]
    for name, layer in _linears(module):
        if "weight_payload" in layer._modules and not _vectors(_opened(layer)):
            found.append(f"{name} in a layout of other codes or groups")
    return found[0] if found else ""


def _layers(module: nn.Module) -> list[Any]:
    return list(module.get_submodule("model.layers").children())


def _unit_obstacles(layer: Any) -> Iterator[str]:
    """Yield what the step cannot do of a layer's gated units."""
    inner = _inner(layer)
    if inner % 16:
        yield f"{inner} gated units"
    if is_mixture(layer):
        experts = layer.mlp.experts
        if not is_unstacked(experts) or not experts.has_gate or not experts.is_concatenated:
            yield f"experts of type {type(experts).__name__}"
        elif layer.mlp.gate.top_k > len(experts.down_proj):
            yield f"{layer.mlp.gate.top_k} experts a token of {len(experts.down_proj)}"


def is_mixture(layer: Any) -> bool:
    """Whether the gated units of a layer are experts with a router."""
    return hasattr(layer.mlp, "experts")


def _inner(layer: Any) -> int:
    """Return the gated units of a layer, those of one expert if it has some."""
    down = layer.mlp.experts.down_proj[0] if is_mixture(layer) else layer.mlp.down_proj
    return int(down.in_features)


def _head_dim(module: nn.Module) -> int:
    return int(getattr(module.get_submodule("model.layers.0.self_attn"), "head_dim", 1))


def _slides(config: Any) -> bool:
    """Whether attention leaves positions of the context out."""
    window = getattr(config, "sliding_window", None)
    return bool(getattr(config, "use_sliding_window", window is not None) and window is not None)


def _linears(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the projections by name, layer by layer in the step's order, and the head."""
    for i, layer in enumerate(_layers(module)):
        for leaf in [f"self_attn.{leaf}" for leaf in _ATTENTION] + _units(layer):
            yield f"model.layers.{i}.{leaf}", layer.get_submodule(leaf)
    yield "lm_head", module.get_submodule("lm_head")


def _units(layer: Any) -> list[str]:
    """Return the names of the linear layers of a layer's gated units, in the step's order."""
    if not is_mixture(layer):
        return [f"mlp.{leaf}" for leaf in _UNITS]
    count = len(layer.mlp.experts.down_proj)
    return [f"mlp.experts.{leaf}.{i}" for leaf in _EXPERTS for i in range(count)]


def _opened(layer: nn.Module) -> PackedMatrix | StructuredMatrix:
    """Return the packed weight of a layer as it is stored, checked."""
    payload: Any = layer._modules["weight_payload"]
    return open_matrix(payload.packed)


def _held(layer: nn.Module, weights: int) -> PackedMatrix | StructuredMatrix:
    """Return the packed weight of a layer as the vector kernels take it.

    A structured mask that they cannot gather from is held as dense. So is a bitmask where
    ``for_products`` says so, of ``weights`` in all.
    """
    matrix = for_products(_opened(layer), weights=weights)
    if isinstance(matrix, StructuredMatrix) and not dispatch.can_gather(matrix):
        return as_dense(matrix)
    return matrix


def _vectors(matrix: PackedMatrix | StructuredMatrix) -> bool:
    if not supports(matrix, Activations.INT16):
        return False
    return isinstance(matrix, StructuredMatrix) or (matrix.is_symmetric and has_octets(matrix))


def shape_of(module: nn.Module, capacity: int, *, byte_cache: bool) -> attention.Shape:
    """Return the sizes of a model whose cache has room for ``capacity`` positions."""
    config: Any = module.config
    return attention.Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=_head_dim(module),
        capacity=-(-capacity // 16) * 16,
        byte_cache=int(byte_cache),
        head_norms=int(hasattr(module.get_submodule("model.layers.0.self_attn"), "q_norm")),
        epsilon=float(config.rms_norm_eps),
    )


def read_weights(module: nn.Module, shape: attention.Shape) -> tuple[decoder.Weights, Held]:
    """Return the weights of the step, and what their addresses point into."""
    held: Held = []
    layers = _layers(module)
    norms = [_floats(getattr(layer, name).weight) for layer in layers for name in _NORMS]
    norms.append(_floats(module.get_submodule("model.norm").weight))
    head_norms = np.zeros((2 * shape.layers, shape.head_dim), np.float32)
    if shape.head_norms:
        for i, layer in enumerate(layers):
            head_norms[2 * i] = _floats(layer.self_attn.q_norm.weight)
            head_norms[2 * i + 1] = _floats(layer.self_attn.k_norm.weight)
    rotary: Any = module.get_submodule("model.rotary_emb")
    matrices, table = _matrices(module, held)
    return decoder.Weights(
        matrices=matrices,
        layers=table,
        order=np.arange(len(matrices)),
        norms=np.stack(norms),
        head_norms=head_norms,
        rotary=_turns(rotary, shape),
    ), held


def _matrices(module: nn.Module, held: Held) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ``matrices`` and ``layers`` of the step's weights."""
    numbers: list[list[int]] = []
    table: list[list[int]] = []
    weights = sum(layer.in_features * layer.out_features for _, layer in _linears(module))
    numbers_of = partial(_numbers, weights=weights, held=held)
    for layer in _layers(module):
        first, mixture = len(numbers), is_mixture(layer)
        numbers += [numbers_of(layer.get_submodule(f"self_attn.{leaf}")) for leaf in _ATTENTION]
        if mixture:
            router = layer.mlp.gate
            numbers.append(_float_numbers(router.weight, held))
            whole = int(getattr(router, "norm_topk_prob", True))
            table.append([first, _inner(layer), router.weight.shape[0], router.top_k, whole])
        else:
            table.append([first, _inner(layer), 0, 1, 0])
        numbers += [numbers_of(layer.get_submodule(leaf)) for leaf in _units(layer)]
    numbers.append(numbers_of(module.get_submodule("lm_head")))
    return np.array(numbers, np.int64), np.array(table, np.int64)


def _numbers(layer: Any, weights: int, held: Held) -> list[int]:
    """Return what the step knows of one projection of a model of ``weights`` in all.

    They are ``decoder.FIELDS`` numbers; what their addresses point into is added to ``held``.
    """
    if "weight_payload" in layer._modules:
        matrix = _held(layer, weights)
        held.append(matrix)
        if isinstance(matrix, StructuredMatrix):
            numbers = decoder.structured_numbers(dispatch.gather_operand(matrix))
        else:
            numbers = [0] * decoder.FIELDS
            numbers[:13] = dispatch.operand(matrix)
    else:
        numbers = _float_numbers(layer.weight, held)
    if getattr(layer, "bias", None) is not None:
        bias = _floats(layer.bias)
        held.append(bias)
        numbers[decoder.BIAS_AT] = bias.ctypes.data
    return numbers


def _float_numbers(tensor: Any, held: Held) -> list[int]:
    """Return what the step knows of a matrix of floats."""
    weight = _floats(tensor)
    held.append(weight)
    numbers = [0] * decoder.FIELDS
    numbers[:2] = weight.shape
    numbers[decoder.FLOATS_AT] = weight.ctypes.data
    return numbers


def _floats(tensor: Any) -> Floats:
    """Return a tensor as a contiguous float32 array."""
    found: Floats = np.ascontiguousarray(tensor.detach().float().numpy())
    return found


def _turns(rotary: Any, shape: attention.Shape) -> Floats:
    """Return cosines and sines of every position, as the module makes them."""
    positions = torch.arange(shape.capacity)[:, None].float()
    angles = positions * rotary.inv_freq.float()[None]
    both = torch.stack([angles.cos(), angles.sin()], dim=1) * rotary.attention_scaling
    return _floats(both)
