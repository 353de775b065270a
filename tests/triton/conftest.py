"""Triton's interpreter, as an oracle."""

import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def oracle() -> Iterator[Any]:
    """A process in which Triton interprets: it reads the setting when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        pool = multiprocessing.get_context("spawn").Pool(1)
        pool.apply(int)
    with pool:
        yield pool
