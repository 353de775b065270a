"""The drivers of real devices, as far as this machine has them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bringup import core_build
from bringup.core_build import BuildError
from tests.conftest import ROOT, built_driver, without_bringup

Run = Callable[..., "subprocess.CompletedProcess[str]"]

COMPILER = """
#include <algorithm>
#include <cstdio>
#include "nvrtc.h"
#include "kit_kernels.h"
int main() {
  if (!nvidia::nvrtc().usable) return 2;
  std::string log;
  std::string point = "-DTO=float -DTA=float -DTB=uchar -DTC=long -DTS=float -DNIN=3 -DF=y?s:x+z";
  bool rows = !nvidia::compile(std::string(kit::kDialect) + kit::kRows, "", "sm_90", &log).empty();
  bool points = !nvidia::compile(std::string(kit::kDialect) + kit::kPoint, point, "sm_90", &log).empty();
  std::puts(log.c_str());
  return rows && points ? 0 : 1;
}
"""


@pytest.fixture(scope="session")
def opencl(tmp_path_factory: pytest.TempPathFactory) -> str:
    try:
        return str(core_build.compile_library(core_build.driver_library("opencl"), tmp_path_factory.mktemp("opencl")))
    except BuildError as error:
        pytest.skip(f"the headers of OpenCL are not installed: {error}")


def skip_without_device(done: "subprocess.CompletedProcess[str]") -> None:
    if "there are 0 OpenCL devices" in done.stderr:
        pytest.skip("this machine has no OpenCL device")


def test_cuda_driver_compiles_without_cuda(tmp_path: Path) -> None:
    assert core_build.compile_library(core_build.driver_library("cuda"), tmp_path).exists()


def test_kernels_compile_for_an_h100_without_a_gpu(tmp_path: Path) -> None:
    source, program = tmp_path / "compile.cpp", tmp_path / "compile"
    source.write_text(COMPILER, encoding="utf-8")
    include = ROOT / "csrc" / "drivers"
    subprocess.run(["g++", "-std=c++20", "-I", str(include), str(source), "-ldl", "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    if done.returncode == 2:
        pytest.skip("NVIDIA's run-time compiler is not installed (nvidia-cuda-nvrtc, BRINGUP_CUDA_LIBRARIES)")
    assert done.returncode == 0, done.stdout


def test_cuda_without_an_nvidia_driver_says_so(python: Run) -> None:
    done = python('import torch\ntorch.ones(3, device="chip")\n', BRINGUP_DRIVER="cuda")
    if done.returncode == 0:
        pytest.skip("this machine has an NVIDIA GPU")
    assert "the cuda driver says: " in done.stderr.splitlines()[-1]
    assert "is missing" in done.stderr.splitlines()[-1]


def test_operators_on_opencl_equal_the_cpus(python: Run, opencl: str) -> None:
    benchmarks = str(ROOT / "benchmarks")
    program = f"import sys\nsys.path.insert(0, {benchmarks!r})\nimport drivers\nsys.argv[1:] = ['operators']\n"
    done = python(program + "sys.exit(drivers.main())\n", timeout=300, BRINGUP_DRIVER=opencl)
    skip_without_device(done)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 wrong" in done.stdout


def test_index_out_of_range_on_opencl_names_its_line(python: Run, opencl: str) -> None:
    done = python(
        """
import torch
table, at = torch.ones(4, 2).to("chip"), torch.tensor([1, 9]).to("chip")
rows = torch.nn.functional.embedding(at, table)
torch.chip.synchronize()
""",
        BRINGUP_DRIVER=opencl,
    )
    skip_without_device(done)
    last = done.stderr.splitlines()[-1]
    assert "an index is out of range, in aten::embedding(float32[4, 2], int64[2]) on chip:0" in last
    assert "program.py:4" in last


def test_run_on_a_driver_shows_the_measured_step(tmp_path: Path) -> None:
    library, script = built_driver("separate", tmp_path), tmp_path / "train.py"
    script.write_text(
        """
import torch
model = torch.nn.Linear(4, 4).to("chip")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x = torch.ones(4, 4).to("chip")
for _ in range(4):
    optimizer.zero_grad()
    (model(x) * x).sum().backward()
    optimizer.step()
""",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "bringup", "run", "--driver", library, str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=without_bringup(),
    )
    assert done.returncode == 0, done.stderr
    assert "measured on separate: " in done.stdout
    assert "a step   predicted: " in done.stdout
    assert "on the device 4 launches, on the host " in done.stdout
    assert "(the driver has no kernel for it)" in done.stdout
