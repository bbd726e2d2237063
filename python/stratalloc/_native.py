"""The calls of the C library that Python makes by itself, over the process's own allocator. The structs are those of stratalloc.h."""

import ctypes
import functools

from . import _lib
from .errors import NotEnabled, StratallocError, TierError

#: As in stratalloc.h.
STATES = ("resident", "evicting", "host", "spilling", "disk", "peer", "elsewhere", "restoring", "dropped")
ACTIONS = {"save": 0, "keep": 1, "drop": 2}
BLOCK, TAG, ALL = 0, 1, 2
EVENTS = ("unmapping", "remapped")

_OK = 0
_OUT_OF_MEMORY = (1, 2, 3)
_INVALID_POINTER = (4, 5, 6)
_INVALID_ARGUMENT = 7
_TIERS = (15, 16, 17, 18, 19)

_Size = ctypes.c_size_t
_U32, _U64 = ctypes.c_uint32, ctypes.c_uint64
_Pointer = ctypes.c_void_p


class Evictable(ctypes.Structure):
    _fields_ = [
        ("struct_size", _Size),
        ("codec", ctypes.c_char_p),
        ("only_when_asked", ctypes.c_bool),
        ("recompute", _Pointer),
        ("context", _Pointer),
        ("drop_context", _Pointer),
        ("tier", ctypes.c_char_p),
        ("recompute_ns", _U64),
    ]


class SleepTag(ctypes.Structure):
    _fields_ = [("tag", _U32), ("action", _U32)]


class SleepPlan(ctypes.Structure):
    _fields_ = [("struct_size", _Size), ("otherwise", _U32), ("tag_count", _U32), ("tags", ctypes.POINTER(SleepTag))]


class Block(ctypes.Structure):
    _fields_ = [
        ("struct_size", _Size),
        ("address", _Pointer),
        ("bytes", _Size),
        ("requested", _Size),
        ("device", ctypes.c_int32),
        ("tag", _U32),
        ("stream", _Pointer),
        ("pool", _U64 * 2),
        ("state", _U32),
        ("is_dedicated", ctypes.c_bool),
    ]


class TierStats(ctypes.Structure):
    _fields_ = [
        ("struct_size", _Size),
        *((name, _U64) for name in (
            "tiers", "blocks", "requested", "resident", "pinned", "away", "dropped", "moving", "evictions", "evicted_bytes", "drops",
            "spills", "restores", "restored_bytes", "recomputes", "failures", "stall_ns", "metadata",
            "device_synchronizations",
        )),
        ("asleep", ctypes.c_bool),
    ]  # fmt: skip


class Tier(ctypes.Structure):
    _fields_ = [
        ("struct_size", _Size),
        ("state", _U32),
        ("name", ctypes.c_char * 60),
        *((name, _U64) for name in ("capacity", "used", "bytes_in", "bytes_out")),
    ]


RESIDENCY_OBSERVER = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint64)


def sized(kind, **fields):
    """A struct that says its size."""
    return kind(struct_size=ctypes.sizeof(kind), **fields)


@functools.cache
def library():
    """The C library, its functions declared."""
    _, found = _lib.find()
    found.stratalloc_last_error.restype = ctypes.c_char_p
    pointer, number, out = _Pointer, ctypes.c_int32, _Pointer
    signatures = {
        "default": [out],
        "tag": [pointer, ctypes.c_char_p, out],
        "push_tag": [pointer, _U32, pointer],
        "pop_tag": [pointer],
        "offload": [pointer, _U32, _U64],
        "restore": [pointer, _U32, _U64],
        "prefetch": [pointer, pointer, pointer],
        "pin": [pointer, pointer, pointer, out],
        "unpin": [pointer],
        "sleep": [pointer, pointer],
        "wake": [pointer, pointer, _Size],
        "follow_restores": [pointer, number, pointer],
        "residency": [pointer, pointer, out],
        "find": [pointer, pointer, out],
        "get_tier_stats": [pointer, number, out],
        "get_tier": [pointer, number, _U32, out],
        "add_residency_observer": [pointer, RESIDENCY_OBSERVER, pointer, out],
        "remove_residency_observer": [pointer, _U64],
        "stash": [pointer, pointer, _Size, pointer, ctypes.c_char_p, out],
        "stash_may_free": [pointer, ctypes.c_bool, out],
        "stash_fetch": [pointer, pointer, pointer],
        "stash_order": [pointer, pointer],
        "stash_drop": [pointer],
    }
    # These end something, and cannot fail.
    endings = ("unpin", "stash_drop")
    for name, arguments in signatures.items():
        function = getattr(found, f"stratalloc_{name}")
        function.argtypes = arguments
        function.restype = None if name in endings else ctypes.c_int
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
