"""Calibration: run real inputs through the model and gather what the solvers need, layer by layer.

``windows`` turns text or arrays into batches, ``record`` finds out how the model runs, ``driver``
owns hooks and the layer loop, ``statistics`` is what methods receive.
"""

from edgesparse.calibrate.driver import Resources, calibrate
from edgesparse.calibrate.statistics import Statistic, Statistics
from edgesparse.calibrate.windows import Batch, calibration_batches, token_windows

__all__ = [
    "Batch",
    "Resources",
    "Statistic",
    "Statistics",
    "calibrate",
    "calibration_batches",
    "token_windows",
]
