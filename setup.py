"""Packages bringup, with its C++ libraries where the environment has torch; elsewhere they are built at first use."""

import importlib.util
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

ROOT = Path(__file__).parent
PACKAGE = ROOT / "src" / "bringup"
SPEC = importlib.util.spec_from_file_location("core_build", PACKAGE / "core_build.py")
core_build = sys.modules["core_build"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(core_build)
TORCH = None if "sdist" in sys.argv else core_build.find_torch()


class BuildPython(build_py):
    def run(self):
        super().run()
        package = PACKAGE if self.editable_mode else Path(self.build_lib) / "bringup"
        if not self.editable_mode:
            shutil.copytree(ROOT / "csrc", package / "csrc", dirs_exist_ok=True)
        if TORCH is None:
            return
        try:
            if refusal := TORCH.refusal():
                raise core_build.BuildError(refusal)
            for library in (core_build.core_library(TORCH), core_build.replay_library(), core_build.jax_library()):
                if not (package / library.file).exists():  # of an editable installation
                    core_build.compile_library(library, package)
                    core_build.remove_others(library, package)
        except core_build.BuildError as error:
            sys.exit(f"bringup: {error}")


class NameTorch(egg_info):
    """The version of a package with a core names the torch that the core was built for."""

    def finalize_options(self):
        if TORCH is not None:
            self.tag_build = f"+torch{TORCH.release}"
        super().finalize_options()


class WithCore(Distribution):
    def has_ext_modules(self):
        return TORCH is not None


setup(distclass=WithCore, cmdclass={"build_py": BuildPython, "egg_info": NameTorch})
