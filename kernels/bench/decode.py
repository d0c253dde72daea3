"""Time whole-model decoding: tokens per second of the compiled step, of torch, of llama.cpp.

    python kernels/bench/decode.py COMPRESSED [--llama llama_decode.so --gguf model.gguf]

The same prompt, greedy; a figure is the median round. On one thread all take turns in one process;
with ``--threads 2`` one is done before the next begins, as idle threads of a pool keep a core busy
for a while. llama.cpp is optional: peers/to_gguf.py writes the source model as Q4_0,
peers/llama_decode.cpp says how it is built.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from edgesparse_kernels.activations import Activations

from edgesparse.formats.choice import choose
from edgesparse.model import CompressedModel
from edgesparse.packed import FORMATS, PackedTensor
from edgesparse.runtime.fused import FusedOptions, FusedStep
from edgesparse.runtime.generate import _Step
from edgesparse.runtime.modules import build_packed
from edgesparse.runtime.text import tokenizer

Round = Callable[[], tuple[float, list[int]]]
"""Decodes from the start; returns seconds a token and the tokens."""


def greedy(make: Callable[[], Callable[[torch.Tensor], torch.Tensor]], prompt, count) -> Round:
    def one() -> tuple[float, list[int]]:
        step, made = make(), []
        chosen = int(step(torch.tensor([prompt])).argmax())
        begin = time.perf_counter()
        for _ in range(count):
            made.append(chosen)
            chosen = int(step(torch.tensor([[chosen]])).argmax())
        return (time.perf_counter() - begin) / count, made

    return one


def llama(library: Path, path: Path, threads: int, prompt: list[int], count: int) -> Round:
    peer = ctypes.CDLL(str(library))
    peer.decode_open.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(peer.decode_open(str(path).encode(), threads, len(prompt) + count))

    def one() -> tuple[float, list[int]]:
        peer.decode_reset(handle)
        read = (ctypes.c_int32 * len(prompt))(*prompt)
        chosen, made = peer.decode_next(handle, read, len(prompt)), []
        begin = time.perf_counter()
        for _ in range(count):
            made.append(chosen)
            chosen = peer.decode_next(handle, (ctypes.c_int32 * 1)(chosen), 1)
        return (time.perf_counter() - begin) / count, made

    return one


def in_own_layout(packed: PackedTensor) -> PackedTensor:
    """Return the same codes in the layout that multiplies fastest by rule."""
    pattern = packed.spec.pattern
    name = choose(pattern, bits=packed.spec.bits).name
    return packed if pattern.is_dense else FORMATS.get(name).pack(packed.codes, pattern=pattern)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a saved compressed model")
    parser.add_argument("--source", type=Path, help="its source, where it moved")
    parser.add_argument("--llama", type=Path, help="built from peers/llama_decode.cpp")
    parser.add_argument("--gguf", type=Path, help="written by peers/to_gguf.py")
    parser.add_argument(
        "--own-layouts", action="store_true", help="masks in the layouts made for their patterns"
    )
    parser.add_argument("--prompt", default="It was a dark evening when")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    compressed = CompressedModel.load(arguments.model, source=arguments.source)
    if arguments.own_layouts:
        packed = {name: in_own_layout(one) for name, one in compressed.packed.items()}
        compressed = replace(compressed, packed=packed)
    prompt = tokenizer(compressed.captured).encode(arguments.prompt, add_special_tokens=False).ids
    count, threads, module = arguments.tokens, arguments.threads, build_packed(compressed)
    rounds: dict[str, Round] = {}
    if arguments.llama:
        rounds["llama.cpp Q4_0"] = llama(arguments.llama, arguments.gguf, threads, prompt, count)
    torch.set_num_threads(threads)
    rounds["torch, layer by layer, float32"] = greedy(
        lambda: _Step(module, compressed.captured), prompt, count
    )
    for kind in (Activations.INT8, Activations.INT16):
        for cache in (False, True):
            options = FusedOptions(activations=kind, threads=threads, byte_cache=cache)
            name = f"compiled step, {kind.name.lower()}{', int8 cache' if cache else ''}"
            rounds[name] = greedy(
                lambda options=options: FusedStep(module, len(prompt) + count, options),
                prompt, count,
            )  # fmt: skip
    report(rounds, arguments.rounds, threads)


def report(rounds: dict[str, Round], count: int, threads: int) -> None:
    """Print the table; everything is run once before it is timed."""
    tokens: dict[str, list[int]] = {}
    spent: dict[str, list[float]] = {name: [] for name in rounds}
    if threads == 1:
        tokens = {name: one()[1] for name, one in rounds.items()}
        for _ in range(count):
            for name, one in rounds.items():
                spent[name].append(one()[0])
    else:
        for name, one in rounds.items():
            tokens[name] = one()[1]
            spent[name] = [one()[0] for _ in range(count)]
    medians = {name: statistics.median(times) for name, times in spent.items()}
    base = medians.get("llama.cpp Q4_0", float("nan"))
    exact = tokens["torch, layer by layer, float32"]
    sys.stdout.write(
        f"{threads} thread(s)\n\n| what | tokens/s | × llama.cpp | first tokens as torch |\n"
        "|---|---|---|---|\n"
    )
    for name, median in medians.items():
        same = np.cumprod(np.equal(tokens[name], exact)).sum()
        sys.stdout.write(f"| {name} | {1 / median:.0f} | {base / median:.2f} | {same} |\n")


if __name__ == "__main__":
    main()
