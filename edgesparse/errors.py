"""The one error tree.

EdgesparseError                 something a user can act on; the CLI prints it without a traceback
├── UsageError        (exit 2)  the call itself is wrong
│   ├── RecipeError             a rule or option that cannot mean anything
│   ├── UnknownName             a name no registry knows, with the nearest known ones
│   └── ResumeRefused           an interrupted run that was another job than this one
├── SourceError                 a model, text or file that cannot be read or makes no sense
├── FormatError                 a pack that cannot be made or read
│   └── CorruptPack             bytes that contradict themselves or their hash
├── CalibrationError            too little text, NaN activations, a layer that cannot be solved
├── BudgetExceeded    (exit 3)  the budget cannot be met, or the written file broke it
├── ExportError                 a target that cannot express or write the model
│   ├── MissingDependency       an optional package; says which extra to install
│   ├── MissingTool             a program that pip does not bring, such as a C++ compiler
│   └── Unsupported             named layers or operators the target has no form for
├── OutputExists                something is at the output path; --force replaces it
├── ValidationFailed            an artifact that does not compute what the packed model computes
└── DeviceError                 a device that is absent, failed or gave the wrong answer

A message says what was found, what was expected, which layer, and what to do about it.
"""

from __future__ import annotations


class EdgesparseError(Exception):
    """Base of everything this package raises on purpose."""

    exit_code = 1


class UsageError(EdgesparseError):
    """The call itself is wrong, whatever the model."""

    exit_code = 2


class RecipeError(UsageError):
    """A rule, pattern or option that cannot mean anything."""


class UnknownName(UsageError):
    """A name no registry knows."""


class ResumeRefused(UsageError):
    """An interrupted run that cannot be gone on with: it was another job."""


class SourceError(EdgesparseError):
    """A model, text or file that cannot be read or makes no sense."""


class FormatError(EdgesparseError):
    """A pack that cannot be made or read."""


class CorruptPack(FormatError):
    """Bytes that contradict themselves, their shape or their hash."""


class CalibrationError(EdgesparseError):
    """Calibration data or statistics that cannot be used."""


class BudgetExceeded(EdgesparseError):
    """The budget cannot be met, or the written file broke it.

    Attributes:
        smallest_nbytes: What could be reached under the limit that was broken, where known.
    """

    exit_code = 3
    smallest_nbytes: int | None = None


class ExportError(EdgesparseError):
    """A target that cannot express or write the model."""


class MissingDependency(ExportError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed; "
            f"pip install 'edgesparse[{extra}]'"
        )


class MissingTool(ExportError):
    """A program that pip does not bring is not installed."""


class Unsupported(ExportError):
    """Named layers or operators the target has no form for."""


class OutputExists(EdgesparseError):
    """Something is already at the output path."""


class ValidationFailed(EdgesparseError):
    """An artifact does not compute what the packed model computes."""


class DeviceError(EdgesparseError):
    """A device is absent, failed, or gave the wrong answer."""
