"""How each packed tensor is written, chosen per use: a tied weight has two uses and may have two.

``xnnpack``   the stock kernels of the ExecuTorch runtime: XNNPACK's 4-bit and 8-bit linears with
              8-bit dynamic activations, the quantized embeddings; zeros of a mask are stored.
``packed``    our operators ``edgesparse::linear`` and ``edgesparse::embedding`` on packed bytes.
``float32``   the decoded weight, for whatever neither can express. Never chosen silently: it is
              told per tensor in ``Artifact.lowering`` and in the notes.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from edgesparse.errors import UsageError
from edgesparse.model import TensorKind
from edgesparse.packed import SYMMETRIC, FormatSpec, PackedTensor

if TYPE_CHECKING:
    import torch

    from edgesparse.model import CompressedModel


class Form(StrEnum):
    """What a use becomes in the program."""

    PACKED = "edgesparse packed"
    XNNPACK4 = "XNNPACK 4-bit"
    XNNPACK8 = "XNNPACK 8-bit per row"
    EMBEDDING4 = "quantized embedding 4-bit"
    EMBEDDING8 = "quantized embedding 8-bit"
    FLOAT32 = "float32"
    COREML = "Core ML delegate"


COREML = "coreml"
"""The choice that is made for a whole program, not for a tensor: see ``coreml_lowering``."""
CHOICES = ("auto", "packed", "xnnpack", "float32")


@dataclass(frozen=True, kw_only=True)
class Use:
    """One place where a packed tensor is used.

    Attributes:
        tensor: ``TensorInfo.name`` of the packed tensor.
        module: Dotted name of the module that owns it there.
        attribute: Name of the parameter in that module, ``weight``.
        kind: ``linear``, ``embedding``, ``convolution`` (one whose windows do not overlap, see
            ``edgesparse.pointwise``) or ``other``.
        form: What it becomes.
        reason: Why not the form that was asked for; empty when it is.
    """

    tensor: str
    module: str
    attribute: str
    kind: str
    form: Form
    reason: str = ""

    @property
    def name(self) -> str:
        """Dotted name of the parameter at this use."""
        return f"{self.module}.{self.attribute}".removeprefix(".")


def plan_uses(
    compressed: CompressedModel,
    module: torch.nn.Module,
    lowering: str | Mapping[str, str] = "auto",
) -> tuple[Use, ...]:
    """Choose a form for every use of every packed tensor.

    Args:
        compressed: The packed model.
        module: Its module, with the source's names.
        lowering: One of ``CHOICES``, or globs of tensor names to choices; the first that matches
            decides, and ``auto`` holds where none does.

    Raises:
        UsageError: An unknown choice, or a glob that matches no packed tensor.
    """
    choices = {"*": lowering} if isinstance(lowering, str) else dict(lowering)
    _check_choices(choices, compressed)
    uses = []
    for name, packed in compressed.packed.items():
        names = (name, *compressed.captured.by_name[name].aliases)
        choice = next((c for g, c in choices.items() if _matches(names, g)), "auto")
        places = [_place(module, alias) for alias in names]
        if choice == "auto":
            is_expert = compressed.captured.by_name[name].kind is TensorKind.EXPERT
            kinds = [kind for *_, kind in places]
            choice = automatic(packed.spec, packed.shape, kinds, is_expert=is_expert)
        for owner, attribute, kind in places:
            form, reason = _form(packed, kind, choice)
            uses.append(
                Use(
                    tensor=name, module=owner, attribute=attribute, kind=kind,
                    form=form, reason=reason,
                )
            )  # fmt: skip
    return tuple(uses)


def _check_choices(choices: Mapping[str, str], compressed: CompressedModel) -> None:
    for glob, choice in choices.items():
        if choice not in CHOICES:
            whole = f", or {COREML} for the whole model"
            raise UsageError(f"lowering {choice!r}: expected one of {', '.join(CHOICES)}{whole}")
        if glob != "*" and not any(
            _matches((name, *compressed.captured.by_name[name].aliases), glob)
            for name in compressed.packed
        ):
            raise UsageError(f"lowering for {glob!r}: no packed tensor has such a name")


def _matches(names: tuple[str, ...], glob: str) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for name in names)


def _place(module: torch.nn.Module, name: str) -> tuple[str, str, str]:
    """Return (owning module, parameter, kind) of a state-dict name."""
    import torch

    from edgesparse.pointwise import is_patchwise, is_pointwise

    owner, _, attribute = name.rpartition(".")
    found = module.get_submodule(owner)
    kind = "other"
    if attribute == "weight" and type(found) is torch.nn.Linear:
        kind = "linear"
    # A subclass may scale its output or clip its input: only the plain module is replaced.
    if attribute == "weight" and type(found) is torch.nn.Embedding and found.max_norm is None:
        kind = "embedding"
    if attribute == "weight" and (is_pointwise(found) or is_patchwise(found)):
        kind = "convolution"
    return owner, attribute, kind


def automatic(
    spec: FormatSpec, shape: tuple[int, ...], kinds: Sequence[str], *, is_expert: bool
) -> str:
    """Return the choice that ``auto`` makes: our operator where it saves bytes.

    That is for sparse weights, tied ones, and those of fewer than 4 bits; and for experts, because
    XNNPACK would compute those that no token is sent to.

    Args:
        spec: How the weight is packed.
        shape: Its shape.
        kinds: ``Use.kind`` of every place where it is used.
        is_expert: Whether it is a matrix of an expert.
    """
    sparse = not spec.name.startswith("dense")
    tied = len(kinds) > 1
    if "other" in kinds:
        return "float32" if len(kinds) == 1 else "xnnpack"
    stock = kinds[0] != "convolution" and not _xnnpack(spec, shape, kinds[0])[1]
    return "xnnpack" if stock and not (sparse or tied or is_expert) else "packed"


def _form(packed: PackedTensor, kind: str, choice: str) -> tuple[Form, str]:
    if packed.spec.scheme != SYMMETRIC:
        return Form.FLOAT32, f"neither XNNPACK nor our operators take {packed.spec.scheme} codes"
    if kind == "other":
        return (
            Form.FLOAT32,
            "neither a plain linear, an embedding, nor a convolution without overlap",
        )
    if choice == "packed":
        return Form.PACKED, ""
    if choice == "float32":
        return Form.FLOAT32, ""
    if kind == "convolution":
        return Form.FLOAT32, "XNNPACK has no 4-bit convolutions"
    return _xnnpack(packed.spec, packed.shape, kind)


def _xnnpack(spec: FormatSpec, shape: tuple[int, ...], kind: str) -> tuple[Form, str]:
    """Return the stock form with exactly these numbers, or float32 and why there is none."""
    rows, columns = shape[0], shape[-1]
    if rows * columns == 0:
        return Form.FLOAT32, "it has no elements"
    if spec.bits == 16:
        return Form.FLOAT32, "float16 values have no quantized form"
    per_row = spec.group_size >= columns
    if not per_row and columns % spec.group_size:
        return Form.FLOAT32, f"{columns} columns do not divide into groups of {spec.group_size}"
    if kind == "embedding":
        if spec.bits == 8:
            return Form.EMBEDDING8, ""
        return (Form.EMBEDDING4, _widened(spec.bits)) if columns % 2 == 0 else (
            Form.FLOAT32, "an odd number of columns has no 4-bit form"
        )  # fmt: skip
    if spec.bits == 8:
        return (Form.XNNPACK8, "") if per_row else (
            Form.FLOAT32, f"XNNPACK has no 8-bit weights in groups ({spec.group_size})"
        )  # fmt: skip
    group = columns if per_row else spec.group_size
    if group % 32:
        return Form.FLOAT32, f"XNNPACK needs groups of a multiple of 32, not {group}"
    return Form.XNNPACK4, _widened(spec.bits)


def _widened(bits: int) -> str:
    return f"{bits}-bit codes stored in 4 bits, the same numbers" if bits < 4 else ""
