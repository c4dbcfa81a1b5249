"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

# a loaded machine is slow, which is no fault of the code under test
hypothesis.settings.register_profile("lmlab", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("lmlab")


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The cache of the tests lies in a folder of its own, and the user's folder of runs is not looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("LMLAB_RUNS", raising=False)
        yield
