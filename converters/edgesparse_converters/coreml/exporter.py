"""The row ``coreml`` of the exporter registry."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesparse.exporting import Artifact, Verdict
from edgesparse.packed import SCHEMES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgesparse.executing import LanguageModel
    from edgesparse.model import CompressedModel
    from edgesparse.planner.types import Plan
    from edgesparse_converters.coreml.execute import Precision


class CoremlExporter:
    """Writes, reads back and runs ``.mlpackage``; see ``edgesparse.exporting.Exporter``."""

    suffix = ".mlpackage"
    accepts = frozenset(
        f"{layout}{bits}"
        for layout, widths in (("dense", (2, 3, 4, 8)), ("bitmask", (2, 3, 4, 8, 16)))
        for bits in widths
    ) | {"nm4", "n64", "column16", "block16x8"}  # written as mask and kept codes, like bitmask4
    schemes = frozenset(SCHEMES)
    packages = ("coremltools",)
    extra = "coreml"

    def export(self, compressed: CompressedModel, path: Path, **options: Any) -> Artifact:
        """Write ``compressed`` to ``path``.

        Args:
            compressed: The packed model.
            path: The package to write; it does not exist.
            **options: Fields of ``edgesparse_converters.coreml.options.Options``.

        Raises:
            UsageError: An option that cannot mean anything.
            Unsupported: Operators or inputs Core ML has no form for, by name.
        """
        from edgesparse_converters.coreml.export import export
        from edgesparse_converters.coreml.options import read_options

        return export(compressed, path, read_options(options))

    def validate(self, path: Path, compressed: CompressedModel, **options: Any) -> Verdict:
        """Read the weights back, run the program here, compare; see ``validation.validate``."""
        from edgesparse_converters.coreml.validation import validate

        return validate(path, compressed, **options)

    def predict_nbytes(self, plan: Plan) -> int:
        """Return the expected size of the package: constants, and the program around them."""
        from edgesparse_converters.coreml.prediction import predict_nbytes

        return predict_nbytes(plan)

    def inspect(self, path: Path) -> Mapping[str, Any]:
        """Return functions, operators and weights, and where the bytes go."""
        from edgesparse_converters.coreml.inspection import inspect

        return inspect(path)

    def open_language_model(self, path: Path) -> AbstractContextManager[LanguageModel]:
        """Open a package to read tokens on the host executor; see ``edgesparse.executing``."""
        from edgesparse_converters.coreml.speaking import open_language_model

        return open_language_model(path)

    def run(
        self,
        path: Path,
        inputs: Mapping[str, NDArray[Any]],
        *,
        precision: Precision = "float32",
        function: str | None = None,
    ) -> Mapping[str, NDArray[Any]]:
        """Execute a function of the package once."""
        from edgesparse_converters.coreml.execute import Executor

        return Executor(path, precision=precision, function=function).run(inputs)


EXPORTER = CoremlExporter()
