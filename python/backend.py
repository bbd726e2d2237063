"""The build backend (PEP 517): a wheel with the Python package, libstratalloc.so from cargo, and the pluggable shim.

`STRATALLOC_WHEEL_LIBRARY` names a library to carry in place of one that cargo builds.
"""

import base64
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACKAGE = HERE / "stratalloc"


def _project():
    """Name, version, description and the like, from pyproject.toml: plain `key = "text"` lines only."""
    text = (HERE / "pyproject.toml").read_text()
    section = text.split("[project]", 1)[1]
    return dict(re.findall(r'^([\w-]+) = "(.*)"$', section, re.MULTILINE))


def _say(text):
    print(f"stratalloc: {text}", file=sys.stderr, flush=True)


def build_library(folder):
    """libstratalloc.so, in `folder`."""
    given = os.environ.get("STRATALLOC_WHEEL_LIBRARY")
    if given:
        shutil.copy(given, folder / "libstratalloc.so")
        return
    cargo = shutil.which("cargo")
    if cargo is None:
        raise RuntimeError("building stratalloc from source needs Rust: install cargo from https://rustup.rs")
    if not (ROOT / "crates" / "capi").is_dir():
        raise RuntimeError(f"{ROOT} is not stratalloc's repository: build the wheel from a checkout, with `pip wheel ./python`")
    # Without the Rust library beside it, which would keep the linker from optimising across crates. Wherever cargo is told to put it, it
    # says where that was.
    build = ["rustc", "--profile", "dist", "-p", "stratalloc-capi", "--lib", "--crate-type", "cdylib"]
    command = [cargo, *build, "--message-format", "json-render-diagnostics"]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"cargo failed with status {result.returncode}: see above")
    found = re.findall(r'"([^"]*/libstratalloc[^"/]*\.so)"', result.stdout)
    if not found:
        raise RuntimeError("cargo built stratalloc-capi and named no shared library")
    shutil.copy(found[-1], folder / "libstratalloc.so")
    _strip(folder / "libstratalloc.so")


def _strip(path):
    """Debug information is most of the file; without it the wheel is a tenth. Where there is no strip, it stays."""
    strip = shutil.which("strip")
    if strip:
        subprocess.run([strip, "--strip-debug", str(path)], check=True)


def build_shim(folder):
    """The shim of the pluggable fallback, in `folder`. Not having it is no failure: the package says so when it matters."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        _say("no C++ compiler: the wheel has no fallback for machines without one")
        return
    source = PACKAGE / "csrc" / "pluggable_shim.cpp"
    output = folder / "libstratalloc_pluggable.so"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-s", "-I", str(ROOT / "include")]
    # The runtime goes into it, so that it loads on machines with an older one.
    runtime = ["-static-libgcc", "-ldl"]
    subprocess.run([*compiler.split(), *flags, str(source), "-o", str(output), *runtime], check=True)


def _metadata():
    project = _project()
    return (
        "Metadata-Version: 2.3\n"
        f"Name: {project['name']}\nVersion: {project['version']}\nSummary: {project['description']}\n"
        f"Requires-Python: {project['requires-python']}\nLicense-Expression: {project['license']}\n"
        "Description-Content-Type: text/markdown\n\n" + (HERE / "README.md").read_text()
    )


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """The hook that pip calls."""
    project = _project()
    stem = f"{project['name']}-{project['version']}"
    tag = f"py3-none-linux_{platform.machine()}"
    name = f"{stem}-{tag}.whl"
    with tempfile.TemporaryDirectory() as temporary:
        built = Path(temporary)
        build_library(built)
        build_shim(built)
        shutil.copy(ROOT / "include" / "stratalloc.h", built / "stratalloc.h")
        files = []
        for path in sorted(PACKAGE.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so":
                files.append((f"stratalloc/{path.relative_to(PACKAGE).as_posix()}", path.read_bytes()))
        for path in sorted(built.iterdir()):
            inside = "stratalloc/csrc/" if path.suffix == ".h" else "stratalloc/"
            files.append((inside + path.name, path.read_bytes()))
    info = f"{stem}.dist-info"
    files.append((f"{info}/METADATA", _metadata().encode()))
    wheel = f"Wheel-Version: 1.0\nGenerator: stratalloc\nRoot-Is-Purelib: false\nTag: {tag}\n"
    files.append((f"{info}/WHEEL", wheel.encode()))
    for licence in ("LICENSE-MIT", "LICENSE-APACHE"):
        files.append((f"{info}/licenses/{licence}", (ROOT / licence).read_bytes()))
    _write_wheel(Path(wheel_directory) / name, files, f"{info}/RECORD")
    return name


def _write_wheel(path, files, record):
    lines = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(data)}")
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = (0o100755 if name.endswith(".so") else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
        archive.writestr(record, "\n".join([*lines, f"{record},,"]) + "\n")


def build_sdist(sdist_directory, config_settings=None):
    """There is none: the Rust sources lie outside of this folder."""
    raise RuntimeError("stratalloc has no source distribution: build a wheel from the repository, with `pip wheel ./python`")
