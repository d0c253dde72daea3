"""Time and memory of one one-shot compression, to stand beside what ``bench/peers`` measure.

    python bench/one_shot.py MODEL WINDOWS.npy CASE [--device cuda]

``CASE`` is written as for the peers: ``sparsegpt:0.5``, ``wanda:2:4``, ``admm:0.5+gptq:4:128``.
Timed is all of ``compress``: building the model, calibration, solving, packing.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np
import torch
from accuracy_cases import Row, peer_case

import edgesparse as es


def row_of(case: str) -> Row:
    """Return the row that does what ``case`` says."""
    name, how = peer_case(case)
    kept, _, stored = name.rpartition(" + ") if "-bit" in name else (name, "", "")
    bits, group = (int(v) for v in stored.split("-bit g")) if stored else (16, 128)
    method = how.split(" + ")[0] if kept else ""
    if " %" in kept:
        return Row("unstructured", float(kept.removesuffix(" %")) / 100, method, bits, group)
    keep, of = (int(v) for v in kept.split(":")) if kept else (1, 1)
    return Row(kept or "unstructured", 1 - keep / of, method, bits, group)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("windows")
    parser.add_argument("case")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    captured = es.load(args.model)
    plan = row_of(args.case).plan(captured)
    windows = torch.from_numpy(np.load(args.windows).astype(np.int64))
    if args.device == "cuda":
        torch.zeros(1, device="cuda")
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    es.compress(captured, plan, windows, device=args.device)
    seconds = time.perf_counter() - started
    record = {
        "tool": "edgesparse",
        "case": args.case,
        "windows": list(windows.shape),
        "seconds": round(seconds, 2),
        "cuda_peak_bytes": torch.cuda.max_memory_allocated() if args.device == "cuda" else None,
        "host_peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
