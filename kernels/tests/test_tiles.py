"""Matrix tiles: what they compute, where there are none too, and that they leave no trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_emulated_tiles_give_the_same_bits(tmp_path):
    """The kernels for tiles, run on tile registers emulated in memory: any processor can."""
    program = Path(__file__).with_name("emulated_tiles.py")
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 300
