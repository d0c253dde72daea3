"""One-shot compression of a large Llama with random weights: time per layer, memory of the device.

    python bench/large.py [--layers 16] [--device cuda] [--method sparsegpt] [--windows 128]

Weights are random, so nothing is said about accuracy. 50 % and 4 bits, group 128, in every linear
layer. ``weights_bytes`` is what the whole model takes in float32: the device holds far less.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import edgesparse as es
from edgesparse.compression import Progress
from edgesparse.model import TensorKind


def llama(layers: int) -> LlamaForCausalLM:
    """Return a Llama of the usual 1-billion shape at 16 layers, random weights in float16."""
    config = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, vocab_size=32000,
        max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval().half()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--method", default="sparsegpt")
    parser.add_argument("--windows", type=int, default=128)
    args = parser.parse_args()
    captured = es.load(llama(args.layers))
    rule = es.Rule(
        kind=TensorKind.LINEAR, pattern=es.Pattern(sparsity=0.5), method=args.method, bits=4,
        group_size=128, quantizer="gptq",
    )  # fmt: skip
    plan = es.plan(captured, es.Recipe((rule,)))
    tokens = torch.randint(
        0, 32000, (args.windows, 512), generator=torch.Generator().manual_seed(1)
    )
    ends: list[float] = []

    def layer_done(progress: Progress) -> None:
        if progress.name.endswith("down_proj.weight"):
            ends.append(progress.seconds)
            peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else 0
            print(
                f"layer {len(ends)}: {progress.seconds:.1f} s, peak {peak / 1e9:.2f} GB", flush=True
            )

    started = time.perf_counter()
    es.compress(captured, plan, tokens, device=args.device, progress=layer_done)
    print(
        json.dumps(
            {
                "parameters": captured.num_parameters,
                "layers": args.layers,
                "method": args.method,
                "windows": args.windows,
                "seconds": round(time.perf_counter() - started, 1),
                "seconds_per_layer": round((ends[-1] - ends[0]) / (len(ends) - 1), 2),
                "cuda_peak_bytes": torch.cuda.max_memory_allocated(),
                "weights_bytes": 4 * captured.num_parameters,
            }
        )
    )


if __name__ == "__main__":
    main()
