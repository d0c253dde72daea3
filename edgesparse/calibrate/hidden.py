"""The hidden tensors between the blocks of a chain, and how the first of them are found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgesparse.calibrate.activations import Activations
from edgesparse.calibrate.record import Chain, call_model
from edgesparse.calibrate.residence import Residence
from edgesparse.calibrate.watch import Stop, outside, stopping, stubbed
from edgesparse.calibrate.windows import Batch


@dataclass
class Hidden:
    """The hidden tensor of every batch between two blocks, and every block's other arguments.

    Attributes:
        chain: The blocks.
        now: Hidden tensors after the blocks solved so far, compressed.
        dense: The same in the uncompressed model; None unless a method needs it.
        calls: For every batch, block → (args, kwargs) as the model passed them.
    """

    chain: Chain
    now: Activations
    dense: Activations | None
    calls: list[dict[str, tuple[tuple[Any, ...], dict[str, Any]]]]

    def __len__(self) -> int:
        return len(self.now)

    def arguments(
        self, block: str, batch: int, *, dense: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of ``block`` with the current hidden tensor in its place."""
        args, kwargs = self.calls[batch][block]
        value = self.dense[batch] if dense and self.dense is not None else self.now[batch]
        if isinstance(self.chain.hidden, int):
            return _replaced(args, self.chain.hidden, value), kwargs
        return args, {**kwargs, self.chain.hidden: value}


def first_hidden(
    model: nn.Module,
    batches: Sequence[Batch],
    chain: Chain,
    device: torch.device,
    *,
    residence: Residence,
    activations: Callable[[], Activations] = Activations,
) -> Hidden:
    """Run every batch up to the last block with stubs for blocks, and keep what they were given."""
    hidden = Hidden(chain=chain, now=activations(), dense=None, calls=[])
    place, last = chain.hidden, chain.blocks[-1]

    def stub(block: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            value = args[place] if isinstance(place, int) else kwargs[place]
            if block == chain.blocks[0]:
                hidden.now.append(value)
            hidden.calls[-1][block] = _without(args, kwargs, place)
            if block == last:
                raise Stop
            return output_of(chain, value)

        return forward

    stubs = {block: stub(block) for block in chain.blocks}
    with outside(model, chain, device, residence), stubbed(model, stubs):
        for batch in batches:
            hidden.calls.append({})
            with stopping():
                call_model(model, batch, device)
    return hidden


def output_of(chain: Chain, hidden: Tensor) -> Any:
    """Return ``hidden`` in the form a block returns it."""
    return (hidden, *[None] * (chain.tuple_length - 1)) if chain.tuple_length else hidden


def _replaced(args: tuple[Any, ...], place: int, value: Any) -> tuple[Any, ...]:
    """Return ``args`` with one of them replaced."""
    return (*args[:place], value, *args[place + 1 :])


def _without(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: int | str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments without the hidden tensor, which would be kept alive for nothing."""
    if isinstance(place, int):
        return _replaced(args, place, None), kwargs
    return args, {name: value for name, value in kwargs.items() if name != place}
