"""One local Ray for all tests of this folder; starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clara_dist.distributed.session import connect


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    with connect("local", num_cpus=2):
        yield
