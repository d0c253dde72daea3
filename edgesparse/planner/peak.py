"""Peak memory in a target's runtime, as a sum of named parts.

    weights       as the runtime holds them, which is rarely as the file does
    activations   the most bytes of results alive at once in one forward pass
    key/value     the cache of a language model over its context, where the runtime keeps one
    runtime       what an empty program already takes

    graph         what a runtime makes of the program around the weights
    loading       what a runtime holds only while it prepares weights, beyond the two above

Target by target how a weight is held: here (no target) packed weights stay packed and the others
are float32. ExecuTorch maps packed weights from the file; convolutions and what is not packed are
float32 there, and XNNPACK repacks them: a stretch of convolutions that no packed layer interrupts
is one delegate, whose bytes in the file are held beside their repacked copy. Core ML, outside of
the Neural Engine, decodes every weight to float16 when it loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgesparse.errors import UsageError
from edgesparse.model import DTYPE_NBYTES, CapturedModel, TensorInfo, TensorKind
from edgesparse.planner.types import MemoryTerm, TensorPlan

_FLOAT32_NBYTES = 4


@dataclass(frozen=True)
class Runtime:
    """How a target's runtime holds things.

    Attributes:
        float_nbytes: Bytes of an element of activations and of weights left as they are.
        decodes: Whether packed weights are held as floats.
        repacks: Whether convolutions are held as floats, repacked when a program is loaded.
        caches: Whether the program keeps keys and values between calls.
        empty_nbytes: What the runtime takes around a program: code that is touched, threads.
        layer_nbytes: What it makes of the graph around one matrix.
    """

    float_nbytes: int
    decodes: bool
    repacks: bool
    caches: bool
    empty_nbytes: int
    layer_nbytes: int = 0


RUNTIMES: dict[str | None, Runtime] = {
    None: Runtime(float_nbytes=4, decodes=False, repacks=False, caches=True, empty_nbytes=0),
    # ExecuTorch: measured by bench/predictions.py on programs of 2 to 16 MB.
    "executorch": Runtime(
        float_nbytes=4,
        decodes=False,
        repacks=True,
        caches=False,
        empty_nbytes=5_000_000,
        layer_nbytes=13_000,
    ),
    "coreml": Runtime(
        float_nbytes=2, decodes=True, repacks=False, caches=False, empty_nbytes=3_500_000
    ),
}


def held_nbytes(entry: TensorPlan, target: str | None) -> int:
    """Return the bytes one tensor takes in the target's runtime."""
    runtime, tensor = RUNTIMES[target], entry.tensor
    if entry.spec is not None:
        as_floats = runtime.decodes or (runtime.repacks and is_window(tensor))
        return runtime.float_nbytes * tensor.numel if as_floats else entry.nbytes
    floats = tensor.dtype in ("float16", "bfloat16", "float32", "float64")
    return tensor.numel * (runtime.float_nbytes if floats else DTYPE_NBYTES[tensor.dtype])


def memory_terms(
    captured: CapturedModel,
    entries: Sequence[TensorPlan],
    target: str | None,
    context: int | None = None,
) -> tuple[MemoryTerm, ...]:
    """Return every part of the predicted peak memory; () when it cannot be predicted."""
    fixed = fixed_terms(captured, target, context)
    if fixed is None:
        return ()
    weights = MemoryTerm(
        name="weights",
        nbytes=sum(held_nbytes(entry, target) for entry in entries),
        basis=f"as {target or 'the packed runtime'} holds them",
    )
    return (weights, *fixed)


def fixed_terms(
    captured: CapturedModel, target: str | None, context: int | None = None
) -> tuple[MemoryTerm, ...] | None:
    """Return the parts that no plan changes.

    A language model keeps a cache of ``context`` tokens; without it, of as many as the model was
    made for where the runtime always keeps one.

    None when nothing is known of the target's memory, or the model cannot run on shapes alone.
    """
    from edgesparse.planner.activations import peak_activation_nbytes

    runtime = RUNTIMES.get(target)
    activations = peak_activation_nbytes(captured) if runtime else None
    if runtime is None or activations is None:
        return None
    terms = [
        MemoryTerm(
            name="activations",
            nbytes=activations * runtime.float_nbytes // _FLOAT32_NBYTES,
            basis="results alive at once on the example inputs, traced on shapes",
        )
    ]
    cache = kv_cache_nbytes(captured, runtime.float_nbytes, context)
    if cache and (runtime.caches or context is not None):
        basis = f"{context} tokens" if context else "over the model's context"
        terms.append(MemoryTerm(name="key/value cache", nbytes=cache, basis=basis))
    if runtime.empty_nbytes:
        terms.append(
            MemoryTerm(name="runtime", nbytes=runtime.empty_nbytes, basis="code and threads")
        )
    if graph := runtime.layer_nbytes * sum(t.compressible for t in captured.tensors):
        terms.append(MemoryTerm(name="graph", nbytes=graph, basis="values and calls"))
    loading = _stretch_nbytes(captured) - sum(t.nbytes for t in terms) if runtime.repacks else 0
    if loading > 0:
        basis = "the longest stretch of convolutions while it is repacked"
        terms.append(MemoryTerm(name="loading", nbytes=loading, basis=basis))
    return tuple(terms)


def is_window(tensor: TensorInfo) -> bool:
    """Whether a tensor is the kernel of a convolution with overlapping windows: no linear layer."""
    is_wide = tensor.kind is TensorKind.CONV and any(size > 1 for size in tensor.shape[2:])
    return is_wide and not tensor.patchwise


def _stretch_nbytes(captured: CapturedModel) -> int:
    """Return the float32 bytes of the most convolutions between two packed layers."""
    longest = here = 0
    for tensor in captured.tensors:
        if is_window(tensor):
            here += _FLOAT32_NBYTES * tensor.numel
        elif tensor.compressible:
            here = 0
        longest = max(longest, here)
    return longest


def kv_cache_nbytes(captured: CapturedModel, float_nbytes: int, context: int | None = None) -> int:
    """Return the bytes of a key/value cache, 0 for models without one.

    Args:
        captured: The model.
        float_nbytes: Bytes of one number of it.
        context: Tokens it holds; None holds as many as the model was made for.

    Raises:
        UsageError: More tokens than the model was made for.
    """
    config = captured.config
    names = (
        "num_hidden_layers", "num_attention_heads", "hidden_size", "max_position_embeddings"
    )  # fmt: skip
    sizes = [config.get(name) for name in names]
    if captured.task != "causal-lm" or not all(isinstance(size, int) for size in sizes):
        return 0
    layers, heads, hidden, longest = (int(size) for size in sizes if isinstance(size, int))
    if context is not None and context > longest:
        raise UsageError(
            f"context is {context} tokens, but {captured.name} was made for at most {longest}"
        )
    width = config.get("head_dim") or hidden // heads
    kv_heads = config.get("num_key_value_heads") or heads
    return 2 * layers * int(kv_heads) * int(width) * (context or longest) * float_nbytes
