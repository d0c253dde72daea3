"""The tensors of a Hugging Face model directory, by the names the module gives them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import nn

from edgesparse.capture.architecture import Architecture, offline
from edgesparse.capture.checkpoint import Checkpoint
from edgesparse.capture.conform import Conformed
from edgesparse.capture.describe import describe
from edgesparse.errors import SourceError
from edgesparse.model import TensorInfo

_logger = logging.getLogger(__name__)


class DirectoryWeights(Mapping[str, torch.Tensor]):
    """The tensors of a model directory by the names the module gives them.

    Where the files use other names for the same tensors (an older layout, experts one by one), the
    conversion of transformers is asked, and then the weights are in memory, not mapped.
    """

    def __init__(
        self,
        architecture: Architecture,
        checkpoint: Checkpoint,
        bare: nn.Module,
        conformed: Conformed,
    ) -> None:
        self._architecture = architecture
        self._checkpoint = checkpoint
        self._conformed = conformed
        self._tensors = {tensor.name: tensor for tensor in describe(bare)}
        prefix = getattr(bare, "base_model_prefix", "")
        self._stored = {
            name: stored
            for name, tensor in self._tensors.items()
            if (stored := _stored_name(tensor, conformed, checkpoint, prefix)) is not None
        }
        self._initial = {
            name: torch.zeros(tensor.shape, dtype=torch.int64)
            for name, tensor in self._tensors.items()
            if name not in self._stored and tensor.dtype == "int64"
        }
        self._check()

    @cached_property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Stored type of every tensor; of converted ones the most common in the files."""
        stored = {name: self._checkpoint.dtype(key) for name, key in self._stored.items()}
        if self.is_converted:
            all_types = [self._checkpoint.dtype(key) for key in self._checkpoint]
            common = max(sorted(set(all_types), key=str), key=all_types.count)
            for name in self._tensors:
                stored.setdefault(
                    name, self._initial[name].dtype if name in self._initial else common
                )
        return stored

    @property
    def is_converted(self) -> bool:
        """Whether the tensors come from transformers' conversion, in memory, and not mapped."""
        return len(self._stored) + len(self._initial) < len(self._tensors)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._initial:
            return self._initial[name].clone()
        if name not in self._stored:
            original = self._converted[self._conformed.original(name)]
            part = self._conformed.take(name, original)
            return part.to(self.dtypes[name], copy=True, memory_format=torch.contiguous_format)
        return self._conformed.take(name, self._checkpoint[self._stored[name]]).contiguous()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @cached_property
    def _converted(self) -> Mapping[str, torch.Tensor]:
        """All tensors as transformers converts them from the names in the files."""
        cls = self._architecture.cls
        dtypes = list(self.dtypes.values())
        try:
            with offline(), _no_progress_bar():
                model, report = cls.from_pretrained(
                    None,
                    config=self._architecture.new_config(),
                    state_dict=dict(self._checkpoint),
                    dtype=max(dtypes, key=dtypes.count),
                    output_loading_info=True,
                )
        except Exception as error:  # transformers reports damage with many exception types
            raise SourceError(
                f"{self._checkpoint.directory}: the weights do not fit config.json: {error}"
            ) from error
        if report["missing_keys"] or report["mismatched_keys"]:
            raise SourceError(self._mismatch(sorted(report["missing_keys"])))
        state: Mapping[str, torch.Tensor] = model.state_dict()
        return state

    def warn_of_unexpected(self) -> None:
        """Say which stored tensors the architecture has no place for."""
        unexpected = [] if self.is_converted else self._unexpected()
        if unexpected:
            _logger.warning(
                "%s: %d stored tensors are not part of %s and are left out, first %s",
                self._checkpoint.directory, len(unexpected), self._architecture.cls.__name__,
                unexpected[0],
            )  # fmt: skip

    def _unexpected(self) -> list[str]:
        used = {key for tensor in self._tensors.values() for key in self._names_of(tensor)}
        known = getattr(self._architecture.cls, "_keys_to_ignore_on_load_unexpected", None) or ()
        ignorable = [re.compile(pattern) for pattern in known]
        left = sorted(set(self._checkpoint) - used)
        return [name for name in left if not any(p.search(name) for p in ignorable)]

    def _check(self) -> None:
        """Hold names and shapes against the files' headers."""
        if self.is_converted and not self._unexpected():
            known = set(self._stored) | set(self._initial)
            raise SourceError(self._mismatch([name for name in self._tensors if name not in known]))
        for name, stored in self._stored.items():
            shape, needed = self._checkpoint.shape(stored), self._tensors[name].shape
            if self._conformed.shape(name, shape) != needed:
                raise SourceError(
                    f"{name}: stored with shape {shape}, the configuration needs {needed}; weights "
                    "and config.json do not belong together"
                )

    def _names_of(self, tensor: TensorInfo) -> list[str]:
        stored = self._stored.get(tensor.name)
        return [*tensor.aliases, tensor.name] + ([stored] if stored else [])

    def _mismatch(self, missing: list[str]) -> str:
        return (
            f"{self._checkpoint.directory}: {len(missing)} tensors are missing from the weights, "
            f"first {missing[0] if missing else '(shapes differ)'}; weights and config.json do not "
            "belong together"
        )


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Let transformers load without drawing on stderr, which belongs to the caller."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _stored_name(
    tensor: TensorInfo, conformed: Conformed, checkpoint: Checkpoint, prefix: str
) -> str | None:
    """Return the name a tensor has in the files: its own, an alias, or without the base prefix."""
    for name in map(conformed.original, (tensor.name, *tensor.aliases)):
        for candidate in (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"):
            if candidate in checkpoint:
                return candidate
    return None
