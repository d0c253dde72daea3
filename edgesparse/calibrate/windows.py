"""Calibration data: text, tokens or ready inputs, cut into batches of keyword arguments."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesparse.errors import CalibrationError, SourceError
from edgesparse.model import CapturedModel
from edgesparse.store.arrays import read_arrays

Batch: TypeAlias = Mapping[str, Any]

DEFAULT_WINDOWS = 256
MIN_WINDOWS = 4


def calibration_batches(
    captured: CapturedModel,
    calibration: object,
    *,
    windows: int | None = None,
    window: int = 512,
    seed: int = 0,
    batch_size: int = 8,
) -> list[Batch]:
    """Return batches of the model's keyword arguments.

    Args:
        captured: The model, for its tokenizer and the names of its inputs.
        calibration: A text file for the model's own tokenizer; an ``.npz`` file of arrays named
            as the model's arguments, examples along the first axis; a one-dimensional array or
            tensor of token ids; a two-dimensional one of ready windows; or an iterable of batches
            (mappings, or single tensors for a model of one input).
        windows: Windows of tokens; None takes as many as the text holds, at most 256.
        window: Tokens in a window.
        seed: Which windows of a longer text.
        batch_size: Windows run at once; a model exported with fixed shapes decides itself.

    Raises:
        CalibrationError: Nothing usable, too few tokens, or an argument the model does not have.
    """
    if isinstance(calibration, (str, Path)):
        path = Path(calibration)
        if not path.is_file():
            raise CalibrationError(f"calibration {path}: no such file")
        if path.suffix == ".npz":
            return _batches_of_arrays(captured, _arrays(path), batch_size)
        calibration = read_tokens(captured, path)
    if isinstance(calibration, (np.ndarray, Tensor)):
        tokens = torch.as_tensor(calibration)
        if not tokens.is_floating_point() and tokens.dim() in (1, 2):
            if tokens.dim() == 1:
                tokens = token_windows(tokens, windows=windows, window=window, seed=seed)
            return _batches_of_tokens(captured, tokens.long(), batch_size)
        return _batches_of_arrays(captured, {_only_input(captured): tokens}, batch_size)
    if isinstance(calibration, Mapping):
        return _batches_of_arrays(captured, dict(calibration), batch_size)
    if isinstance(calibration, Iterable):
        return _batches_given(captured, calibration)
    raise CalibrationError(
        f"calibration is {type(calibration).__name__}; expected a path, tokens, or batches"
    )


def read_tokens(captured: CapturedModel, path: Path) -> Tensor:
    """Return the token ids of a text file, int64 [tokens], by the model's own tokenizer.

    Raises:
        SourceError: No text, or the model came without a usable tokenizer.
        MissingDependency: ``tokenizers`` is not installed.
    """
    from edgesparse.runtime.text import read_text, token_ids, tokenizer

    ids = token_ids(tokenizer(captured), read_text(path))
    return torch.tensor(ids, dtype=torch.int64)


def token_windows(tokens: Tensor, *, windows: int | None, window: int, seed: int) -> Tensor:
    """Return ``windows`` windows of the text that do not overlap, int64 [windows, window].

    The text is cut every ``window`` tokens; when there are more cuts than asked for, a seeded
    random choice of them in their order.

    Raises:
        CalibrationError: Too few tokens.
    """
    available = len(tokens) // window
    needed = MIN_WINDOWS if windows is None else windows
    if available < max(needed, 1):
        raise CalibrationError(
            f"calibration text has {len(tokens)} tokens, but {max(needed, 1)} windows of {window} "
            f"need {max(needed, 1) * window}; give more text, or fewer or shorter windows"
        )
    chosen = min(available, DEFAULT_WINDOWS) if windows is None else windows
    order = np.sort(np.random.default_rng(seed).permutation(available)[:chosen])
    return tokens[: available * window].reshape(available, window)[torch.from_numpy(order)]


def digest(batches: Iterable[Batch]) -> str:
    """Return a SHA-256 over the values of all batches: which calibration a model saw."""
    sha = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            value = batch[name]
            data = value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
            sha.update(f"{name}{data.dtype}{data.shape}".encode())
            sha.update(np.ascontiguousarray(data).tobytes())
    return sha.hexdigest()


def _batches_of_tokens(captured: CapturedModel, windows: Tensor, batch_size: int) -> list[Batch]:
    """Cut token windows into batches under the name of the model's integer input."""
    vocabulary = captured.config.get("vocab_size")
    if isinstance(vocabulary, int) and (windows.min() < 0 or windows.max() >= vocabulary):
        raise CalibrationError(
            f"calibration tokens lie in {int(windows.min())}..{int(windows.max())}, but the "
            f"model's vocabulary is 0..{vocabulary - 1}; were they made with another tokenizer?"
        )
    integer = [
        name
        for name, value in captured.example_inputs.items()
        if isinstance(value, Tensor) and not value.is_floating_point() and value.dim() == 2
    ]
    name = "input_ids" if "input_ids" in integer or not integer else integer[0]
    return _batches_of_arrays(captured, {name: windows}, batch_size)


