"""Wire format: messages written by hand, and bytes that lie about themselves."""

import numpy as np
import pytest
from edgesparse_converters.coreml.wire import Message, WireError
from hypothesis import given
from hypothesis import strategies as st


def message(*parts: str) -> Message:
    return Message(memoryview(bytes.fromhex("".join(parts))))


def test_the_example_of_the_protocol_buffer_guide():
    # field 1 = 150: key 08, varint 96 01
    assert message("089601").integer(1) == 150


def test_text_and_nested_messages():
    # field 2 = "testing" inside field 3
    outer = message("1a09", "1207", b"testing".hex())
    assert outer.message(3).text(2) == "testing"
    assert 4 not in outer
    assert outer.text(4) == ""


def test_negative_integers_take_ten_bytes():
    assert message("08", "ff" * 9, "01").integer(1) == -1


def test_repeated_numbers_packed_or_not():
    # field 4 packed {3, 270}, then once more 5 on its own
    both = message("2203", "038e02", "2005")
    assert both.integers(4).tolist() == [3, 270, 5]
    floats = message("0a04", np.float32(1.5).tobytes().hex(), "0d", np.float32(-2).tobytes().hex())
    assert floats.numbers(1, np.float32).tolist() == [1.5, -2.0]


def test_maps():
    entry = "0a01" + b"k".hex() + "1202" + "0807"
    ((key, value),) = message("0a07", entry).entries(1)
    assert (key, value.integer(1)) == ("k", 7)


@pytest.mark.parametrize(
    "data",
    [
        "0a05aa",  # five bytes promised, one there
        "0a",  # a length that is missing
        "08",  # a varint that is missing
        "08" + "ff" * 11,  # a varint without an end
        "0b",  # groups do not exist any more
        "0000",  # field number 0
        "0dffff",  # four bytes promised, two there
        "0affffffffffffffff7f",  # 2^63 bytes
    ],
)
def test_bytes_that_are_no_message(data):
    with pytest.raises(WireError):
        message(data)


def test_a_field_of_another_kind():
    with pytest.raises(WireError, match="expected bytes"):
        message("0801").text(1)
    with pytest.raises(WireError, match="expected an integer"):
        message("0a01ff").integer(1)
    with pytest.raises(WireError, match="UTF-8"):
        message("0a01ff").text(1)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    try:
        found = Message(memoryview(data))
        list(found.messages(1)), found.integers(2), found.text(3)
    except WireError:
        pass
