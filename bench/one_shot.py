"""Time and memory of one one-shot compression, to stand beside what ``bench/peers`` measure.

    python bench/one_shot.py MODEL WINDOWS.npy CASE [--device cuda] [--machine WORDS]
        [--beside PEER.json ...] [--output docs/accuracy.json]

``CASE`` is written as for the peers: ``sparsegpt:0.5``, ``wanda:2:4``, ``admm:0.5+gptq:4:128``.
Timed is all of ``compress``: building the model, calibration, solving, packing; no imports. The
record, and those that peers wrote ``beside`` it in the same run, go into the output's table of
times.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from pathlib import Path

import numpy as np
import torch
from accuracy_cases import Row, peer_case

import edgesparse as es
from edgesparse.compression import compress


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


def machine(device: str) -> str:
    """Return what a run is on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} threads, {platform.machine()}"


def of_peer(path: Path, ours: dict[str, object]) -> dict[str, object]:
    """Return a peer's record as one like ours, of the same run."""
    told = json.loads(path.read_text())
    kept = ("case", "seconds", "cuda_peak_bytes", "host_peak_bytes")
    return {
        **ours, "tool": f"{told['peer']} {told['version']}", **{key: told[key] for key in kept},
    }  # fmt: skip


def add(path: Path, records: list[dict[str, object]]) -> None:
    """Put records into the file's table of times, each in the place of an older one."""
    data = json.loads(path.read_text()) if path.exists() else {"rows": []}
    key = ("tool", "case", "machine", "windows")
    times = {str([r[k] for k in key]): r for r in [*data.get("times", []), *records]}
    path.write_text(json.dumps({**data, "times": list(times.values())}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("windows")
    parser.add_argument("case")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--machine", help="what it ran on, in words")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="records of peers")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    captured = es.load(args.model)
    plan = row_of(args.case).plan(captured)
    windows = torch.from_numpy(np.load(args.windows).astype(np.int64))
    if args.device == "cuda":
        torch.zeros(1, device="cuda")
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    compress(captured, plan, windows, device=args.device)
    seconds = time.perf_counter() - started
    record = {
        "tool": "edgesparse",
        "case": args.case,
        "windows": list(windows.shape),
        "machine": args.machine or machine(args.device),
        "seconds": round(seconds, 2),
        "cuda_peak_bytes": torch.cuda.max_memory_allocated() if args.device == "cuda" else None,
        "host_peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    print(json.dumps(record), flush=True)
    if args.output is not None:
        add(args.output, [record, *(of_peer(path, record) for path in args.beside)])


if __name__ == "__main__":
    main()
