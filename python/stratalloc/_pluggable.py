"""The way without a compiler: torch's CUDAPluggableAllocator, with every hook that it has.

Two hooks are C++: the one that opens a graph's pool takes a std::function, and an allocation that fails has to throw, since
torch takes a null pointer for a tensor at address 0. A shim of a few lines has both. It is compiled when the wheel is built and
needs nothing of torch. Without it there is no fallback: it would corrupt memory in silence.
"""

import ctypes

from . import _lib
from .errors import CompilerMissing, InvalidConfig, LibraryNotFound

#: torch's setter, the shim's function.
_HOOKS = (
    ("set_init_fn", "stratalloc_shim_init"),
    ("set_reset_fn", "stratalloc_shim_empty_cache"),
    ("set_memory_fraction_fn", "stratalloc_shim_memory_fraction"),
    ("set_base_alloc_fn", "stratalloc_shim_base_alloc"),
    ("set_record_stream_fn", "stratalloc_shim_record_stream"),
    ("set_begin_allocate_to_pool", "stratalloc_shim_begin_allocate_to_pool"),
    ("set_end_allocate_to_pool_fn", "stratalloc_shim_end_allocate_to_pool"),
    ("set_release_pool", "stratalloc_shim_release_pool"),
)

_kept = []


def install(torch, library_path, library, conf):
    """Installs the pluggable allocator. Raises a typed error; torch is unchanged then."""
    path = _lib.find_shim()
    if path is None:
        raise CompilerMissing(
            "The pluggable allocator needs libstratalloc_pluggable.so, which this installation lacks: no C++ compiler was there "
            "when the wheel was built. Without it a graph's memory could be reused while the graph needs it, so stratalloc is "
            "not enabled. Install a C++ compiler, or a wheel that was built with one."
        )
    shim = ctypes.CDLL(path)
    shim.stratalloc_shim_load.restype = ctypes.c_char_p
    problem = shim.stratalloc_shim_load(library_path.encode())
    if problem:
        raise LibraryNotFound(problem.decode(errors="replace"))
    if conf is not None:
        configure = library.stratalloc_configure_default
        configure.argtypes = [ctypes.c_char_p]
        if configure(conf.encode()) != 0:
            library.stratalloc_last_error.restype = ctypes.c_char_p
            raise InvalidConfig(library.stratalloc_last_error().decode(errors="replace"))
    allocator = torch.cuda.memory.CUDAPluggableAllocator(path, "stratalloc_shim_alloc", "stratalloc_shim_free")
    inner = allocator.allocator()
    for setter, function in _HOOKS:
        address = ctypes.cast(getattr(shim, function), ctypes.c_void_p).value
        getattr(inner, setter)(address)
    torch.cuda.memory.change_current_allocator(allocator)
    _kept.extend([shim, allocator])
