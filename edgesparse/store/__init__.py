"""A compressed model as a directory: written whole or not at all, believed only after checking.

edgesparse.json      the manifest: source, plan, what each tensor is, SHA-256 of every file
weights.safetensors  packed buffers ``<tensor>.mask``, ``.codes``, … and the kept tensors
config.json …        the source's own small files, verbatim
"""

from edgesparse.store.layout import Entry, packed_entries, safetensors_nbytes
from edgesparse.store.loading import load
from edgesparse.store.saving import save

__all__ = ["Entry", "load", "packed_entries", "safetensors_nbytes", "save"]
