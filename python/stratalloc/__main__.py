"""`python -m stratalloc run SCRIPT ...` and `python -m stratalloc doctor`."""

import argparse
import os
import shutil
import sys

from . import _build, _lib
from .errors import StratallocError

RUN = """\
Runs a Python program, unchanged, with PyTorch's CUDA memory from stratalloc: SCRIPT, or -m MODULE, and its arguments. The
interpreters that the program starts do the same."""

_FALLBACKS = ("auto", "never", "only")


def main(arguments=None):
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    ours, program = _split(arguments)
    parser = argparse.ArgumentParser(prog="python -m stratalloc", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    usage = "python -m stratalloc run [options] SCRIPT | -m MODULE [arguments]"
    run = commands.add_parser("run", usage=usage, description=RUN, help="run a program on stratalloc")
    run.add_argument("--conf", help="the configuration, in place of STRATALLOC_CONF: limit:0.9,...")
    run.add_argument("--fallback", choices=_FALLBACKS, default="auto", help="as in stratalloc.torch.enable")
    run.add_argument("--print", action="store_true", help="print the environment and the command instead")
    commands.add_parser("doctor", help="say what is found and what is missing")
    options = parser.parse_args(ours)
    if options.command == "doctor":
        return doctor()
    if not program or program == ["-m"]:
        run.error("name a script, or -m and a module")
    options.program = program
    return run_program(options)


def _split(arguments):
    """Our own arguments, and the program's: from the first that is neither an option of `run` nor the value of one."""
    at = 1
    while arguments[:1] == ["run"] and at < len(arguments):
        word = arguments[at]
        if word == "--":
            return arguments[:at], arguments[at + 1 :]
        if word == "-m" or not word.startswith("-"):
            return arguments[:at], arguments[at:]
        at += 2 if word in ("--conf", "--fallback") else 1
    return arguments, []


def environment(options):
    """What the program's environment has in addition."""
    site = os.path.join(_lib.PACKAGE, "_site")
    # The package itself has to be found as well, from wherever the program runs.
    path = [site, os.path.dirname(_lib.PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
    added = {"STRATALLOC_TORCH": options.fallback, "PYTHONPATH": os.pathsep.join(path)}
    if options.conf is not None:
        added["STRATALLOC_CONF"] = options.conf
    return added


def run_program(options):
    added = environment(options)
    command = [sys.executable, *options.program]
    if options.print:
        for name, value in added.items():
            print(f"{name}={value}")
        print(*command)
        return 0
    script = options.program[0]
    if not script.startswith("-") and not os.path.exists(script):
        print(f"stratalloc: no such script: {script}", file=sys.stderr)
        return 2
    os.execve(sys.executable, command, {**os.environ, **added})


def doctor():
    """Prints a line for each thing that is needed. 0 if stratalloc can be enabled in full."""
    problems = 0

    def line(name, find):
        nonlocal problems
        try:
            print(f"ok       {name}: {find()}")
        except (StratallocError, ImportError, OSError, ValueError) as error:
            problems += 1
            print(f"MISSING  {name}: {error}")

    line("library", lambda: f"{_lib.find()[0]}, version {_lib.version()}")
    shim = _lib.find_shim()
    print(f"ok       fallback: {shim}" if shim else "absent   fallback: the wheel was built without a C++ compiler")
    try:
        import torch
    except (ImportError, OSError, ValueError) as error:
        print(f"MISSING  torch: {error}")
        return 1
    line("torch", lambda: f"{torch.__version__}, CUDA {torch.version.cuda}")
    line("version", lambda: _build.check_version(torch) or "tested")
    line("devices", lambda: torch.cuda.device_count() or _no_device())
    line("compiler", lambda: shutil.which(_build.compiler()[0]))
    line("CUDA headers", _build.cuda_include)
    line("extension", lambda: _build.extension(torch))
    return 1 if problems else 0


def _no_device():
    raise OSError("PyTorch finds no CUDA device")


if __name__ == "__main__":
    sys.exit(main())
