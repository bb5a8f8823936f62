"""Each family's base LLM, saved once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from family_models import FAMILIES, write_base


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def family_dir(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(family, tmp_path_factory.mktemp(family) / "base")


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One local Ray for the servers of all families."""
    from clara_dist.distributed.session import connect

    with connect("local"):
        yield
