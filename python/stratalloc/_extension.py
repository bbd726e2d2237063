"""Loads the compiled extension and installs its allocator in torch."""

import ctypes

from . import _build
from .errors import CompilationFailed, EnabledTooLate, InvalidConfig, LibraryNotFound, StratallocError

TEXT_BYTES = 4096

#: As `Result` in csrc/install.cpp.
_FAILURES = {1: EnabledTooLate, 2: LibraryNotFound, 3: InvalidConfig, 4: StratallocError}

_ADVICE = {
    1: ". Enable stratalloc before anything uses CUDA.",
    3: "",
}

_loaded = None


def install(torch, library_path, conf, verbose=False):
    """Compiles if need be, loads, installs. Raises a typed error; torch is unchanged then."""
    global _loaded
    path = _build.extension(torch, verbose)
    try:
        extension = ctypes.CDLL(str(path))
    except OSError as error:
        raise CompilationFailed(f"The compiled extension cannot be loaded: {error}. Remove {path} to have it compiled anew.") from error
    install_function = extension.stratalloc_torch_install
    install_function.restype = ctypes.c_int
    install_function.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
    text = ctypes.create_string_buffer(TEXT_BYTES)
    conf_bytes = None if conf is None else conf.encode()
    result = install_function(library_path.encode(), conf_bytes, text, TEXT_BYTES)
    if result != 0:
        kind = _FAILURES.get(result, StratallocError)
        raise kind(text.value.decode(errors="replace") + _ADVICE.get(result, ""))
    _loaded = extension


def shareable(begins):
    """Begins or ends memory to share in the calling thread."""
    _loaded.stratalloc_torch_shareable(int(begins))
