"""What has a form of its own in the program is never decoded to floats on the way there."""

from __future__ import annotations

import pytest
import torch
from edgesparse_converters.executorch.assemble import build_module, build_reference
from edgesparse_converters.executorch.lowering import plan_uses
from torch import nn

FLOATS_NBYTES = 4 * (64 * 128 + 128 * 64)


class Net(nn.Module):
    """A table and a head tied to it behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up = nn.Embedding(64, 128), nn.Linear(128, 128, bias=False)
        self.head = nn.Linear(128, 64, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.up(self.table(ids)))
        return y


def storage_nbytes(module: nn.Module) -> int:
    # Not what torchao's tensor of codes stands for: it has no storage of its own.
    held = [t for t in (*module.parameters(), *module.buffers()) if type(t.data) is torch.Tensor]
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in held)}
    return sum(storages.values())


@pytest.mark.parametrize("lowering", ["auto", "packed"])
def test_the_exported_module_holds_no_float_copy(compress, lowering: str) -> None:
    torch.manual_seed(0)
    ids = torch.tensor([[1, 2, 63]])
    small = compress(Net(), {"ids": ids}, table__weight={"bits": 4, "sparsity": 0.5},
                     up__weight={"bits": 4})  # fmt: skip
    uses = plan_uses(small, small.captured.skeleton(), lowering)
    module = build_module(small, uses, activations="float32")
    assert storage_nbytes(module) < FLOATS_NBYTES / 2
    if lowering == "packed":
        assert storage_nbytes(module) >= small.nbytes
        twin = build_reference(small, uses, activations="float32")
        torch.testing.assert_close(module(ids), twin(ids), rtol=1e-5, atol=1e-5)


def test_what_stays_float_is_there(compress) -> None:
    small = compress(Net(), {"ids": torch.tensor([[1]])}, table__weight={"bits": 4},
                     up__weight={"bits": 4})  # fmt: skip
    uses = plan_uses(small, small.captured.skeleton(), "float32")
    module = build_module(small, uses, activations="float32")
    decoded = torch.from_numpy(small.packed["up.weight"].decode())
    assert torch.equal(module.get_parameter("up.weight"), decoded)
