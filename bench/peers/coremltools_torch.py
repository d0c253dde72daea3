"""One case of coremltools.optimize.torch on a model and on token windows that others use too.

    python bench/peers/coremltools_torch.py MODEL WINDOWS.npy CASE OUT [--device cuda]

``CASE`` is ``sparsegpt:0.5``, ``sparsegpt:2:4``, ``gptq:4:32`` (bits, block) or ``table:4``, the
k-means of each tensor, which needs no data. The linear layers of the blocks are compressed in
float32 with the package's own defaults. Written are their values,
``OUT.safetensors``, and the seconds and the highest memory, ``OUT.json``.
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
from coremltools.optimize.torch.layerwise_compression import (
    LayerwiseCompressor,
    LayerwiseCompressorConfig,
)
from coremltools.optimize.torch.palettization import (
    PostTrainingPalettizer,
    PostTrainingPalettizerConfig,
)
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

BLOCKS = r"model\.layers\.\d+"


def options_of(case: str) -> dict[str, object]:
    """Return the compressor's options for every linear layer."""
    method, _, rest = case.partition(":")
    if method == "gptq":
        bits, block = map(int, rest.split(":"))
        return {
            "algorithm": "gptq", "weight_dtype": f"uint{bits}", "quantization_scheme": "symmetric",
            "granularity": "per_block", "block_size": block,
        }  # fmt: skip
    options: dict[str, object] = {"algorithm": "sparse_gpt", "weight_dtype": "float32"}
    if re.fullmatch(r"\d+:\d+", rest):
        keep, of = map(int, rest.split(":"))
        return {**options, "n_m_ratio": (of - keep, of)}
    return {**options, "target_sparsity": float(rest)}


def compress(
    model: torch.nn.Module, windows: torch.Tensor, case: str, device: str
) -> torch.nn.Module:
    """Return the compressed model."""
    if case.startswith("table:"):
        layers = {
            name: {"n_bits": int(case[6:]), "granularity": "per_tensor"}
            for name, module in model.named_modules()
            if re.match(BLOCKS, name) and isinstance(module, torch.nn.Linear)
        }
        config = PostTrainingPalettizerConfig.from_dict({"module_name_configs": layers})
        return PostTrainingPalettizer(model, config).compress()
    config = LayerwiseCompressorConfig.from_dict(
        {
            "layers": [BLOCKS],
            "global_config": options_of(case),
            "input_cacher": "gpt",
            "calibration_nsamples": len(windows),
        }
    )
    return LayerwiseCompressor(model, config).compress(list(windows.split(1)), device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("windows")
    parser.add_argument("case")
    parser.add_argument("output")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    model.config.use_cache = False
    windows = torch.from_numpy(np.load(args.windows).astype(np.int64))
    started = time.perf_counter()
    model = compress(model, windows, args.case, args.device)
    record = {
        "peer": "coremltools.optimize.torch",
        "version": version("coremltools"),
        "case": args.case,
        "seconds": round(time.perf_counter() - started, 2),
        "cuda_peak_bytes": None,
        "host_peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    weights = {
        f"{name}.weight": module.weight.detach().float().cpu().contiguous().clone()
        for name, module in model.named_modules()
        if name.endswith("proj")
    }
    save_file(weights, f"{args.output}.safetensors")
    Path(f"{args.output}.json").write_text(json.dumps(record))
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
