"""Tensors of a training step in a tier rather than on the device: activations between forward and backward, optimizer state between
steps. Reached as `stratalloc.torch.offload_activations` and `stratalloc.torch.offload_optimizer`."""

import threading
import warnings
import weakref
from collections import deque

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from . import _native, tiers
from .errors import TierError

MIB = 1 << 20

#: Bytes that may be on their way to a disk, and so on the device still, before saving more waits.
LEAVING_MAX = 256 * MIB


class offload_activations(torch.autograd.graph.saved_tensors_hooks):
    """What autograd saves inside goes to a tier as it is saved, and comes back in time for the backward pass. See
    `stratalloc.torch.offload_activations`."""

    def __init__(self, min_bytes=MIB, keep_last=1, prefetch=2, tier=None):
        for name, value, least in (("min_bytes", min_bytes, 1), ("keep_last", keep_last, 0), ("prefetch", prefetch, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is a number from {least} up, not {value!r}")
        tiers.check_tier(tier)
        self.min_bytes = min_bytes
        self.keep_last = keep_last
        self.prefetch = prefetch
        self.tier = tier
        #: Bytes that went to a tier, came back from one, and stayed on the device for want of room in it.
        self.bytes_out = 0
        self.bytes_in = 0
        self.bytes_refused = 0
        self._lock = threading.RLock()
        # By storage and version, as long as somebody needs it. A storage is named by a weak reference, so that its number is not another's.
        self._saved = weakref.WeakValueDictionary()
        # What was saved last, and is not sent yet; and what is being read on its way to a tier.
        self._recent = deque()
        self._leaving = deque()
        # All that was saved, in order, for the way back.
        self._order = []
        super().__init__(self._pack, self._unpack)

    def __enter__(self):
        super().__enter__()
        return self

    def _pack(self, tensor):
        if not self._is_wanted(tensor):
            return tensor
        storage = tensor.untyped_storage()
        with self._lock:
            key = (storage._cdata, tensor._version)
            saved = self._saved.get(key)
            if saved is None or saved.is_stale():
                saved = self._saved[key] = _Saved(self, tensor, storage)
                self._note(saved)
            while len(self._recent) > self.keep_last:
                oldest = self._recent.popleft()()
                if oldest is not None and oldest.send():
                    self._leaving.append(weakref.ref(oldest))
            self._let_go()
        return _View(saved, tensor)

    def _let_go(self):
        """Lets go of what has been read. So much may be on its way; for what is beyond, this waits."""
        on_the_way = sum(saved.bytes for ref in self._leaving if (saved := ref()) is not None)
        while self._leaving:
            saved = self._leaving[0]()
            if saved is not None:
                if not saved.has_left(wait=on_the_way > LEAVING_MAX):
                    return
                on_the_way -= saved.bytes
            self._leaving.popleft()

    def _is_wanted(self, tensor):
        # Subclasses, and lazily conjugated or negated tensors, are more than their bytes.
        if type(tensor) is not torch.Tensor or not tensor.is_cuda or tensor.layout is not torch.strided:
            return False
        if tensor.is_conj() or tensor.is_neg() or tensor.requires_grad and tensor.is_leaf:
            return False
        # A weight seen otherwise, such as its transpose: the weight stays on the device, so there is nothing to gain.
        base = tensor._base
        if base is not None and base.is_leaf and base.requires_grad:
            return False
        storage = tensor.untyped_storage().nbytes()
        # A small part of something large: its storage is not kept for this tensor's sake.
        if storage < self.min_bytes or tensor.nbytes * 4 < storage:
            return False
        # A graph replays its copies with whatever lies at their addresses then.
        return not torch.cuda.is_current_stream_capturing()

    def _unpack(self, packed):
        if not isinstance(packed, _View):
            return packed
        with self._lock:
            self._let_go()
            tensor = packed.restored()
            # The backward pass comes to what was saved before next.
            self._fetch_before(packed.saved.at)
        return tensor

    def _note(self, saved):
        if len(self._order) > 2 * len(self._saved) + 64:
            alive = [found for ref in self._order if (found := ref()) is not None]
            self._order = [weakref.ref(found) for found in alive]
            for at, found in enumerate(alive):
                found.at = at
        saved.at = len(self._order)
        self._order.append(weakref.ref(saved))
        self._recent.append(self._order[-1])

    def _fetch_before(self, at):
        wanted = self.prefetch
        while wanted > 0 and at > 0:
            at -= 1
            saved = self._order[at]()
            if saved is None:
                continue
            wanted -= 1
            try:
                saved.begin_fetch()
            except (TierError, torch.OutOfMemoryError):
                # It is not needed yet. When it is, there is room, or somebody to hear of it.
                return


class _View:
    """What autograd holds in place of a tensor: where it lies in what storage."""

    __slots__ = ("dtype", "offset", "saved", "size", "stride")

    def __init__(self, saved, tensor):
        self.saved = saved
        self.dtype = tensor.dtype
        self.offset = tensor.storage_offset()
        self.size = tensor.size()
        self.stride = tensor.stride()

    def restored(self):
        storage = self.saved.take()
        made = torch.empty(0, dtype=self.dtype, device=self.saved.device)
        return made.set_(storage, self.offset, self.size, self.stride)


class _Saved:
    """The bytes of a storage: on the device, in a tier, or coming back. Tensors that share it share this.

    `kept` holds the storage until it is sent. Then `stash` has the bytes until this object goes, so that they can be fetched more than once, as
    backward passes over a retained graph do. `coming` is memory being filled that nobody has asked for yet; what was handed out is held
    weakly."""

    __slots__ = ("__weakref__", "at", "bytes", "coming", "device", "given", "home", "kept", "origin", "owner", "stash")

    def __init__(self, owner, tensor, storage):
        self.owner = owner
        self.device = tensor.device
        self.bytes = storage.nbytes()
        self.kept = storage
        self.origin = StorageWeakRef(storage)
        self.home = torch.cuda.current_stream(tensor.device)
        self.at = 0
        self.stash = None
        self.coming = None
        self.given = None

    def is_stale(self):
        """Whether the storage it was made for has gone, and another may have its number."""
        return self.kept is None and self.origin.expired()

    def send(self):
        """Begins to copy the bytes to a tier, behind what has been submitted to the stream. Whether that could begin."""
        try:
            self.stash = _native.Stash(self.kept.data_ptr(), self.bytes, self.home.cuda_stream, self.owner.tier)
        except (TierError, ValueError) as error:
            self._stays(error)
            return False
        self.owner.bytes_out += self.bytes
        return True

    def has_left(self, wait):
        """Lets go of the device's memory once the bytes are safe without it. Whether there is nothing more to be done for that."""
        if self.kept is None or self.stash is None:
            return True
        try:
            if self.stash.may_free(wait):
                self.kept = None
        except TierError as error:
            self.stash = None
            self._stays(error)
        return self.kept is None or self.stash is None

    def _stays(self, error):
        """The tier has no room, or the memory is not ours: the tensor is used where it is, as it would be without us."""
        if self.owner.bytes_refused == 0:
            warnings.warn(f"activations stay on the device: {error}", stacklevel=6)
        self.owner.bytes_refused += self.bytes

    def begin_fetch(self):
        """Has the bytes come back, if they are not on the device or on their way. Does not wait."""
        if self.kept is not None or self.coming is not None or self._given() is not None:
            return
        self.home = torch.cuda.current_stream(self.device)
        with tiers.untagged():
            memory = torch.empty(self.bytes, dtype=torch.uint8, device=self.device).untyped_storage()
        # Written when the stream has come to where the memory is free.
        self.stash.fetch(memory.data_ptr(), self.home.cuda_stream)
        self.owner.bytes_in += self.bytes
        self.coming = memory

    def take(self):
        """The storage, for the current stream."""
        if self.kept is not None:
            return self.kept
        stream = torch.cuda.current_stream(self.device)
        given = self._given()
        if given is not None:
            self.stash.order(stream.cuda_stream)
            return given
        self.begin_fetch()
        memory, self.coming = self.coming, None
        self.stash.order(stream.cuda_stream)
        if stream != self.home:
            # Its memory is free in the order of the stream it was taken on, which has not waited for the copy.
            self.stash.order(self.home.cuda_stream)
            whole = torch.empty(0, dtype=torch.uint8, device=self.device).set_(memory)
            whole.record_stream(stream)
        self.given = StorageWeakRef(memory)
        return memory

    def _given(self):
        """What was handed out, as long as somebody has it."""
        if self.given is None or self.given.expired():
            return None
        return torch.UntypedStorage._new_with_weak_ptr(self.given.cdata)

    def __del__(self):
        if self.coming is not None and self.stash is not None:
            # Nobody came for it. The memory is another's once the copy has ended.
            self.stash.order(self.home.cuda_stream)
        # A copy that is under way ends before the memory it reads goes.
        self.stash = None


class OptimizerOffload:
    """An optimizer whose state is in a tier between steps. See `stratalloc.torch.offload_optimizer`."""

    def __init__(self, optimizer, tier=None, min_bytes=MIB):
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"offload_optimizer wants a torch.optim.Optimizer, not {type(optimizer).__name__}")
        tiers.check_tier(tier)
        self.optimizer = optimizer
        self.tier = tier
        self.min_bytes = min_bytes
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *_: self.restore()),
            optimizer.register_step_post_hook(lambda *_: self.offload()),
        ]
        self.offload()

    def _states(self):
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if type(value) is torch.Tensor and value.is_cuda and value.untyped_storage().nbytes() >= self.min_bytes:
                    yield parameter, name, value

    def offload(self):
        """Sends the state to the tier. Done after each step; to be called by hand after `load_state_dict`."""
        for parameter, name, value in list(self._states()):
            if not tiers.is_evictable(value):
                # Where it was made, nobody knew that it would leave.
                with torch.no_grad(), tiers.tag("optimizer", tier=self.tier):
                    moved = torch.empty_like(value)
                    moved.copy_(value)
                self.optimizer.state[parameter][name] = value = moved
            tiers.offload(value)

    def restore(self):
        """Brings the state back. Done before each step; to be called by hand before the state is read, as by `state_dict`."""
        mine = [value for _, _, value in self._states() if tiers.is_evictable(value)]
        for value in mine:
            tiers.prefetch(value)
        for value in mine:
            tiers.restore(value)

    def remove(self):
        """Brings the state back, for good."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.restore()
