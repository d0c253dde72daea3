"""One step of a measurement of scaling: compress a random Llama on all processes of a team.

    torchrun --nproc-per-node 1 bench/several_gpus.py --folder /some/disk
    torchrun --nproc-per-node 2 bench/several_gpus.py --folder /some/disk

The model (1.07 billion parameters without options) is made by ``larger_than_memory.py``'s code in
``--folder`` when it is not there; random tokens calibrate it. The leader prints seconds, the most
GPU memory, the mean error over all tensors and, to compare the runs, the SHA-256 of the packed
bytes. Loading the libraries and making the model are not counted. With ``--recover STEPS`` the
result is then trained together on random tokens, one window in each process at a time: seconds of a
step after the first five, and the most GPU memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from pathlib import Path
from statistics import fmean

import torch
from larger_than_memory import make_model

import edgesparse as es
from edgesparse.calibrate.team import Team, joined
from edgesparse.compression import Progress, compress
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.recovery import RecoveryProgress


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--method", default="sparsegpt")
    parser.add_argument("--quantizer", default="gptq")
    parser.add_argument("--windows", type=int, default=256)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--inner", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--pattern", default="unstructured", help="2:4 shares out rows too")
    parser.add_argument("--recover", type=int, default=0, metavar="STEPS")
    return parser.parse_args(arguments)


def run(
    captured: CapturedModel, options: argparse.Namespace, team: Team, device: str
) -> tuple[CompressedModel, str]:
    """Compress; return the model and the leader's line of JSON."""
    rule = es.Rule(
        kind=es.model.TensorKind.LINEAR, bits=4, group_size=128,
        pattern=es.Pattern.parse(options.pattern, sparsity=0.5),
        method=options.method, quantizer=options.quantizer,
    )  # fmt: skip
    plan = es.plan(captured, es.Recipe((rule,)))
    shape = (options.windows, options.window)
    tokens = torch.randint(0, options.vocabulary, shape, generator=torch.Generator().manual_seed(0))
    journal = options.folder / f"{options.method}-{team.size}.journal"
    started = time.monotonic()

    def say(progress: Progress) -> None:
        if team.leads and progress.name.endswith("down_proj.weight"):
            sys.stderr.write(f"{progress.seconds:7.1f} s {progress.name}\n")

    small = compress(
        captured, plan, tokens, device=device, window=options.window, journal=journal, team=team,
        progress=say,
    )  # fmt: skip
    seconds = time.monotonic() - started
    memory = torch.cuda.max_memory_allocated() if device.startswith("cuda") else 0
    line = json.dumps(
        {
            "method": options.method, "processes": team.size, "seconds": round(seconds, 1),
            "gpu_memory_nbytes": memory, "tokens": tokens.numel(),
            "mean_error": fmean(small.errors.values()), "packed_sha256": digest(small)[:16],
        }
    )  # fmt: skip
    return small, line


def recover(small: CompressedModel, options: argparse.Namespace, team: Team, device: str) -> str:
    """Train what came out, all processes together; return the leader's line of JSON."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    tokens = torch.randint(0, options.vocabulary, (1 << 20,))
    ends: list[float] = []

    def step(progress: RecoveryProgress) -> None:
        ends.append(progress.seconds)

    es.recover(
        small, data=tokens, steps=options.recover, batch=1, window=options.window, device=device,
        team=team, progress=step,
    )  # fmt: skip
    memory = torch.cuda.max_memory_allocated() if device.startswith("cuda") else 0
    warm = ends[5:]
    each = (warm[-1] - warm[0]) / max(1, len(warm) - 1) if warm else 0.0
    return json.dumps(
        {"recovery_steps": options.recover, "processes": team.size,
         "seconds_a_step": round(each, 3), "gpu_memory_nbytes": memory}
    )  # fmt: skip


def digest(small: CompressedModel) -> str:
    sha = hashlib.sha256()
    for name, packed in small.packed.items():
        sha.update(name.encode())
        for buffer in packed.buffers.values():
            sha.update(buffer.data)
    return sha.hexdigest()


def main() -> None:
    options = options_of()
    with joined(options.device) as (team, device):
        model = options.folder / "model"
        if team.leads and not model.exists():
            aside = options.folder / "model.partial"
            shutil.rmtree(aside, ignore_errors=True)
            make_model(aside, options)
            aside.rename(model)
        team.agree(None)
        small, line = run(es.load(model), options, team, device)
        if team.leads:
            sys.stdout.write(line + "\n")
        if options.recover:
            line = recover(small, options, team, device)
            if team.leads:
                sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
