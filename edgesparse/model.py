"""A model as captured, and as compressed: the two values the pipeline passes on.

Neither is ever changed in place: each step builds a module of its own from the source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesparse.packed import PackedTensor, matrix_shape

if TYPE_CHECKING:
    import torch

    from edgesparse.planner import Plan


class TensorKind(StrEnum):
    """What a tensor is for, found from the modules and the graph that use it.

    ``EXPERT`` is a linear layer that only the tokens routed to it reach.
    """

    LINEAR = "linear"
    EXPERT = "expert"
    CONV = "conv"
    EMBEDDING = "embedding"
    NORM = "norm"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One distinct stored tensor of a model.

    Attributes:
        name: Its first name in the state dict.
        aliases: Every further name of the same storage: tied weights.
        kind: What it is for; a weight tied between an embedding and a linear is an embedding.
        shape: Its shape.
        dtype: NumPy-style name of its stored type, ``float16``, ``bfloat16``, ``float32``, …
        compressible: Whether it can be packed as a matrix.
        reason: Why not, in a few words, when it cannot.
        patchwise: Whether it is the kernel of convolutions that see patches side by side, which
            are linear layers.
    """

    name: str
    kind: TensorKind
    shape: tuple[int, ...]
    dtype: str
    aliases: tuple[str, ...] = ()
    compressible: bool = False
    reason: str = ""
    patchwise: bool = False

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes stored uncompressed."""
        return self.numel * DTYPE_NBYTES[self.dtype]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns) when seen as a matrix."""
        return matrix_shape(self.shape)


DTYPE_NBYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model came from, enough to find it again and to know that it is the same.

    Attributes:
        kind: ``huggingface``, ``exported_program``, ``reference`` (package.module:factory) or
            ``module`` (an object in this process, which a saved model cannot find again).
        location: Path or reference as given, or the class name for ``module``.
        files: Small files that travel with the model: config.json, tokenizer.json, …
        weights: Files the weights are stored in; () for ``module`` and ``reference``.
        recorded_sha256: The digest a saved model remembers of a source that may be gone.
    """

    kind: str
    location: str
    files: tuple[Path, ...] = ()
    weights: tuple[Path, ...] = ()
    recorded_sha256: str = ""

    @cached_property
    def sha256(self) -> str:
        """Digest over the weight files' bytes in order, "" without files; reads them all once."""
        if self.recorded_sha256 or not self.weights:
            return self.recorded_sha256
        from edgesparse.store.digest import sha256_of_files

        return sha256_of_files(self.weights)


@dataclass(frozen=True, kw_only=True)
class CapturedModel:
    """A model, what its tensors are, and how to build it.

    Attributes:
        source: Where it came from.
        tensors: Every distinct tensor, in state-dict order.
        example_inputs: Keyword arguments of a forward pass on which shapes can be traced.
        skeleton: Builds the module in evaluation mode with parameters on the meta device (shapes
            and stored dtypes, no weights) and real buffers: those that are no tensors of the model,
            such as rotary frequencies, already have their values. Tied parameters are one object.
        weights: Opens the stored tensors by ``TensorInfo.name``; each is read when it is asked for
            and is the caller's own to change.
        task: ``causal-lm`` when the outputs are next-token logits, else ``generic``.
        config: The architecture's own configuration as JSON, {} if it has none.
    """

    source: Source
    tensors: tuple[TensorInfo, ...]
    example_inputs: Mapping[str, Any]
    skeleton: Callable[[], torch.nn.Module] = field(repr=False)
    weights: Callable[[], Mapping[str, torch.Tensor]] = field(repr=False)
    task: str = "generic"
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def loader(self) -> torch.nn.Module:
        """Build a fresh module with its weights, on the CPU, in the stored dtypes.

        In evaluation mode, without gradients; memory-mapped where the source is a file. The caller
        may change it.

        Raises:
            SourceError: The weights cannot be read or do not belong to the structure.
        """
        from edgesparse.capture.assemble import assemble

        return assemble(self)

    @property
    def name(self) -> str:
        """A short name for titles."""
        return Path(self.source.location).name

    @property
    def num_parameters(self) -> int:
        """Number of distinct elements."""
        return sum(tensor.numel for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors as stored in the source."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def by_name(self) -> Mapping[str, TensorInfo]:
        """Tensors by name and by every alias."""
        return {n: tensor for tensor in self.tensors for n in (tensor.name, *tensor.aliases)}


@dataclass(frozen=True, kw_only=True)
class CompressedModel:
    """A captured model whose chosen tensors are packed and whose others are as they were.

    Attributes:
        captured: The model it was made from: structure, tensors, source.
        packed: The packed tensors by ``TensorInfo.name``.
        kept: The others by ``TensorInfo.name``, read-only, in their stored dtypes, possibly
            memory-mapped.
        plan: What was decided for each tensor.
        errors: Measured relative output error ``|XW' - XW|² / |XW|²`` of each packed tensor on
            the calibration inputs (weight error where a method needs no inputs).
        metadata: JSON values worth keeping: calibration digest, tool versions, wall time, and
            the evaluation of this model and of its equal-byte dense alternative.
    """

    captured: CapturedModel = field(repr=False)
    packed: Mapping[str, PackedTensor] = field(repr=False)
    kept: Mapping[str, torch.Tensor] = field(repr=False)
    plan: Plan = field(repr=False)
    errors: Mapping[str, float] = field(default_factory=dict, repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, packed and kept, without file headers."""
        kept = sum(tensor.numel() * tensor.element_size() for tensor in self.kept.values())
        return kept + sum(packed.nbytes for packed in self.packed.values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per parameter of the whole model."""
        return 8 * self.nbytes / self.captured.num_parameters

    @property
    def sparsity(self) -> float:
        """Fraction of the packed weights that are removed by a mask."""
        total = sum(math.prod(packed.shape) for packed in self.packed.values())
        removed = sum((~packed.codes.keep_mask).sum() for packed in self.packed.values())
        return float(removed) / total if total else 0.0

    def save(self, path: str | Path, *, force: bool = False, deflated: bool = False) -> Path:
        """Write the model as a directory: manifest, weights, the source's own small files.

        See ``edgesparse.store.save``.
        """
        from edgesparse.store import save

        return save(self, Path(path), force=force, deflated=deflated)

    @classmethod
    def load(
        cls, path: str | Path, *, source: str | Path | CapturedModel | None = None
    ) -> CompressedModel:
        """Read what ``save`` wrote, every file checked against its SHA-256.

        See ``edgesparse.store.load``.
        """
        from edgesparse.store import load

        return load(Path(path), source=source)
