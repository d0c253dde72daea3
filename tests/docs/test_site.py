"""The site builds without a warning: every page in a menu, every link and reference found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_site_builds(tmp_path: Path) -> None:
    words = ["-q", "-W", "--keep-going", "-b", "html", "-d", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words, "-c", "docs/site", ".", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/docs/site/index.html").exists()
