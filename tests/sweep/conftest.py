"""Two recordings for all tests of a process."""

import shutil
from pathlib import Path

import pytest

from tests.sweep import sweeps


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two recordings, which tests copy."""
    folder = tmp_path_factory.mktemp("recordings")
    sweeps.recordings(folder)
    return folder


@pytest.fixture
def folder(recorded: Path, tmp_path: Path) -> Path:
    """A test's own folder, with the two recordings."""
    for path in recorded.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path
