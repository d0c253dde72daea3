"""Interrupted work that can be gone on with: finished layers, durable beside the output.

``journal`` writes and reads them, ``identity`` says which job they belong to, ``beside`` where they
lie and what a command does about those it finds.
"""

from edgesparse.journal.identity import first_difference, identity
from edgesparse.journal.journal import Journal, begun_batch

__all__ = ["Journal", "begun_batch", "first_difference", "identity"]
