"""The command line of `python -m robo_orchard_fasthooks`."""

import argparse
import builtins
import os
import platform
import runpy
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import CodeType, ModuleType

import torch

from robo_orchard_fasthooks import lab


def main() -> None:
    """Runs the command given in `sys.argv`."""
    parser = argparse.ArgumentParser(
        prog="python -m robo_orchard_fasthooks",
        description="Accelerates an installed RoboOrchardLab.",
    )
    this = _with_version("robo_orchard_fasthooks")
    parser.add_argument("--version", action="version", version=this)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        help="run a program with RoboOrchardLab accelerated",
        description="Runs a program as `python` does, with RoboOrchardLab "
        "accelerated. RoboOrchardLab is imported before the program starts.",
    )
    run.add_argument("-m", action="store_true", help="run a module")
    run.add_argument(
        "program",
        nargs=argparse.PARSER,  # Unlike REMAINDER, keeps a leading "--".
        help="the script or the name of the module, and its arguments",
    )
    commands.add_parser(
        "info", help="show the versions to give in a bug report"
    )
    options = parser.parse_args()
    if options.command == "info":
        return info()
    program = options.program[0]
    try:
        if not options.m:
            path = os.path.join(os.getcwd(), program)
            source = Path(path).read_bytes()
            code = compile(source, path, "exec", dont_inherit=True)
        lab.install()
    except OSError as error:
        reason = f"cannot open {program!r}: {error.strerror}"
        run.exit(2, f"{run.prog}: error: {reason}\n")
    except ImportError as error:
        if error.name != "robo_orchard_lab":
            raise
        run.exit(2, f"{run.prog}: error: {error}\n")
    sys.argv = options.program
    if options.m:
        return _run_module(program)
    _run_script(program, code)


def info() -> None:
    """Prints the versions, the GPUs and what `lab.install` replaces."""
    try:
        with lab.install(verbose=True):
            pass
    except Exception as error:  # Importing it may raise any exception.
        print(lab.status())
        print(f"  {type(error).__name__}: {error}")
    for package in ("robo_orchard_core", "accelerate", "torch"):
        print(_with_version(package))
    devices = range(torch.cuda.device_count())
    names = ", ".join(map(torch.cuda.get_device_name, devices))
    print(f"CUDA {torch.version.cuda or 'not built in'}: {names or 'no GPU'}")
    print(platform.python_implementation(), sys.version)
    print(platform.platform())


def _with_version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} of an unknown version"


def _run_script(path: str, code: CodeType) -> None:
    if not getattr(sys.flags, "safe_path", False):  # New in Python 3.11.
        # In place of the folder that `python -m` added.
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    namespace = vars(_new_main())
    namespace["__file__"] = code.co_filename
    exec(code, namespace)


def _run_module(name: str) -> None:
    _new_main()
    sys.argv[0] = "-m"  # Until runpy has found the module.
    # `python -m` calls this too. The public run_module restores the previous
    # __main__ before the functions that are registered with atexit run.
    runpy._run_module_as_main(name)  # type: ignore[attr-defined]


def _new_main() -> ModuleType:
    module = sys.modules["__main__"] = ModuleType("__main__")
    # Its name where multiprocessing spawned the process, for pickles.
    if "__mp_main__" in sys.modules:
        sys.modules["__mp_main__"] = module
    vars(module)["__builtins__"] = builtins
    return module


if __name__ == "__main__":
    main()
