"""The OpenCL driver, for tests that run programs on it."""

import pytest

from bringup import core_build
from bringup.core_build import BuildError


@pytest.fixture(scope="session")
def opencl(tmp_path_factory: pytest.TempPathFactory) -> str:
    try:
        return str(core_build.compile_library(core_build.driver_library("opencl"), tmp_path_factory.mktemp("opencl")))
    except BuildError as error:
        pytest.skip(f"the headers of OpenCL are not installed: {error}")
