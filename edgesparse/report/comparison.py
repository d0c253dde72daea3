"""The comparison every compression owes: dense, this plan, and dense codes of the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.report.words import plan_in_words

if TYPE_CHECKING:
    from edgesparse.runtime import Evaluation


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model of the comparison.

    Attributes:
        label: What it is, in a few words.
        evaluation: What was measured, bytes included.
    """

    label: str
    evaluation: Evaluation

    @property
    def distance(self) -> float | None:
        """How far from the dense model, smaller is closer: KL, else the output error."""
        found = self.evaluation.kl
        return self.evaluation.output_error if found is None else found


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Dense, compressed, and the equal-byte alternative when there is one.

    Attributes:
        dense: The model as it came.
        compressed: This plan.
        alternative: Fewer bits, no sparsity, the same bytes; None when the plan has no sparsity.
        measured_on: What the numbers were measured on, in words.
    """

    dense: Measured
    compressed: Measured
    alternative: Measured | None
    measured_on: str

    @property
    def better(self) -> Measured | None:
        """The closer of this plan and its alternative; None when there is nothing to compare."""
        if self.alternative is None:
            return None
        mine, other = self.compressed.distance, self.alternative.distance
        if mine is None or other is None:
            return None
        return self.compressed if mine <= other else self.alternative

    @property
    def rows(self) -> tuple[Measured, ...]:
        """Those there are, in the order they are shown."""
        found = (self.dense, self.compressed, self.alternative)
        return tuple(measured for measured in found if measured is not None)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers by role."""
        roles = {
            "dense": self.dense,
            "compressed": self.compressed,
            "equal_bytes": self.alternative,
        }
        return {
            "measured_on": self.measured_on,
            **{
                role: None
                if measured is None
                else {"label": measured.label, **measured.evaluation.to_json()}
                for role, measured in roles.items()
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """Read the form ``to_json`` writes: what a saved model's metadata holds."""
        return cls(
            dense=_measured(data["dense"]),
            compressed=_measured(data["compressed"]),
            alternative=_measured(data["equal_bytes"]) if data["equal_bytes"] else None,
            measured_on=str(data["measured_on"]),
        )


def _measured(values: Mapping[str, Any]) -> Measured:
    from edgesparse.runtime import Evaluation

    known = {field.name for field in fields(Evaluation)}
    evaluation = Evaluation(**{key: value for key, value in values.items() if key in known})
    return Measured(label=str(values["label"]), evaluation=evaluation)


def measure(
    captured: CapturedModel,
    compressed: CompressedModel,
    alternative: CompressedModel | None,
    *,
    measured_on: str,
    **options: Any,
) -> Comparison:
    """Evaluate the models side by side, with one pass of the dense one.

    Args:
        captured: The dense model.
        compressed: This plan, carried out.
        alternative: The plan of equal bytes, carried out, or None.
        measured_on: What ``options`` mean, in words.
        **options: Handed whole to ``edgesparse.runtime.compare``: text, tokens or inputs, progress.
    """
    from edgesparse.runtime import compare

    models: Sequence[CapturedModel | CompressedModel] = [
        captured, compressed, *([alternative] if alternative else []),
    ]  # fmt: skip
    evaluations = compare(models, **options)
    rest = evaluations[2:]
    return Comparison(
        dense=Measured(label=f"dense, {_dtype(captured)}", evaluation=evaluations[0]),
        compressed=Measured(
            label=f"this plan: {plan_in_words(compressed.plan)}", evaluation=evaluations[1]
        ),
        alternative=Measured(
            label=f"equal bytes: {plan_in_words(alternative.plan)}", evaluation=rest[0]
        )
        if alternative and rest
        else None,
        measured_on=measured_on,
    )


def _dtype(captured: CapturedModel) -> str:
    """Return the type most of the model's bytes are stored in."""
    nbytes: dict[str, int] = {}
    for tensor in captured.tensors:
        nbytes[tensor.dtype] = nbytes.get(tensor.dtype, 0) + tensor.nbytes
    return max(nbytes, key=nbytes.__getitem__, default="empty")


def hints(comparison: Comparison) -> list[str]:
    """Return what the numbers advise, also when that speaks against what was asked for."""
    alternative = comparison.alternative
    if alternative is None or comparison.better is not alternative:
        return []
    what = alternative.label.partition(": ")[2]
    mine, other = comparison.compressed.distance, alternative.distance
    return [
        f"as many bytes without sparsity ({what}) come closer to the original: "
        f"{_distance_name(alternative)} {other:.3g} against {mine:.3g}. The sparse one pays where "
        "the target runs sparse weights faster, or has no kernel for so few bits."
    ]


def _distance_name(measured: Measured) -> str:
    return "KL" if measured.evaluation.kl is not None else "output error"
