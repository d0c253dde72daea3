"""Recovery: win back what compression lost, by distillation from the dense model on frozen masks.

``recover`` trains the whole model against the dense one's outputs; ``recover_blockwise`` trains one
block at a time against the dense block's outputs, for models too large for the former.
"""

from edgesparse.recovery.blockwise import BlockProgress, recover_blockwise
from edgesparse.recovery.distill import recover
from edgesparse.recovery.progress import RecoveryProgress

__all__ = ["BlockProgress", "RecoveryProgress", "recover", "recover_blockwise"]
