from __future__ import annotations

import torch
from edgesparse_converters.executorch.arithmetic import DynamicLinear, quantize_rows


def test_a_row_by_hand() -> None:
    """[-1, 0, 0.25, 4]: s = 255 / 5 = 51, z = -77, codes -128, -77, -64, 127."""
    q, inverse = quantize_rows(torch.tensor([[-1.0, 0.0, 0.25, 4.0]]))
    assert q.tolist() == [[-51.0, 0.0, 13.0, 204.0]]
    assert torch.equal(inverse, torch.tensor([[1 / 51.0]]))


def test_rows_are_quantized_on_their_own() -> None:
    x = torch.randn(5, 64)
    alone = torch.cat([quantize_rows(row[None])[0] for row in x])
    assert torch.equal(quantize_rows(x)[0], alone)


def test_a_row_of_zeros_stays_zero() -> None:
    assert torch.equal(DynamicLinear(torch.ones(3, 4), None)(torch.zeros(2, 4)), torch.zeros(2, 3))


def test_zero_is_always_a_code() -> None:
    for low, high in ((1.0, 2.0), (-3.0, -0.5), (-1.0, 1.0)):
        x = torch.linspace(low, high, 33)[None]
        x[0, 7] = 0
        assert quantize_rows(x)[0][0, 7] == 0


def test_the_error_is_half_a_step_at_most() -> None:
    x = torch.randn(100, 256) * torch.logspace(-3, 3, 100)[:, None]
    q, inverse = quantize_rows(x)
    assert ((q * inverse - x).abs() <= 0.501 * inverse).all()


def test_no_columns_and_no_rows() -> None:
    assert DynamicLinear(torch.zeros(3, 0), None)(torch.zeros(2, 0)).tolist() == [[0.0] * 3] * 2
    assert DynamicLinear(torch.zeros(3, 4), None)(torch.zeros(0, 4)).shape == (0, 3)
