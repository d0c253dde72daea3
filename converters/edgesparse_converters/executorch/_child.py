"""The process that runs a program, a folder with its inputs given; results are written beside them.

``run PATH METHOD FOLDER CALLS``      in{i}.npz -> out{i}.npz
``generate PATH FOLDER TOKENS``       prompt.npy -> tokens.npy, logits.npy
``score PATH FOLDER``                 windows.npz -> losses.npy
``profile PATH METHOD FOLDER RUNS``   in0.npz -> events.etdp
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgesparse_converters.executorch.loading import load_program

if TYPE_CHECKING:
    from executorch.runtime import Method


def run(path: str, method: str, folder: str, calls: str) -> None:
    """Run the method once per input file."""
    loaded = load_program(Path(path)).load_method(method)
    for i in range(int(calls)):
        with np.load(Path(folder) / f"in{i}.npz", allow_pickle=False) as stored:
            inputs = [torch.from_numpy(stored[key]) for key in stored.files]
        outputs = loaded.execute(inputs)
        np.savez(Path(folder) / f"out{i}.npz", *[_array(value) for value in outputs])


def generate(path: str, folder: str, tokens: str) -> None:
    """Continue a prompt greedily with the methods ``prefill`` and ``forward``."""
    program = load_program(Path(path))
    prefill, forward = program.load_method("prefill"), program.load_method("forward")
    prompt = np.load(Path(folder) / "prompt.npy", allow_pickle=False)
    last = _read(prefill, prompt)[-1]
    made, logits = [int(last.argmax())], [last.numpy()]
    for position in range(len(prompt), len(prompt) + int(tokens) - 1):
        row = forward.execute([torch.tensor([[made[-1]]]), torch.tensor([position])])[0]
        logits.append(row[0, 0].clone().numpy())
        made.append(int(row[0, 0].argmax()))
    np.save(Path(folder) / "tokens.npy", np.array(made))
    np.save(Path(folder) / "logits.npy", np.stack(logits))


def score(path: str, folder: str) -> None:
    """Write the negative log-likelihood of every predicted token."""
    prefill = load_program(Path(path)).load_method("prefill")
    losses = []
    with np.load(Path(folder) / "windows.npz", allow_pickle=False) as stored:
        for key in stored.files:
            rows = _read(prefill, stored[key])[:-1]
            target = torch.from_numpy(stored[key][1:])
            losses.append(torch.nn.functional.cross_entropy(rows, target, reduction="none"))
    np.save(Path(folder) / "losses.npy", torch.cat(losses).numpy())


def profile(path: str, method: str, folder: str, runs: str) -> None:
    """Run the method and write the runtime's events."""
    program = load_program(Path(path), trace=True)
    loaded = program.load_method(method)
    with np.load(Path(folder) / "in0.npz", allow_pickle=False) as stored:
        inputs = [torch.from_numpy(stored[key]) for key in stored.files]
    for _ in range(int(runs)):
        loaded.execute(inputs)
    events, buffers = (str(Path(folder) / name) for name in ("events.etdp", "buffers.bin"))
    program.write_etdump_result_to_file(events, buffers)


def _read(prefill: Method, tokens: NDArray[np.int64]) -> torch.Tensor:
    """Return the logits ``[T, V]`` of tokens read from position 0, a part at a time."""
    width = prefill.metadata.input_tensor_meta(0).sizes()[1]
    rows = []
    for begin in range(0, len(tokens), width):
        part = tokens[begin : begin + width]
        padded = torch.from_numpy(np.pad(part, (0, width - len(part))))[None]
        logits = prefill.execute([padded, torch.tensor([begin])])[0]
        rows.append(logits[0, : len(part)].clone())
    return torch.cat(rows)


def _array(value: object) -> NDArray[Any]:
    return value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


if __name__ == "__main__":
    arguments = sys.argv[2:]
    if sys.argv[1] == "run":
        run(*arguments)
    elif sys.argv[1] == "profile":
        profile(*arguments)
    elif sys.argv[1] == "generate":
        generate(*arguments)
    else:
        score(*arguments)
