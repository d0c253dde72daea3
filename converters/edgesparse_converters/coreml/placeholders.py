"""Weights that take no memory while a program is converted, and their numbers put in afterwards.

coremltools holds every constant of a program at one byte an element or more, several times over.
So it is given hollow arrays: the right shape and type, and for a mask the right number of ones, all
read from a few bytes by strides. It lays the weight file out, record by record; then ``fill`` goes
through the weights one at a time and writes their numbers over the zeros. The file is the one
coremltools would have written, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from edgesparse.model import CompressedModel
from edgesparse.packed import FORMATS, Codes, matrix_shape
from edgesparse_converters.coreml import blob
from edgesparse_converters.coreml.forms import Form
from edgesparse_converters.coreml.package import Package
from edgesparse_converters.coreml.readback import stored_blobs

Numbers = Callable[[str], Codes]
"""Gives the codes of a weight by name, new memory every time."""


def numbers_of(compressed: CompressedModel) -> Numbers:
    """Return a way to each packed weight's codes that keeps none of them."""

    def codes(name: str) -> Codes:
        packed = compressed.packed[name]
        return FORMATS.get(packed.spec.name).unpack(packed)

    return codes


SMALL = 1024
"""Weights that keep fewer codes stay whole: so short a constant may stand in the program itself."""


def hollow(form: Form) -> Form:
    """Return the form with a mask and codes that take no memory.

    Values of 16 bits stay, which coremltools still has to narrow, and so do small weights and forms
    of old systems, whose masks and indices it counts.
    """
    if form.bits == 16 or form.old or form.kept.size < SMALL:
        return form
    mask = form.mask
    if mask is not None:
        mask = hollow_mask(mask.shape, int(np.count_nonzero(mask)))
    zeros = np.broadcast_to(np.zeros(1, form.kept.dtype), form.kept.shape)
    return replace(form, mask=mask, kept=zeros)


def is_hollow(form: Form) -> bool:
    """Whether the codes of a form are a placeholder."""
    return form.kept.size >= SMALL and not any(form.kept.strides)


def hollow_mask(shape: tuple[int, ...], count: int) -> NDArray[np.bool_]:
    """Return a mask of ``shape`` with ``count`` ones that reads N + K bytes over and over.

    Element (r, c) of the matrix [N, K] is byte r + c. Byte i is so read min(i + 1, N, K, N + K - 1
    - i) times; taken from the most read to the least, every count can be made of these numbers.

    Example:
        >>> int(hollow_mask((3, 4), 7).sum())
        7
    """
    rows, columns = matrix_shape(shape)
    size = max(rows + columns - 1, 1)
    near = np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1))
    read = np.minimum(near, min(rows, columns))
    line = np.zeros(size, np.bool_)
    left = count
    for index in np.argsort(-read, kind="stable"):
        if left and read[index] <= left:
            line[index] = True
            left -= int(read[index])
    assert left == 0, (shape, count)
    within = [int(np.prod(shape[axis + 1 :])) for axis in range(1, len(shape))]
    return as_strided(line, shape, (1, *within), writeable=False)


def fill(path: Path, forms: Mapping[str, Callable[[], Form]]) -> None:
    """Write the numbers of weights over the zeros of a package's weight file, one at a time.

    Args:
        path: The package.
        forms: A way to the whole form of each weight, by the name of its value in the program.
    """
    package = Package(path)
    for name, whole in forms.items():
        form = whole()
        if not is_hollow(hollow(form)):
            continue
        arrays = {"mask": form.mask, "data": form.kept}
        for key, value in stored_blobs(package, name).items():
            array = arrays[key]
            assert array is not None, f"{name}: a {key} that the weight does not have"
            file = package.blob_file(value)
            record = file.record(value.offset)
            data = blob.pack(array.reshape(-1), value.type.dtype)
            assert len(data) == record.nbytes, f"{name}: {len(data)} bytes for {record.nbytes}"
            with file.path.open("r+b") as opened:
                opened.seek(record.start)
                opened.write(data)
