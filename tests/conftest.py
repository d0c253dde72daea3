"""No test reads or writes what the user's own runs remember."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep measured losses in a directory of this test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESPARSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
