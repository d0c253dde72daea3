"""A bitmask is read back some tiles at a time; where one block ends changes nothing."""

import numpy as np
import pytest

from edgesparse.errors import CorruptPack
from edgesparse.formats import bitmask
from edgesparse.packed import FORMATS, Codes, PackedTensor
from edgesparse.pattern import Pattern


def draw(bits: int, shape: tuple[int, int]) -> Codes:
    rng = np.random.default_rng(bits)
    mask = rng.random(shape) < 0.5
    if bits == 16:
        values = (rng.standard_normal(shape) * mask).astype(np.float16)
        scales = np.zeros((shape[0], 0), np.float16)
        return Codes(values=values, scales=scales, keep_mask=mask, bits=16, group_size=0)
    limit = 1 << (bits - 1)
    values = (rng.integers(-limit, limit, shape) * mask).astype(np.int8)
    scales = np.ones((shape[0], -(-shape[1] // 64)), np.float16)
    return Codes(values=values, scales=scales, keep_mask=mask, bits=bits, group_size=64)


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("block", [1, 3 * 16 * 256, 1 << 30])
def test_blocks_of_any_size_read_the_same_codes(monkeypatch, bits, block):
    monkeypatch.setattr(bitmask, "BLOCK", block)
    codes = draw(bits, (117, 200))
    packed = FORMATS.get(f"bitmask{bits}").pack(codes, pattern=Pattern(sparsity=0.5))
    read = packed.codes
    np.testing.assert_array_equal(read.values, codes.values)
    np.testing.assert_array_equal(read.keep_mask, codes.keep_mask)


@pytest.mark.parametrize("block", [1, 1 << 30])
def test_what_is_stored_behind_the_last_tile_is_found(monkeypatch, block):
    monkeypatch.setattr(bitmask, "BLOCK", block)
    packed = FORMATS.get("bitmask4").pack(draw(4, (40, 130)), pattern=Pattern(sparsity=0.5))
    stored = packed.buffers["codes"].copy()
    stored[-1] = 1
    damaged = PackedTensor(
        spec=packed.spec, shape=packed.shape, buffers={**packed.buffers, "codes": stored}
    )
    with pytest.raises(CorruptPack, match="belong to no code"):
        _ = damaged.codes
