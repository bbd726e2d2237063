"""Memory beyond the device: tensors whose bytes go to the host or a disk and come back, at the same address.

    with stratalloc.tag("weights"):
        model = Model().cuda()
    stratalloc.sleep({"weights": "save", "kv": "drop"})    # the device's memory is others'
    stratalloc.wake()                                      # every tensor is where it was

Which tiers there are is configured: `stratalloc.torch.enable("tiers:host=32GiB")`, or the same in STRATALLOC_CONF.
"""

import contextlib
import ctypes
import dataclasses

from . import _native
from ._native import call, handle

__all__ = [
    "Residency",
    "is_evictable",
    "offload",
    "on_residency",
    "pin",
    "prefetch",
    "residency",
    "restore",
    "sleep",
    "tag",
    "tier_stats",
    "wake",
]


@dataclasses.dataclass(frozen=True)
class Residency:
    """Where a tensor's bytes are."""

    #: "resident", "evicting", "host", "spilling", "disk", "restoring", "dropped" or "peer".
    state: str
    #: What the memory is for; "none" where it was given no tag.
    tag: str
    #: Bytes of the storage.
    bytes: int
    #: The device's number.
    device: int
    #: How many pins hold it on the device.
    pins: int


# ---- tags


def _tag_number(name):
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"a tag is a text such as 'weights', not {name!r}")
    number = ctypes.c_uint32()
    call("tag", handle(), name.encode(), ctypes.byref(number))
    return number.value


def _known_tag(name):
    """The number of a tag that memory was given: a misspelt one must not be taken for a new one."""
    number = _tag_number(name) if name in _used else None
    if number is None:
        known = ", ".join(sorted(_used)) or "none was used yet"
        raise ValueError(f"there is no tag {name!r}; known tags: {known}")
    return number


_used = {}


class tag(contextlib.ContextDecorator):
    """What this thread allocates inside is for `name`, and can leave the device: tensors, one by one, not whole segments. They leave when
    `sleep` or `offload` says so, and come back at the same address. What other threads allocate meanwhile, such as gradients of a
    backward pass, is not tagged.

    `codec` says how the bytes are kept: "none", "lossless", or "int8" and "int4", which lose precision. `evictable=False` only names what
    the memory is for. `automatic=True` lets a tensor leave when another request finds no room: only for tensors that are pinned
    (`stratalloc.pin`) while kernels use them."""

    def __init__(self, name, *, codec="none", evictable=True, automatic=False):
        if codec not in _native.CODECS:
            raise ValueError(f"codec is one of {', '.join(_native.CODECS)}, not {codec!r}")
        self.name = name
        self._options = None
        if evictable:
            self._options = _native.sized(_native.Evictable, codec=_native.CODECS[codec], automatic=automatic)

    def __enter__(self):
        number = _tag_number(self.name)
        _used[self.name] = number
        call("push_tag", handle(), number, None if self._options is None else ctypes.byref(self._options))
        return self

    def __exit__(self, *reason):
        call("pop_tag", handle())


@contextlib.contextmanager
def untagged():
    """What this thread allocates inside has no tag, whatever is around."""
    call("push_tag", handle(), 0, None)
    try:
        yield
    finally:
        call("pop_tag", handle())


# ---- what a call is about


def _pointer(tensor):
    """The first byte of a tensor's storage."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"a tensor is wanted, not {type(tensor).__name__}")
    if not tensor.is_cuda:
        raise ValueError(f"the tensor is on {tensor.device}, not on a CUDA device")
    return tensor.untyped_storage().data_ptr()


def _selection(what):
    """`what` as the C library has it: a tensor, a tag's name, or None for all."""
    if what is None:
        return _native.ALL, 0
    if isinstance(what, str):
        return _native.TAG, _known_tag(what)
    return _native.POINTER, _pointer(what)


def _stream(device, stream):
    import torch

    return (stream or torch.cuda.current_stream(device)).cuda_stream


# ---- moving


def offload(what=None):
    """Sends a tensor, all tensors of a tag, or all evictable ones to a tier, behind what their streams have been given to do. Their memory is
    the device's again when this returns. Pinned tensors stay."""
    call("offload", handle(), *_selection(what))


def restore(what=None):
    """Brings a tensor, all tensors of a tag, or all evictable ones back."""
    call("restore", handle(), *_selection(what))


def prefetch(tensor, stream=None):
    """Begins to bring a tensor back, for work on `stream`, by default the current one: what is submitted to it after this finds the bytes. Does
    not wait."""
    call("prefetch", handle(), _pointer(tensor), _stream(tensor.device, stream))


