"""Core ML: export, read back and execute ``.mlpackage``; README.md here tells the formats."""

from edgesparse_converters.coreml.exporter import EXPORTER

__all__ = ["EXPORTER"]
