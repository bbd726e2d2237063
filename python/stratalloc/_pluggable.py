"""The way without a compiler: torch's CUDAPluggableAllocator, with every hook that it has.

Two hooks are C++: the one that opens a graph's pool takes a std::function, and an allocation that fails has to throw, since
torch takes a null pointer for a tensor at address 0. A shim of a few lines has both. It is compiled when the wheel is built and
needs nothing of torch. Without it there is no fallback: it would corrupt memory in silence.
"""

import ctypes
import functools
from pathlib import Path

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
    _register(torch)
    for name in filter(lambda name: hasattr(torch.cuda.memory, name), _NO_EFFECT):
        setattr(torch.cuda.memory, name, _refusing(name))
        if hasattr(torch.cuda, name):
            setattr(torch.cuda, name, _refusing(name))


#: torch's pluggable allocator accepts these and does nothing.
_NO_EFFECT = ("caching_allocator_enable", "caching_allocator_disabled")


def _refusing(name):
    def refuse(*arguments, **options):
        raise NotImplementedError(
            f"torch.cuda.memory.{name} has no effect on PyTorch's pluggable allocator, which stratalloc uses here for want of a "
            "C++ compiler"
        )

    refuse.__name__ = name
    return refuse


def _register(torch):
    """Makes torch.accelerator.memory_* ask the allocator that is installed, and so raise, rather than the native one, which would
    say that nothing is allocated. torch has no Python function for it; these are its C++ functions, by their symbols."""
    folder = Path(torch.__file__).parent / "lib"
    try:
        registry = ctypes.CDLL(str(folder / "libc10.so"))._ZN3c1012SetAllocatorENS_10DeviceTypeEPNS_9AllocatorEh
        cuda = ctypes.CDLL(str(folder / "libc10_cuda.so"))
        installed = ctypes.c_void_p.in_dll(cuda, "_ZN3c104cuda20CUDACachingAllocator9allocatorE")
    except (OSError, AttributeError, ValueError):
        _refuse_accelerator(torch)
        return
    registry.restype = None
    registry.argtypes = [ctypes.c_int8, ctypes.c_void_p, ctypes.c_uint8]
    device_type_cuda = 1
    registry(device_type_cuda, installed, 1)


def _refuse_accelerator(torch):
    memory = torch.accelerator.memory
    for name in memory.__all__:
        if name in ("empty_host_cache", "get_memory_info"):
            continue

        @functools.wraps(getattr(memory, name))
        def refuse(*arguments, name=name):
            raise NotImplementedError(f"torch.accelerator.{name} does not reach PyTorch's pluggable allocator; use torch.cuda")

        setattr(memory, name, refuse)
        setattr(torch.accelerator, name, refuse)
