"""ExecuTorch: a compressed model as a ``.pte`` program, read back and run on this host."""

from edgesparse_converters.executorch.exporter import EXPORTER

__all__ = ["EXPORTER"]
