"""Compress a random Llama that is larger than the memory it may take, and measure what it took.

    python bench/larger_than_memory.py --folder /some/disk --limit 3GB

Makes the model on disk (bfloat16, a shard for each layer; without options 2.92 billion parameters,
5.84 GB), runs ``edgesparse compress`` on it in a process of its own, 50 % + 4-bit with Wanda and
nearest rounding, and prints the most memory that process held and the seconds of every layer: of
the clock, which other work on the machine slows down, and of the processor, which it hardly does
(read from Linux's ``/proc``). ``--layers`` makes a model of the same width with fewer layers;
``--keep`` leaves the files.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from edgesparse.budget import format_size, parse_size
from edgesparse.store.tensorfile import write_tensor_file

EXAMPLES = Path(__file__).parents[1] / "examples"
LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A moment of the run, since it began.

    Attributes:
        clock: Seconds.
        processor: Seconds that the process has computed, in the system's calls too.
    """

    clock: float
    processor: float

    def since(self, earlier: Mark) -> Mark:
        """Return what lies between."""
        return Mark(clock=self.clock - earlier.clock, processor=self.processor - earlier.processor)


def processor_seconds(process: int) -> float:
    """Return the seconds a process has computed: user and system, 14th and 15th of its ``stat``."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def shapes(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """Yield the tensors of each shard: the embedding and the last norm, then every layer."""
    wide, inner, narrow = options.hidden, options.inner, 128 * options.heads
    yield "rest", {"model.embed_tokens.weight": (options.vocabulary, wide),
                   "model.norm.weight": (wide,)}  # fmt: skip
    for layer in range(options.layers):
        parts: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (wide, wide), "self_attn.k_proj": (narrow, wide),
            "self_attn.v_proj": (narrow, wide), "self_attn.o_proj": (wide, wide),
            "mlp.gate_proj": (inner, wide), "mlp.up_proj": (inner, wide),
            "mlp.down_proj": (wide, inner), "input_layernorm": (wide,),
            "post_attention_layernorm": (wide,),
        }  # fmt: skip
        yield (
            f"{layer:03}",
            {f"model.layers.{layer}.{part}.weight": shape for part, shape in parts.items()},
        )


def make_model(path: Path, options: argparse.Namespace) -> int:
    """Write the model directory; return the number of parameters."""
    generator = torch.Generator().manual_seed(0)
    path.mkdir(parents=True)
    places: dict[str, str] = {}
    count = 0
    for shard, tensors in shapes(options):
        name, values = f"model-{shard}.safetensors", {}
        for tensor, shape in tensors.items():
            value = torch.ones(shape)
            if len(shape) > 1:
                value = torch.randn(shape, generator=generator).mul_(0.02)
            values[tensor], places[tensor] = value.to(torch.bfloat16), name
            count += value.numel()
        write_tensor_file(path / name, values)
    index = {"metadata": {}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": options.hidden,
        "intermediate_size": options.inner, "num_hidden_layers": options.layers,
        "num_attention_heads": options.hidden // 128, "num_key_value_heads": options.heads,
        "vocab_size": options.vocabulary, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True, "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLES / "models" / "classics-4m" / file, path)
    return count


def compress(
    model: Path, output: Path, options: argparse.Namespace
) -> tuple[int, list[tuple[Mark, Mark]]]:
    """Run the command; return the most memory it held, and when each layer's tensors were done.

    Of each layer the first and the last.
    """
    arguments = [
        sys.executable, "-m", "edgesparse", "compress", str(model), "-o", str(output),
        "--calibration", str(EXAMPLES / "data" / "calibration.txt"), "--sparsity", "0.5",
        "--bits", "4", "--group-size", "128", "--method", options.method, "--quantizer",
        options.quantizer, "--windows", str(options.windows), "--window", str(options.window),
        "--memory-limit", options.limit, "--device", options.device, "--verbose", "--resume",
        "--no-compare",
    ]  # fmt: skip
    started, last = time.monotonic(), ""
    layers: dict[str, tuple[Mark, Mark]] = {}
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        sys.stderr.write(line)
        if found := LAYER.match(line):
            now = Mark(clock=time.monotonic() - started, processor=processor_seconds(process.pid))
            layers[found[1]] = (layers.get(found[1], (now, now))[0], now)
        last = line
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"compress ended with {process.returncode}: {last}")
    return usage.ru_maxrss * 1024, list(layers.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--limit", default="3GB")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=3072)
    parser.add_argument("--inner", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=8, help="heads of keys and values")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--quantizer", default="rtn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    model, output = options.folder / "model", options.folder / "small"
    try:
        if not model.exists():
            make_model(model, options)
        size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        started = time.monotonic()
        peak, done = compress(model, output, options)
        report(options, size, output, peak, done, time.monotonic() - started)
        if peak > parse_size(options.limit):
            raise SystemExit("the limit was not kept")
    finally:
        if not options.keep:
            shutil.rmtree(options.folder)


def report(
    options: argparse.Namespace,
    size: int,
    output: Path,
    peak: int,
    done: list[tuple[Mark, Mark]],
    seconds: float,
) -> None:
    """Print what was measured."""
    whole = [later.since(earlier) for (_, earlier), (_, later) in itertools.pairwise(done)]
    parts = [last.since(first) for first, last in done]
    small = (output / "weights.safetensors").stat().st_size
    sys.stdout.write(
        f"{options.layers} layers, {format_size(size)} to {format_size(small)} in {seconds:.0f} s\n"
        f"most memory {format_size(peak)}, limit {format_size(parse_size(options.limit))}\n"
        f"until the first layer was done: {done[0][1].clock:.1f} s of the clock, "
        f"{done[0][1].processor:.1f} s of the processor\n"
        "each layer after the first\n" + _table(whole) + "of each layer, the first too, "
        "from its first finished tensor to its last\n" + _table(parts)
    )


def _table(spans: list[Mark]) -> str:
    """Return the seconds of both kinds, and how far the processor's lie apart."""
    processor = [span.processor for span in spans]
    return (
        f"  clock:     {' '.join(f'{span.clock:.1f}' for span in spans)}\n"
        f"  processor: {' '.join(f'{s:.1f}' for s in processor)}; "
        f"largest / smallest {max(processor) / max(min(processor), 0.01):.3f}\n"
    )


if __name__ == "__main__":
    main()
