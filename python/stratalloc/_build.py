"""Compiles the extension against the user's torch, once for each version, and keeps it.

PyTorch gives no stable ABI for allocators: the virtual functions differ between its minor versions. So the extension is
compiled where it is used, which takes some ten seconds and 440 MB.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from . import _lib
from .errors import CompilationFailed, CompilerMissing, UnsupportedTorch

SOURCES = _lib.PACKAGE / "csrc"

#: Versions that were compiled and pass the tests.
TESTED = ("2.11", "2.15")

#: Set to 1 to try another version at your own risk.
UNTESTED_VARIABLE = "STRATALLOC_TORCH_UNTESTED"
#: Where compiled extensions are kept, in place of the user's cache folder.
CACHE_VARIABLE = "STRATALLOC_CACHE"
#: A folder with cuda_runtime_api.h, before all others.
INCLUDE_VARIABLE = "STRATALLOC_CUDA_INCLUDE"

SECONDS_MAX = 600


def check_version(torch):
    """Raises UnsupportedTorch for a version that was never compiled."""
    minor = ".".join(torch.__version__.split("+")[0].split(".")[:2])
    if minor not in TESTED and os.environ.get(UNTESTED_VARIABLE) != "1":
        raise UnsupportedTorch(
            f"stratalloc was never compiled against torch {torch.__version__}; it is tested with "
            f"{', '.join(TESTED)}. Set {UNTESTED_VARIABLE}=1 to try, or pass fallback='only' to use "
            "PyTorch's pluggable allocator, which lacks statistics and snapshots."
        )


def cache_folder():
    """Where compiled extensions are kept."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "stratalloc"


def header_folder():
    """The folder with stratalloc.h: the wheel carries it, the repository has it at its root."""
    for folder in (SOURCES, _lib.PACKAGE.parent.parent / "include"):
        if (folder / "stratalloc.h").exists():
            return folder
    raise CompilerMissing(f"stratalloc.h is neither in {SOURCES} nor in the repository's include/")


def cuda_include():
    """The folder with the CUDA runtime's headers. torch's own dependency nvidia-cuda-runtime has them."""
    tried = []
    for folder in _cuda_folders():
        if folder.joinpath("cuda_runtime_api.h").exists():
            return folder
        tried.append(f"  {folder}")
    raise CompilerMissing(
        "The CUDA runtime's headers were not found. They come with torch's dependency nvidia-cuda-runtime (pip install "
        f"nvidia-cuda-runtime); or set {INCLUDE_VARIABLE} to a folder with cuda_runtime_api.h. Tried:\n" + "\n".join(tried)
    )


def _cuda_folders():
    if os.environ.get(INCLUDE_VARIABLE):
        return [Path(os.environ[INCLUDE_VARIABLE])]
    folders = []
    for entry in sys.path:
        nvidia = Path(entry or ".") / "nvidia"
        folders += sorted(nvidia.glob("cu[0-9]*/include"), reverse=True)
        folders.append(nvidia / "cuda_runtime" / "include")
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            folders.append(Path(os.environ[variable]) / "include")
    folders.append(Path("/usr/local/cuda/include"))
    return [folder for folder in folders if folder.is_dir()]


def compiler():
    """The C++ compiler's command: CXX, or the first that is installed."""
    chosen = os.environ.get("CXX")
    for name in [chosen] if chosen else ["c++", "g++", "clang++"]:
        if shutil.which(name.split()[0] if name.strip() else ""):
            return name.split()
    raise CompilerMissing(
        (f"CXX names {chosen!r}, which is not found." if chosen else "There is no C++ compiler.")
        + " Install one (Debian: apt-get install g++; conda: gxx) or set CXX. stratalloc compiles an extension of 260 KB "
        "for your version of torch, once; fallback='only' does without, and without statistics and snapshots."
    )


def command(torch, compiler_words, output):
    """The compiler's command line."""
    torch_folder = Path(torch.__file__).parent
    return [
        *compiler_words,
        "-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-s",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        "-isystem", str(torch_folder / "include"),
        "-isystem", str(cuda_include()),
        # After the real ones, so that these serve only where nvidia-cuda-crt is absent.
        "-isystem", str(SOURCES / "stubs"),
        "-I", str(header_folder()),
        str(SOURCES / "extension.cpp"),
        "-o", str(output),
        # No RPATH: the process has these loaded.
        "-L", str(torch_folder / "lib"), "-lc10", "-lc10_cuda", "-ltorch_cuda", "-ldl",
    ]  # fmt: skip


def key(torch):
    """Everything that the compiled file depends on, as a name."""
    digest = hashlib.sha256()
    sources = sorted(path for path in SOURCES.rglob("*") if path.suffix in (".cpp", ".h"))
    for path in [*sources, header_folder() / "stratalloc.h"]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(str(torch.version.git_version).encode())
    digest.update(str(torch.version.cuda).encode())
    # A home folder may be shared by machines of several kinds.
    digest.update(platform.machine().encode())
    return f"torch-{torch.__version__}-abi{_lib.ABI_VERSION}-{digest.hexdigest()[:16]}"


def extension(torch, verbose=False):
    """The compiled extension's path; compiles it if need be. One process compiles, the others wait for it."""
    check_version(torch)
    folder = cache_folder()
    target = folder / key(torch) / "stratalloc_torch.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CompilerMissing(
            f"The cache folder {folder} cannot be made ({error.strerror}). Set {CACHE_VARIABLE} to one that can."
        ) from error
    with _locked(target.parent / "lock"):
        if not target.exists():
            _compile(torch, target, verbose)
    return target


def _compile(torch, target, verbose):
    words = compiler()
    handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".so")
    os.close(handle)
    try:
        line = command(torch, words, temporary)
        if verbose:
            print("stratalloc compiles its extension:", " ".join(line), file=sys.stderr, flush=True)
        try:
            result = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompilationFailed(f"The compiler did not run to its end: {error}") from error
        if result.returncode != 0:
            raise CompilationFailed(
                f"{words[0]} failed with status {result.returncode}. Its command was\n  {' '.join(line)}\n"
                f"and it said\n{result.stderr[-8000:]}"
            )
        os.chmod(temporary, 0o755)
        os.replace(temporary, target)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


@contextmanager
def _locked(path):
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
