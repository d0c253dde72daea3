"""How much memory it takes to write a package of a large model.

    python converters/bench/coreml_scale.py [--layers 16] [--hidden 1536] [--vocabulary 32000]
        [--context 512]

A Llama with random codes, half of them kept, 4 bits in groups of 128, is exported without ever
having float weights. Printed: its parameters, the bytes of its packed weights, the memory of the
process before the export and at its peak, and what the export took beyond the packed weights, per
parameter: above what was there before, and all of the process, libraries included. Linux only.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf

import edgesparse as es
from edgesparse.budget import Budget
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.packed import FORMATS, Codes, PackedTensor
from edgesparse.pattern import Pattern
from edgesparse.planner import Plan, TensorPlan

GROUP = 128
HALF = Pattern(sparsity=0.5)
STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def random_model(layers: int, hidden: int, vocabulary: int) -> CompressedModel:
    """Return a packed Llama of random codes; no two weights are equal."""
    config = tf.LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=hidden * 8 // 3 // 128 * 128,
        num_hidden_layers=layers, num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 128, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = tf.LlamaForCausalLM(config)
    model.model.rotary_emb = tf.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    captured = es.load(model.eval())
    generator = np.random.default_rng(0)
    packed, kept = {}, {}
    for tensor in captured.tensors:
        if tensor.compressible:
            packed[tensor.name] = _random_weight(tensor.shape, generator)
        else:
            kept[tensor.name] = torch.ones(tensor.shape)
    return CompressedModel(captured=captured, packed=packed, kept=kept, plan=_plan(captured))


def _random_weight(shape: tuple[int, ...], generator: np.random.Generator) -> PackedTensor:
    keep = generator.integers(0, 2, shape, np.uint8).astype(np.bool_)
    values = generator.integers(-8, 8, shape, np.int8) * keep
    groups = -(-shape[1] // GROUP)
    scales = generator.integers(128, 256, (shape[0], groups)) / np.float32(1 << 17)
    codes = Codes(
        values=values, scales=scales.astype(np.float16), keep_mask=keep, bits=4, group_size=GROUP
    )
    return FORMATS.get("bitmask4").pack(codes, pattern=HALF)


def _plan(captured: CapturedModel) -> Plan:
    spec = FORMATS.get("bitmask4").spec(group_size=GROUP, pattern=HALF)
    rule = es.Rule(pattern=HALF, bits=4, group_size=GROUP)
    entries = tuple(
        TensorPlan(tensor=t, rule=rule, spec=spec, nbytes=0)
        if t.compressible
        else TensorPlan(tensor=t, rule=None, spec=None, nbytes=t.nbytes)
        for t in captured.tensors
    )
    return Plan(tensors=entries, nbytes=0, budget=Budget())


def resident(field: str) -> int:
    """Return bytes of this process's memory: ``VmRSS`` now, ``VmHWM`` at its peak."""
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1]) << 10


def sizes() -> argparse.ArgumentParser:
    """Return a parser of the sizes ``random_model`` takes."""
    parser = argparse.ArgumentParser()
    for name, value in (("layers", 16), ("hidden", 1536), ("vocabulary", 32_000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser


def measure(small: CompressedModel, name: str, **options: Any) -> dict[str, float]:
    """Write a file of this name with these options; return its size and what that took."""
    parameters, packed = small.captured.num_parameters, small.nbytes
    before = resident("VmRSS")
    PEAK_RESET.write_text("5")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        nbytes = es.export(small, path=Path(folder) / name, **options).nbytes
        seconds = time.monotonic() - started
    peak = resident("VmHWM")
    return {
        "parameters": parameters,
        "packed_nbytes": packed,
        "file_nbytes": nbytes,
        "seconds": round(seconds, 1),
        "before_nbytes": before,
        "peak_nbytes": peak,
        "bytes_per_parameter_above_before": round((peak - before) / parameters, 3),
        "bytes_per_parameter_above_packed": round((peak - packed) / parameters, 3),
    }


def main() -> int:
    parser = sizes()
    parser.add_argument("--context", type=int)
    chosen = vars(parser.parse_args())
    context = chosen.pop("context")
    print(json.dumps(measure(random_model(**chosen), "large.mlpackage", context=context), indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
