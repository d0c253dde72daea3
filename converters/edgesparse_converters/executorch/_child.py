"""The process that runs a program, a folder with its inputs given; results are written beside them.

_child run PATH METHOD FOLDER CALLS        in{i}.npz -> out{i}.npz
_child generate PATH FOLDER TOKENS         prompt.npy -> tokens.npy, logits.npy
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgesparse_converters.executorch.loading import load_program


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
    width = prefill.metadata.input_tensor_meta(0).sizes()[1]
    for begin in range(0, len(prompt), width):
        part = prompt[begin : begin + width]
        padded = torch.from_numpy(np.pad(part, (0, width - len(part))))[None]
        rows = prefill.execute([padded, torch.tensor([begin])])[0]
        last = rows[0, len(part) - 1].clone()
    made, logits = [int(last.argmax())], [last.numpy()]
    for position in range(len(prompt), len(prompt) + int(tokens) - 1):
        row = forward.execute([torch.tensor([[made[-1]]]), torch.tensor([position])])[0]
        logits.append(row[0, 0].clone().numpy())
        made.append(int(row[0, 0].argmax()))
    np.save(Path(folder) / "tokens.npy", np.array(made))
    np.save(Path(folder) / "logits.npy", np.stack(logits))


def _array(value: object) -> NDArray[Any]:
    return value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


if __name__ == "__main__":
    arguments = sys.argv[2:]
    if sys.argv[1] == "run":
        run(*arguments)
    else:
        generate(*arguments)
