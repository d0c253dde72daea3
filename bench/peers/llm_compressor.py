"""One case of llm-compressor on a model and on token windows that others use too.

    python bench/peers/llm_compressor.py MODEL WINDOWS.npy CASE OUT [--device cuda]

Runs in a virtual environment of its own (see README.md here). ``CASE`` is ``sparsegpt:0.5``,
``wanda:2:4``, ``gptq:4:32``, ``rtn:4:128`` (bits, group) or two of them joined by ``+``, which run
one after the other. The linear layers of the blocks are compressed in float32, one layer after the
other (its sequential pipeline), with the package's own defaults. Written are their values,
``OUT.safetensors``, and the seconds and the highest memory, ``OUT.json``.

Its GPTQ does not keep the zeros of a pruned model (0.14), so sparse and quantized means rounding
to nearest after pruning, which does.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


def modifier_of(step: str) -> object:
    """Return the modifier of one step of a case."""
    method, _, options = step.partition(":")
    if method in ("gptq", "rtn"):
        bits, group = map(int, options.split(":"))
        weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group"}
        scheme = {"targets": ["Linear"], "weights": {**weights, "group_size": group}}
        quantizer = GPTQModifier if method == "gptq" else QuantizationModifier
        return quantizer(config_groups={"group_0": scheme}, ignore=["lm_head"])
    kind = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[method]
    structure = options if re.fullmatch(r"\d+:\d+", options) else "0:0"
    sparsity = 1 - int(options[0]) / int(options[2:]) if ":" in options else float(options)
    return kind(
        sparsity=sparsity, mask_structure=structure, targets=["Linear"], ignore=["re:.*lm_head"]
    )


def batches(path: str, size: int) -> torch.utils.data.DataLoader:
    """Return the windows as a data loader of keyword arguments."""
    windows = torch.from_numpy(np.load(path).astype(np.int64))
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in windows]
    return torch.utils.data.DataLoader(rows, batch_size=size)


@torch.no_grad()
def values(module: torch.nn.Module) -> torch.Tensor:
    """Return a layer's weight as it would compute, rounded if it has a grid."""
    weight = module.weight.detach()
    if hasattr(module, "weight_scale"):
        grid = module.quantization_scheme.weights
        weight = fake_quantize(weight, module.weight_scale, module.weight_zero_point, grid)
    return weight.float().cpu().contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("windows")
    parser.add_argument("case")
    parser.add_argument("output")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model.config.use_cache = False
    loader = batches(args.windows, 8 if args.device == "cpu" else 32)
    if args.device != "cpu":
        model = model.to(args.device)
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    for step in args.case.split("+"):
        oneshot(
            model=model,
            dataset=loader,
            recipe=[modifier_of(step)],
            num_calibration_samples=len(loader.dataset),
            max_seq_length=len(loader.dataset[0]["input_ids"]),
            pipeline="sequential",
        )
    seconds = time.perf_counter() - started
    weights = {f"{n}.weight": values(m) for n, m in model.named_modules() if n.endswith("proj")}
    save_file(weights, f"{args.output}.safetensors")
    cuda = torch.cuda.max_memory_allocated() if args.device != "cpu" else None
    record = {
        "peer": "llm-compressor",
        "version": version("llmcompressor"),
        "case": args.case,
        "seconds": round(seconds, 2),
        "cuda_peak_bytes": cuda,
        "host_peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "zeros": float(np.mean([float((w == 0).float().mean()) for w in weights.values()])),
    }
    Path(f"{args.output}.json").write_text(json.dumps(record))
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
