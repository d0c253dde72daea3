"""The process that runs a program: path, method, folder with ``in*.npz``, number of calls."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from edgesparse_converters.executorch.loading import load_method


def main(arguments: list[str]) -> None:
    """Run the method once per input file and write ``out*.npz`` beside it."""
    path, method, folder, calls = arguments
    loaded = load_method(Path(path), method)
    for i in range(int(calls)):
        with np.load(Path(folder) / f"in{i}.npz", allow_pickle=False) as stored:
            inputs = [torch.from_numpy(stored[key]) for key in stored.files]
        outputs = loaded.execute(inputs)
        np.savez(Path(folder) / f"out{i}.npz", *[_array(value) for value in outputs])


def _array(value: object) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    return value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


if __name__ == "__main__":
    main(sys.argv[1:])
