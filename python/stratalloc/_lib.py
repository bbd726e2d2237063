"""Finds libstratalloc.so, and the shim for the pluggable allocator."""

import ctypes
import os
from pathlib import Path

from .errors import LibraryNotFound

PACKAGE = Path(__file__).resolve().parent

#: Names a library to use in place of the one that the package carries.
LIBRARY_VARIABLE = "STRATALLOC_LIBRARY"

#: As `STRATALLOC_ABI_VERSION` of include/stratalloc.h.
ABI_VERSION = 0

_SYSTEM_NAMES = ("libstratalloc.so.0", "libstratalloc.so")


def _candidates():
    chosen = os.environ.get(LIBRARY_VARIABLE)
    if chosen:
        # Nothing else will do where somebody named one.
        return [chosen]
    carried = PACKAGE / "libstratalloc.so"
    return ([str(carried)] if carried.exists() else []) + list(_SYSTEM_NAMES)


def find():
    """The library's path or name, and the loaded library. Raises LibraryNotFound with what was tried."""
    tried = []
    for name in _candidates():
        try:
            library = ctypes.CDLL(name)
        except OSError as error:
            tried.append(f"  {name}: {error}")
            continue
        try:
            version = library.stratalloc_abi_version
        except AttributeError:
            tried.append(f"  {name}: it is not stratalloc's, it has no stratalloc_abi_version")
            continue
        version.restype = ctypes.c_uint32
        if version() != ABI_VERSION:
            tried.append(f"  {name}: its ABI version is {version()}, this package is for {ABI_VERSION}")
            continue
        return name, library
    raise LibraryNotFound(
        "libstratalloc.so was not found. Install the wheel, run `cargo xtask install`, or set "
        f"{LIBRARY_VARIABLE} to its path. Tried:\n" + "\n".join(tried)
    )


def find_shim():
    """The shim's path, or None. It is compiled when the wheel is built, if there is a C++ compiler then."""
    path = PACKAGE / "libstratalloc_pluggable.so"
    return str(path) if path.exists() else None


def version():
    """The library's version, as text."""
    _, library = find()
    library.stratalloc_version.restype = ctypes.c_char_p
    return library.stratalloc_version().decode()