@contextlib.contextmanager
def pin(tensor, stream=None):
    """Brings a tensor back for work on `stream`, by default the current one, and holds it on the device inside."""
    held = ctypes.c_void_p()
    call("pin", handle(), _pointer(tensor), _stream(tensor.device, stream), ctypes.byref(held))
    try:
        yield
    finally:
        call("unpin", held)


def sleep(tags=None, *, release=True):
    """Sends evictable tensors away, so that others can have the device's memory. `tags` says what becomes of each tag's tensors: "save" sends the
    bytes to a tier, "keep" leaves them on the device, "drop" gives the contents up, as is right for a KV cache. Tensors of other tags
    are saved; None saves all. `wake` undoes it. A tensor must not be used in between. Sleeping twice raises TierError and changes nothing.

    `release=False` keeps the memory in this process, for its other tensors."""
    import torch

    plan = dict(tags or {})
    fates = (_native.Fate * len(plan))()
    for entry, (name, fate) in zip(fates, plan.items()):
        if fate not in _native.FATES:
            raise ValueError(f"what becomes of tag {name!r} is one of {', '.join(_native.FATES)}, not {fate!r}")
        entry.tag, entry.fate = _known_tag(name), _native.FATES[fate]
    struct = _native.sized(_native.SleepPlan, otherwise=_native.FATES["save"], count=len(plan), tags=fates)
    call("sleep", handle(), ctypes.byref(struct))
    if release:
        torch.cuda.empty_cache()


def wake(tags=None):
    """Brings back what `sleep` sent away: all of it, or what has one of the tags. Contents that were dropped are undefined; the address is the
    same for all."""
    if isinstance(tags, str):
        tags = [tags]
    if tags is None:
        call("wake", handle(), None, 0)
        return
    numbers = (ctypes.c_uint32 * max(1, len(tags)))(*[_known_tag(name) for name in tags])
    call("wake", handle(), numbers, len(tags))


# ---- what is where


def residency(tensor):
    """Where a tensor's bytes are. ValueError for a tensor that cannot leave the device: one that was not made inside of
    `stratalloc.tag`."""
    found = _native.sized(_native.Residency)
    call("residency", handle(), _pointer(tensor), ctypes.byref(found))
    name = _native.tag_name(found.tag)
    return Residency(_native.STATES[found.state], name, found.bytes, found.device, found.pins)


def is_evictable(tensor):
    """Whether a tensor can leave the device: whether it was made inside of `stratalloc.tag`."""
    try:
        residency(tensor)
    except ValueError:
        return False
    return True


def tier_stats(device=0):
    """What tiers hold and have moved for a device: bytes, counts and nanoseconds since the start, and each tier with its name, capacity and
    use."""
    stats = _native.sized(_native.TierStats)
    call("get_tier_stats", handle(), device, ctypes.byref(stats))
    numbers = {name: getattr(stats, name) for name, _ in _native.TierStats._fields_ if name not in ("struct_size", "tiers")}
    numbers["tiers"] = [_tier(device, index) for index in range(stats.tiers)]
    return numbers


def _tier(device, index):
    tier = _native.sized(_native.Tier)
    call("get_tier", handle(), device, index, ctypes.byref(tier))
    told = {name: getattr(tier, name) for name, _ in _native.Tier._fields_ if name not in ("struct_size", "name")}
    return {"name": tier.name.decode(), **told}


def check_tier(name):
    """Raises ValueError for a tier that is not configured. None is any."""
    known = [tier["name"] for tier in tier_stats()["tiers"]]
    if not known:
        raise ValueError("no tiers are configured: enable stratalloc with 'tiers:host=32GiB', for instance")
    if name is not None and name not in known:
        raise ValueError(f"there is no tier {name!r}; configured: {', '.join(known)}")


_observers = {}


def on_residency(callback):
    """Has `callback(event, address, size)` called when memory is about to leave an address ("unmapping") and when it is back ("remapped"): for what
    has registered the address with somebody, such as NCCL or an RDMA card. Called on the thread that moves it; it must not move tensors
    itself. Returns a function that ends it."""
    if not callable(callback):
        raise TypeError(f"a function is wanted, not {type(callback).__name__}")

    @_native.RESIDENCY_OBSERVER
    def tell(_context, event, address, size):
        # What it raises has nobody to go to: Python prints it.
        callback(_native.EVENTS[event], address, size)

    number = ctypes.c_uint64()
    call("add_residency_observer", handle(), tell, None, ctypes.byref(number))
    # Must live as long as it may be called.
    _observers[number.value] = tell

    def remove():
        if number.value in _observers:
            call("remove_residency_observer", handle(), number.value)
            del _observers[number.value]

    return remove