def _batches_of_arrays(
    captured: CapturedModel, arrays: Mapping[str, Any], batch_size: int
) -> list[Batch]:
    """Cut arrays with examples along the first axis into batches."""
    tensors = {name: torch.as_tensor(array) for name, array in arrays.items()}
    unknown = sorted(set(tensors) - set(captured.example_inputs)) if captured.example_inputs else []
    if unknown:
        raise CalibrationError(
            f"calibration has an input {unknown[0]!r}, but {captured.name} takes "
            f"{', '.join(sorted(captured.example_inputs))}"
        )
    lengths = {len(tensor) for tensor in tensors.values() if tensor.dim()}
    if len(lengths) != 1 or not min(lengths):
        raise CalibrationError(
            f"calibration arrays have {sorted(lengths)} examples; expected the same number, not 0"
        )
    size = _fixed_batch(captured, tensors) or batch_size
    total = lengths.pop()
    stop = total - total % size if _fixed_batch(captured, tensors) else total
    if not stop:
        raise CalibrationError(
            f"calibration has {total} examples, but {captured.name} was exported for batches of "
            f"{size}"
        )
    return [{n: t[i : i + size] for n, t in tensors.items()} for i in range(0, stop, size)]


def _fixed_batch(captured: CapturedModel, tensors: Mapping[str, Tensor]) -> int | None:
    """Return the batch size an exported program insists on, None for live modules."""
    if captured.source.kind != "exported_program":
        return None
    example = captured.example_inputs.get(next(iter(tensors)))
    return len(example) if isinstance(example, Tensor) and example.dim() else None


def _batches_given(captured: CapturedModel, batches: Iterable[object]) -> list[Batch]:
    """Name the inputs of batches that a caller made himself."""
    result: list[Batch] = []
    for batch in batches:
        if isinstance(batch, Mapping):
            result.append({str(name): value for name, value in batch.items()})
        elif isinstance(batch, (Tensor, np.ndarray)):
            result.append({_only_input(captured): torch.as_tensor(batch)})
        else:
            raise CalibrationError(
                f"a calibration batch is {type(batch).__name__}; expected a mapping of the "
                "model's arguments, or one tensor"
            )
    if not result:
        raise CalibrationError("calibration holds no batches")
    return result


def _only_input(captured: CapturedModel) -> str:
    """Return the name of the model's only tensor input."""
    names = [name for name, v in captured.example_inputs.items() if isinstance(v, Tensor)]
    if len(names) != 1:
        raise CalibrationError(
            f"{captured.name} takes {', '.join(names) or 'no tensors'}; give calibration batches "
            "as mappings of these names"
        )
    return names[0]


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of an .npz file.

    Raises:
        CalibrationError: Not an .npz file of plain arrays.
    """
    try:
        return read_arrays(path)
    except SourceError as error:
        raise CalibrationError(f"calibration {error}") from None
