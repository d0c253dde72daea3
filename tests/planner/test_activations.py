"""Live bytes of a forward pass, counted on shapes."""

import torch
from torch import nn

import edgesparse
from edgesparse.planner.activations import peak_activation_nbytes


def peak(module, **inputs):
    return peak_activation_nbytes(edgesparse.load(module.eval(), example_inputs=inputs))


def test_a_chain_holds_two_results_at_a_time():
    # 1000 → 500 → 10 floats: 500 alone, then 500 and 10, then 10.
    chain = nn.Sequential(nn.Linear(1000, 500), nn.Linear(500, 10))
    assert peak(chain, input=torch.zeros(1, 1000)) == 4 * (500 + 10)


def test_a_residual_is_kept_alive():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.up, self.down = (
                nn.Linear(8, 100), nn.Linear(100, 400), nn.Linear(400, 100)
            )  # fmt: skip

        def forward(self, x):
            x = self.first(x)
            return x + self.down(self.up(x))

    assert peak(Residual(), x=torch.zeros(1, 8)) == 4 * (100 + 400 + 100)


def test_views_are_not_counted_twice():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 64)

        def forward(self, x):
            return self.linear(x).reshape(2, 32).T[:3].unsqueeze(0)

    assert peak(Views(), x=torch.zeros(1, 8)) == 4 * 64


def test_control_flow_on_values_cannot_be_traced():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return self.linear(x) if x.sum() > 0 else x

    assert peak(Branch(), x=torch.zeros(1, 8)) is None
