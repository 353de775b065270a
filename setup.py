"""Builds the C++ core against the torch of this environment, and the replay's library, which needs no torch."""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SANITIZERS = os.environ.get("BRINGUP_SANITIZERS", "")  # for -fsanitize=; `make sanitize` sets it


def need_torch():
    try:
        import torch
    except ImportError:
        sys.exit(
            "bringup: this build sees no torch. Install torch first, then bringup with "
            "`pip install --no-build-isolation .`, so that the core fits the torch that will load it"
        )
    return torch


class BuildCore(build_ext):
    def build_extensions(self):
        torch = need_torch()
        compiler = self.compiler.compiler_cxx[0]
        if shutil.which(compiler) is None:
            sys.exit(f"bringup: the C++ core needs a compiler and {compiler} is not there: apt-get install g++")
        home = Path(torch.__file__).parent
        core, replay = self.extensions
        core.include_dirs += [str(home / "include"), str(home / "include" / "kineto")]
        core.library_dirs += [str(home / "lib")]
        core.runtime_library_dirs += [str(home / "lib")]
        abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
        core.extra_compile_args += [f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]
        for library in (core, replay) if SANITIZERS else ():
            library.extra_compile_args += ["-O1", "-g1", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS"]
            library.extra_compile_args += [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=undefined"]
            library.extra_compile_args += ["-fno-wrapv"]  # Python's own flags would make overflows defined
            library.extra_compile_args += ["-Wno-maybe-uninitialized"]  # GCC's own checks hide what is initialised
            library.extra_link_args += [f"-fsanitize={SANITIZERS}"]
        super().build_extensions()
        inplace = ROOT / "src" / "bringup"
        target = inplace if self.inplace or self.editable_mode else Path(self.build_lib) / "bringup"
        target.mkdir(parents=True, exist_ok=True)
        (target / "_build.py").write_text(
            f'"""Written by the build."""\n\nTORCH = "{torch.__version__}"\n', encoding="utf-8"
        )


DEPENDS = ["setup.py", *(str(path) for path in sorted(filter(Path.is_file, (ROOT / "csrc").rglob("*"))))]
FLAGS = (ROOT / "csrc" / "flags").read_text(encoding="utf-8").split()

setup(
    ext_modules=[
        Extension(
            "bringup._core",
            sources=["csrc/core.cpp", "csrc/drivers/virtual.cpp"],
            depends=DEPENDS,
            libraries=["c10", "torch_cpu", "torch"],
            extra_compile_args=[*FLAGS],
            language="c++",
        ),
        Extension(
            "bringup._replay",
            sources=["csrc/record/timeline.cpp"],
            depends=DEPENDS,
            extra_compile_args=[*FLAGS],
            language="c++",
        ),
    ],
    cmdclass={"build_ext": BuildCore},
)
