"""Hooks the native core into setuptools; everything else stands in pyproject.toml."""

import atexit
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # pip's isolation does not

from build_native import driver  # noqa: E402


def load_build_info_module():
    """Load ggm_kernels/build_info.py alone: importing the package would import torch."""
    path = ROOT / "ggm_kernels" / "build_info.py"
    spec = importlib.util.spec_from_file_location("build_info", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def replace_file(source: Path, target: Path) -> None:
    """Put a new file in place in one step: a process may have the old one mapped."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".tmp")
    shutil.copy2(source, unfinished)
    os.replace(unfinished, target)


def say_that_there_is_no_core(reason: str) -> None:
    """The last words of a build: further up nobody finds them."""
    sys.stdout.flush()
    print(
        f"\nggm-kernels: built WITHOUT its compiled core, calls will be slow: {reason}.\n"
        "Mend that and install again. GGM_NATIVE=1 makes the build fail instead.",
        file=sys.stderr,
    )


class BuildNative(build_ext):
    """Build ``ggm_kernels._native`` with ninja, or do without it and say why."""

    def run(self):
        """Build, then leave library and record where this kind of install wants them."""
        try:
            outcome = driver.build(ROOT, os.environ)
        except (driver.DemandNotMet, ValueError) as error:
            raise CompileError(str(error)) from error
        target = self._target()
        if outcome.library is None:
            target.unlink(missing_ok=True)  # one of an earlier build would tell a lie
        else:
            replace_file(outcome.library, target)
        build_info = load_build_info_module()
        info = {"version": self.distribution.get_version(), **outcome.info}
        info["native"]["sources"] = build_info.digest_of_sources(ROOT)
        build_info.write(info, target.parent)
        print(f"ggm-kernels {info['version']}\n{build_info.align(build_info.describe(info))}")
        if outcome.library is None:
            atexit.register(say_that_there_is_no_core, info["native"]["reason"])

    def _target(self) -> Path:
        folder = ROOT if self.inplace or self.editable_mode else Path(self.build_lib)
        return folder / self.get_ext_filename("ggm_kernels._native")


setup(
    ext_modules=[Extension("ggm_kernels._native", sources=[])],
    cmdclass={"build_ext": BuildNative},
)
