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


#: Tags that were used, with their numbers.
_used = {}


class tag(contextlib.ContextDecorator):
    """What this thread allocates inside is for `name`, and can leave the device: tensors, one by one, not whole segments. They leave when
    `sleep` or `offload` says so, and come back at the same address. What other threads allocate meanwhile, such as gradients of a
    backward pass, is not tagged.

    `codec` says what the bytes are stored as: "none", "lossless16" for values of 16 bits, or "int8-bf16" and its like, which are fewer bytes and
    lose precision. `tier` names the fastest tier that they may go to. `evictable=False` only names what the memory is for. `automatic=True`
    lets a tensor leave when another request finds no room: only for tensors that are pinned (`stratalloc.pin`) while kernels use them."""

    def __init__(self, name, *, codec="none", tier=None, evictable=True, automatic=False):
        if not isinstance(codec, str):
            raise ValueError(f"codec is a name such as 'lossless16', not {codec!r}")
        self.name = name
        self._tier = tier
        self._options = None
        if evictable:
            self._options = _native.sized(_native.Evictable, codec=codec.encode(), only_when_asked=not automatic)

    def __enter__(self):
        number = _tag_number(self.name)
        if self._options is not None:
            check_tier(self._tier)
            self._options.tier = self._tier and self._tier.encode()
        call("push_tag", handle(), number, None if self._options is None else ctypes.byref(self._options))
        _used[self.name] = number
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
    return _native.BLOCK, _pointer(what)


def _stream(device, stream):
    import torch

    return (stream or torch.cuda.current_stream(device)).cuda_stream


# ---- moving


def _devices():
    """Devices that have tensors which can leave."""
    import torch

    return [device for device in range(torch.cuda.device_count()) if tier_stats(device)["blocks"] > 0]


def _before_leaving():
    """The library knows the streams that tensors were made on, and those recorded with them. The current one is used by programs that say nothing."""
    import torch

    for device in _devices():
        torch.cuda.current_stream(device).synchronize()


def _after_coming_back():
    """What came back is there for the streams that tensors were made on. Now for the current ones as well."""
    import torch

    for device in _devices():
        call("follow_restores", handle(), device, torch.cuda.current_stream(device).cuda_stream)


def offload(what=None):
    """Sends a tensor with those that share its memory, all tensors of a tag, or all evictable ones to a tier, behind what the current stream, and
    those that they were made on or recorded with, have been given to do. Their memory is the device's again when this returns. Pinned
    tensors stay, which is a TierError where one was named."""
    selected = _selection(what)
    _before_leaving()
    call("offload", handle(), *selected)


def restore(what=None):
    """Brings a tensor, all tensors of a tag, or all evictable ones back, for work that is submitted to the current stream from now on."""
    call("restore", handle(), *_selection(what))
    _after_coming_back()


def prefetch(tensor, stream=None):
    """Begins to bring a tensor back for work on `stream`, by default the current one. Does not wait: `restore` or `pin` it before using it."""
    call("prefetch", handle(), _pointer(tensor), _stream(tensor.device, stream))


@contextlib.contextmanager
def pin(tensor, stream=None):
    """Brings a tensor back for work on `stream`, by default the current one, and holds it on the device inside."""
    held = ctypes.c_void_p()
    call("pin", handle(), _pointer(tensor), _stream(tensor.device, stream), ctypes.byref(held))
    try:
        yield
    finally:
        _native.library().stratalloc_unpin(held)


def sleep(tags=None):
    """Sends evictable tensors away, and gives all free memory back to the devices, so that other programs can have it. `tags` says what becomes of
    each tag's tensors: "save" sends the bytes to a tier, "keep" leaves them on the device, "drop" gives the contents up, as is right for a
    KV cache. Tensors of other tags are saved; None saves all. `wake` undoes it; a tensor must not be used in between.

    Sleeping twice, a pinned tensor, or a tier without room is a TierError, and everything is where it was."""
    plan = dict(tags or {})
    entries = (_native.SleepTag * len(plan))()
    for entry, (name, action) in zip(entries, plan.items()):
        if action not in _native.ACTIONS:
            raise ValueError(f"what becomes of tag {name!r} is one of {', '.join(_native.ACTIONS)}, not {action!r}")
        entry.tag, entry.action = _known_tag(name), _native.ACTIONS[action]
    struct = _native.sized(_native.SleepPlan, otherwise=_native.ACTIONS["save"], tag_count=len(plan), tags=entries)
    handle()
    _before_leaving()
    call("sleep", handle(), ctypes.byref(struct))


def wake(tags=None):
    """Brings back what `sleep` sent away: all of it, or what has one of the tags; for work that is submitted to the current stream from now on.
    Contents that were dropped are undefined. Every address is as it was."""
    if tags is None:
        call("wake", handle(), None, 0)
    else:
        names = [tags] if isinstance(tags, str) else list(tags)
        numbers = (ctypes.c_uint32 * max(1, len(names)))(*[_known_tag(name) for name in names])
        call("wake", handle(), numbers, len(names))
    _after_coming_back()


# ---- what is where


def residency(tensor):
    """Where a tensor's bytes are. ValueError for a tensor that cannot leave the device: one that was not made inside of
    `stratalloc.tag`."""
    pointer, state = _pointer(tensor), ctypes.c_uint32()
    call("residency", handle(), pointer, ctypes.byref(state))
    block = _native.sized(_native.Block)
    call("find", handle(), pointer, ctypes.byref(block))
    name = next((name for name, number in _used.items() if number == block.tag), "none")
    return Residency(_native.STATES[state.value], name, block.requested, block.device)


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
