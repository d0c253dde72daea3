"""The row ``coreai`` of the exporter registry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesparse.exporting import Artifact, Verdict
from edgesparse.packed import SCHEMES
from edgesparse_converters.coreml.exporter import CoremlExporter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgesparse.model import CompressedModel
    from edgesparse.planner.types import Plan


class CoreaiExporter:
    """Writes, reads back and runs ``.aimodel``; see ``edgesparse.exporting.Exporter``."""

    suffix = ".aimodel"
    accepts = CoremlExporter.accepts
    schemes = frozenset(SCHEMES)
    packages = ("coreai", "coreai_torch")
    extra = "coreai"

    def export(
        self, compressed: CompressedModel, path: Path, *, tokens: int | None = None
    ) -> Artifact:
        """Write ``compressed`` to ``path``.

        Args:
            compressed: The packed model.
            path: The asset to write; it does not exist.
            tokens: Length of a language model's input; None takes the example's.

        Raises:
            Unsupported: torch cannot trace it.
            ExportError: Core AI has no form for an operator, by name, or fails otherwise.
        """
        from edgesparse_converters.coreai.export import export

        return export(compressed, path, tokens=tokens)

    def validate(
        self, path: Path, compressed: CompressedModel, *, calls: int = 2, seed: int = 0
    ) -> Verdict:
        """Read the weights back, run the asset here, compare; see ``validation.validate``."""
        from edgesparse_converters.coreai.validation import validate

        return validate(path, compressed, calls=calls, seed=seed)

    def predict_nbytes(self, plan: Plan) -> int:
        """Return the expected size of the asset: weights and the program around them."""
        from edgesparse_converters.coreai.prediction import predict_nbytes

        return predict_nbytes(plan)

    def inspect(self, path: Path) -> Mapping[str, Any]:
        """Return inputs, outputs, operators and weights."""
        from edgesparse_converters.coreai.inspection import inspect

        return inspect(path)

    def run(self, path: Path, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Execute the asset once in Core AI's runtime."""
        from edgesparse_converters.coreai.session import run

        return run(path, [inputs])[0]


EXPORTER = CoreaiExporter()
