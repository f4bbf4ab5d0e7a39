"""The extension modules and the switches of their build."""

import os
import runpy
import shutil
import sysconfig
from pathlib import Path

from Cython import Tempita
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import PlatformError

# Bounds checks, and line tracing for coverage of the Cython code.
DEBUG = os.environ.get("ROBO_ORCHARD_FASTHOOKS_DEBUG") == "1"
# Where a function happens to lie otherwise moves a scope by 20 of 175 ns, and
# any edit moves functions. Debug information makes a wheel five times as
# large; it is left out here because CFLAGS in the environment would replace
# the flags that Python was compiled with, -O3 among them.
COMPILE_ARGS = ["-falign-functions=64", *([] if DEBUG else ["-g0"])]


SOURCE = Path("csrc/robo_orchard_fasthooks")


def generate():
    """Writes the modules that repeat the fields of PipelineHookArgs."""
    namespace = runpy.run_path(str(SOURCE / "fields.py"))
    for template in SOURCE.glob("*.in"):
        text = Tempita.sub(template.read_text(), **namespace)
        template.with_suffix("").write_text(text)


class BuildExt(build_ext):
    """Says what to install where nothing can be compiled."""

    def build_extensions(self):
        """Builds the modules, or raises PlatformError before it starts."""
        compiler = getattr(self.compiler, "compiler_so", None)
        header = os.path.join(sysconfig.get_path("include"), "Python.h")
        missing = []
        if compiler and not shutil.which(compiler[0]):
            missing.append(f"the C compiler {compiler[0]!r}")
        if not os.path.exists(header):
            missing.append("the headers of this Python")
        if missing:
            raise PlatformError(
                "robo_orchard_fasthooks is compiled C, and "
                f"{' and '.join(missing)} could not be found. Install them "
                "(Debian, Ubuntu: apt-get install gcc python3-dev; macOS: "
                "xcode-select --install), or set CC to the compiler you have."
            )
        # Also when only a switch has changed, which is in no file.
        self.force = True
        super().build_extensions()


generate()
setup(
    cmdclass={"build_ext": BuildExt},
    ext_modules=cythonize(
        [
            Extension(
                f"robo_orchard_fasthooks.{name}",
                [f"csrc/robo_orchard_fasthooks/{name}.pyx"],
                define_macros=[("CYTHON_TRACE", "1")] if DEBUG else [],
                extra_compile_args=COMPILE_ARGS,
            )
            for name in (
                *("_args", "_dispatch", "_fast_dataclass", "_record"),
                "_snapshot",
            )
        ],
        include_path=["csrc"],
        build_dir="build",
        force=True,
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": DEBUG,
            "linetrace": DEBUG,
        },
    ),
)
