"""A program opened in this process, with the kernels it needs registered first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesparse.errors import SourceError
from edgesparse_converters.executorch.program import read_program

if TYPE_CHECKING:
    from executorch.runtime import Program


def load_program(path: Path, *, trace: bool = False) -> Program:
    """Open a ``.pte`` in the runtime of this process.

    Args:
        path: The ``.pte``.
        trace: Whether the runtime records its events.

    The runtime verifies the flatbuffer but not the delegates' contents, which can still abort the
    process: files of unknown origin belong in ``session.execute``.

    Raises:
        SourceError: The file is damaged, or an operator has no kernel here.
    """
    program = read_program(path)  # checked before the runtime sees the file
    operators = program.operators
    from executorch.runtime import Runtime, Verification

    runtime = Runtime.get()
    register_kernels(operators)
    missing = set(operators) - set(runtime.operator_registry.operator_names)
    if missing:
        raise SourceError(f"{path}: this runtime has no kernel for {', '.join(sorted(missing))}")
    options: dict[str, Any] = {"enable_etdump": True} if trace else {}
    if program.apart:
        options["data_path"] = program.apart_path
    try:
        return runtime.load_program(path, verification=Verification.InternalConsistency, **options)
    except TypeError:
        if not program.apart:
            raise
        raise SourceError(f"{path}: weights apart from their program need executorch 1.5") from None


def register_kernels(operators: tuple[str, ...]) -> None:
    """Load the libraries with kernels for these operators, each at most once."""
    if any(name.startswith("quantized_decomposed::") for name in operators):
        import executorch.kernels.quantized  # noqa: F401 - registers its kernels when imported
    if any(name.startswith("edgesparse::") for name in operators):
        from edgesparse_converters.executorch.native import load_operators

        load_operators()
