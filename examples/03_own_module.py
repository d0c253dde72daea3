"""Any nn.Module goes the same way; here a small convolutional network.

The factory below is also what the command line takes, from the folder it lies in:
    edgesparse compress 03_own_module:make -o out/cnn --sparsity 0.5 --bits 4
"""

import torch
from torch import nn

import edgesparse as es


def make() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return the module and one set of example inputs: the contract of ``module:factory``."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(512, 10),
    )  # fmt: skip
    return module.eval(), {"input": torch.randn(4, 3, 16, 16)}


if __name__ == "__main__":
    module, inputs = make()
    model = es.load(module, example_inputs=inputs)
    sparse = es.Rule(pattern=es.Pattern(sparsity=0.5), method="sparsegpt", bits=4, group_size=64)
    plan = es.plan(model, es.Recipe((sparse,)))
    images = [{"input": torch.randn(4, 3, 16, 16)} for _ in range(8)]
    small = es.compress(model, plan, calibration=images)
    print(f"{model.nbytes:,} bytes → {small.nbytes:,}, {small.bits_per_weight:.2f} bits per weight")
    found = es.evaluate(small, inputs=images)
    print(f"output error {found.output_error:.3f}, cosine {found.cosine:.4f}")
