"""Calibration data in every form a caller may bring it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgesparse as es
from edgesparse.calibrate import calibration_batches, token_windows
from edgesparse.calibrate.windows import digest
from edgesparse.errors import CalibrationError, EdgesparseError
from edgesparse.model import CapturedModel


@pytest.fixture(scope="module")
def vision() -> CapturedModel:
    return es.load(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), example_inputs=torch.zeros(1, 3, 8, 8)
    )


@pytest.fixture(scope="module")
def words() -> CapturedModel:
    return es.load(
        nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50)),
        example_inputs=torch.zeros(1, 4, dtype=torch.int64),
    )


def test_windows_do_not_overlap_and_keep_their_order() -> None:
    found = token_windows(torch.arange(1000), windows=10, window=32, seed=3)
    assert found.shape == (10, 32)
    assert (found[1:, 0] > found[:-1, -1]).all()
    assert (found[:, 0] % 32 == 0).all()


def test_the_seed_decides_which_windows() -> None:
    def chosen(seed: int) -> list[list[int]]:
        return token_windows(torch.arange(1000), windows=5, window=10, seed=seed).tolist()

    assert chosen(1) == chosen(1) != chosen(2)


def test_too_little_text_says_how_much_there_is_and_how_much_is_needed() -> None:
    with pytest.raises(CalibrationError, match="has 100 tokens, but 8 windows of 32 need 256"):
        token_windows(torch.arange(100), windows=8, window=32, seed=0)


def test_without_a_number_as_many_windows_as_there_are_up_to_256() -> None:
    assert len(token_windows(torch.arange(700), windows=None, window=100, seed=0)) == 7
    assert len(token_windows(torch.arange(3000), windows=None, window=10, seed=0)) == 256


def test_tokens_become_batches_under_the_models_own_name(words: CapturedModel) -> None:
    batches = calibration_batches(words, np.arange(40) % 50, windows=4, window=10, batch_size=3)
    assert [len(next(iter(b.values()))) for b in batches] == [3, 1]
    assert set(batches[0]) == set(words.example_inputs)


def test_tokens_beyond_the_vocabulary_are_refused(words: CapturedModel) -> None:
    small = replace(words, config={"vocab_size": 20})
    with pytest.raises(CalibrationError, match=r"lie in 0\.\.39, but .* 0\.\.19"):
        calibration_batches(small, np.arange(40), windows=4, window=10)


def test_an_npz_holds_inputs_by_name(vision: CapturedModel, tmp_path: Path) -> None:
    name = next(iter(vision.example_inputs))
    np.savez(tmp_path / "in.npz", **{name: np.zeros((10, 3, 8, 8), np.float32)})
    batches = calibration_batches(vision, tmp_path / "in.npz", batch_size=4)
    assert [len(batch[name]) for batch in batches] == [4, 4, 2]


def test_an_unknown_input_is_named(vision: CapturedModel) -> None:
    with pytest.raises(CalibrationError, match="has an input 'pixels'"):
        calibration_batches(vision, {"pixels": np.zeros((2, 3, 8, 8))})


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ("no/such/file.txt", "no such file"),
        (object(), "expected a path, tokens, or batches"),
        ([], "holds no batches"),
        ([3], "a calibration batch is int"),
    ],
)
def test_what_cannot_be_used_is_refused(
    vision: CapturedModel, calibration: object, message: str
) -> None:
    with pytest.raises(CalibrationError, match=message):
        calibration_batches(vision, calibration)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x80\x04pickle"])
def test_a_damaged_npz_is_one_clear_error(
    vision: CapturedModel, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"no \.npz of plain arrays"):
        calibration_batches(vision, tmp_path / "bad.npz")


def test_text_without_a_tokenizer_says_what_to_give_instead(
    words: CapturedModel, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("Some words.")
    with pytest.raises(EdgesparseError, match="has no tokenizer"):
        calibration_batches(words, tmp_path / "text.txt")


def test_the_digest_tells_data_apart() -> None:
    one = [{"x": torch.arange(4)}]
    assert digest(one) == digest([{"x": torch.arange(4)}])
    assert digest(one) != digest([{"x": torch.arange(4).reshape(2, 2)}])
    assert digest(one) != digest([{"y": torch.arange(4)}])
