"""What a program may ask of the allocator beyond PyTorch's own functions: sharing memory, and plans of its steps."""

import ctypes

from . import _lib
from . import torch as _torch
from .errors import StratallocError

_OK = 0

_library = None


class _Limits(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("bytes", ctypes.c_uint64), ("time_ns", ctypes.c_uint64)]


_REPORTED = ("pages", "meshed", "chunks", "paired", "copied", "released")


class _Report(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), *((name, ctypes.c_uint64) for name in _REPORTED)]


def _allocator():
    """The library, and the process's own allocator in it: the one that PyTorch runs on."""
    global _library
    if _torch.enabled() is None:
        raise StratallocError("PyTorch does not run on stratalloc: call stratalloc.torch.enable() first.")
    if _library is None:
        path, _ = _lib.find()
        # Held during calls, the interpreter's lock keeps other Python threads from submitting work meanwhile.
        library = ctypes.PyDLL(path)
        library.stratalloc_last_error.restype = ctypes.c_char_p
        _library = library
    handle = ctypes.c_void_p()
    _must(_library.stratalloc_default(ctypes.byref(handle)))
    return _library, handle


def _must(status):
    if status != _OK:
        raise StratallocError(_library.stratalloc_last_error().decode(errors="replace"))


def _device(device):
    """A device's number: of what torch takes for one, or the current one."""
    import torch

    if isinstance(device, int):
        number = device
    else:
        number = torch.cuda._utils._get_device_index(device, optional=True)
    if not 0 <= number < torch.cuda.device_count():
        raise ValueError(f"there is no CUDA device {number}")
    return number


def defragment(device=None, *, max_bytes=None, max_seconds=None):
    """Gives memory back to the device while every tensor keeps its address: pages and chunks that are used in part, at different places, share
    memory from then on, and the contents of one are copied.

    Waits until the device has done everything. No thread may submit work to it until this returns: other Python threads are held up,
    but threads that run without the interpreter's lock are for the program to stop, such as a backward pass of another thread. Memory that is registered
    with other devices, such as network cards, must not be moved: see `stratalloc.torch.shareable`. Raises StratallocError during a capture.

    Args:
        device: which one, as PyTorch's functions take it; None is the current one.
        max_bytes: how many bytes are copied at most.
        max_seconds: nothing more is begun after this time.

    Returns a dict: `pages` and `chunks` that were looked at, how many of them share memory now (`meshed`, `paired`), bytes `copied` and `released`.
    """
    limits = _Limits(ctypes.sizeof(_Limits), _bound("max_bytes", max_bytes, 1), _bound("max_seconds", max_seconds, 1e9))
    number = _device(device)
    import torch

    if torch.cuda.is_current_stream_capturing():
        raise StratallocError("a capture is under way, which waiting for the device would break: defragment before or after it.")
    # The long wait, without the interpreter's lock: functions that the device waits for may want it.
    torch.cuda.synchronize(number)
    library, handle = _allocator()
    report = _Report(ctypes.sizeof(_Report))
    _must(library.stratalloc_defragment(handle, number, ctypes.byref(limits), ctypes.byref(report)))
    return {name: getattr(report, name) for name in _REPORTED}


def _bound(name, value, scale):
    """As the library has it: 0 is none."""
    if value is None:
        return 0
    if not value > 0:
        raise ValueError(f"{name} is above 0, or None, not {value!r}")
    return min(max(int(value * scale), 1), 2**64 - 1)


def step():
    """Says that a step of the program begins, of training or of decoding. With plans on (`plan:on`), steps are then known after one rather than after
    two; without plans it does nothing."""
    library, handle = _allocator()
    _must(library.stratalloc_step(handle))


def export_plan(device=None):
    """The steps that plans are made for, as bytes for `import_plan` in the program's next run."""
    number = _device(device)
    library, handle = _allocator()
    size = ctypes.c_size_t()
    buffer = None
    # It may have grown between two calls.
    while True:
        room = len(buffer) if buffer is not None else 0
        _must(library.stratalloc_export_plan(handle, number, buffer, ctypes.c_size_t(room), ctypes.byref(size)))
        if size.value <= room:
            return buffer.raw[: size.value]
        buffer = ctypes.create_string_buffer(size.value)


def import_plan(plan, device=None):
    """Takes over what `export_plan` gave: its steps are planned from their first time on. Anything else raises StratallocError, and changes nothing.
    Returns how many steps there are."""
    number = _device(device)
    plan = bytes(plan)
    library, handle = _allocator()
    steps = ctypes.c_size_t()
    _must(library.stratalloc_import_plan(handle, number, plan, ctypes.c_size_t(len(plan)), ctypes.byref(steps)))
    return steps.value
