"""Core AI: export, read back and execute ``.aimodel``, with Apple's own packages."""

from edgesparse_converters.coreai.exporter import EXPORTER

__all__ = ["EXPORTER"]
