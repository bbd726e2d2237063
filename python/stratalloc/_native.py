"""The calls of the C library that Python makes by itself, over the process's own allocator. The structs are those of stratalloc.h."""

import ctypes
import functools

from . import _lib
from .errors import NotEnabled, StratallocError, TierError

#: As in stratalloc.h.
STATES = ("resident", "evicting", "host", "spilling", "disk", "restoring", "dropped", "peer")
CODECS = {"none": 0, "lossless": 1, "int8": 2, "int4": 3}
FATES = {"save": 0, "keep": 1, "drop": 2}
ALL, TAG, POINTER = 0, 1, 2
EVENTS = ("unmapping", "remapped")

_OK = 0
_OUT_OF_MEMORY = (1, 2, 3)
_INVALID_POINTER = (4, 5, 6)
_INVALID_ARGUMENT = 7
_TIERS = (15, 16, 17, 18, 19)

_Size = ctypes.c_size_t


class Evictable(ctypes.Structure):
    _fields_ = [
        ("struct_size", _Size),
        ("codec", ctypes.c_uint32),
        ("automatic", ctypes.c_bool),
        ("recompute", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
        ("drop_context", ctypes.c_void_p),
    ]


class Fate(ctypes.Structure):
    _fields_ = [("tag", ctypes.c_uint32), ("fate", ctypes.c_uint32)]


class SleepPlan(ctypes.Structure):
    _fields_ = [
        ("struct_size", _Size),
        ("otherwise", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("tags", ctypes.POINTER(Fate)),
    ]


class Residency(ctypes.Structure):
    _fields_ = [
        ("struct_size", _Size),
        ("address", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("device", ctypes.c_int32),
        ("tag", ctypes.c_uint32),
        ("state", ctypes.c_uint32),
        ("pins", ctypes.c_uint32),
    ]


class TierStats(ctypes.Structure):
    _fields_ = [("struct_size", _Size)]


RESIDENCY_OBSERVER = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint64)


def sized(kind, **fields):
    """A struct that says its size."""
    return kind(struct_size=ctypes.sizeof(kind), **fields)


@functools.cache
def library():
    """The C library, its functions declared."""
    _, found = _lib.find()
    found.stratalloc_last_error.restype = ctypes.c_char_p
    pointer, number, u32, size = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32, _Size
    signatures = {
        "default": [ctypes.POINTER(pointer)],
        "device_count": [pointer],
        "empty_cache": [pointer, number, pointer],
        "tag": [pointer, ctypes.c_char_p, ctypes.POINTER(u32)],
        "push_tag": [pointer, u32, ctypes.POINTER(Evictable)],
        "pop_tag": [pointer],
    }
    for name, arguments in signatures.items():
        getattr(found, f"stratalloc_{name}").argtypes = arguments
    return found


def call(name, *arguments):
    """Calls `stratalloc_<name>`, and raises what its status means."""
    status = getattr(library(), f"stratalloc_{name}")(*arguments)
    if status != _OK:
        _fail(status)


def _fail(status):
    why = library().stratalloc_last_error().decode(errors="replace")
    if status in _OUT_OF_MEMORY:
        import torch

        raise torch.OutOfMemoryError(why)
    if status in _INVALID_POINTER or status == _INVALID_ARGUMENT:
        raise ValueError(why)
    raise (TierError if status in _TIERS else StratallocError)(why)


@functools.cache
def _default():
    made = ctypes.c_void_p()
    call("default", ctypes.byref(made))
    return made


def handle():
    """The process's own allocator, if torch's memory comes from it."""
    from . import torch as strata_torch

    if strata_torch.enabled() is None:
        raise NotEnabled("stratalloc is not enabled in this process: call stratalloc.torch.enable() before anything uses CUDA")
    return _default()


def tag_name(number):
    """A tag's name."""
    text = ctypes.create_string_buffer(256)
    call("tag_name", handle(), number, text, len(text))
    return text.value.decode(errors="replace")


class Stash:
    """Bytes of device memory in a tier, without an address of their own: copied there in stream order, fetched as often as wanted, forgotten
    when this goes."""

    __slots__ = ("_handle",)

    def __init__(self, pointer, size, stream, tier):
        self._handle = None
        made = ctypes.c_void_p()
        call("stash", handle(), pointer, size, stream, None if tier is None else tier.encode(), ctypes.byref(made))
        self._handle = made

    def may_free(self, wait):
        """Whether the device's memory may be freed, in stream order. With `wait`, it may be when this returns."""
        may = ctypes.c_bool()
        call("stash_may_free", self._handle, wait, ctypes.byref(may))
        return may.value

    def fetch(self, pointer, stream):
        """Begins to copy the bytes to `pointer`, once `stream` has done what it was given so far. One copy at a time: `order` first."""
        call("stash_fetch", self._handle, pointer, stream)

    def order(self, stream):
        """Has `stream` wait, on the device, for the copy that `fetch` began."""
        call("stash_order", self._handle, stream)

    def __del__(self):
        # At the interpreter's end, what this calls may have gone.
        if self._handle is not None and library is not None:
            library().stratalloc_stash_drop(self._handle)
