"""Private pools: MemPool, graphs, and the checkpoints that torch.compile's graph trees take."""

import ctypes
import gc

import pytest
import torch
from helpers import MIB, SINCE_2_15, live, on_gpu, run

from stratalloc import _lib


def segments_of(pool_id):
    return [s for s in torch.cuda.memory_snapshot() if tuple(s["segment_pool_id"]) == tuple(pool_id)]


def pool_of(tensor):
    ptr = tensor.data_ptr()
    segment = next(s for s in torch.cuda.memory_snapshot() if s["address"] <= ptr < s["address"] + s["total_size"])
    return tuple(segment["segment_pool_id"])


# ---- MemPool; torch's names: test_mempool_id, test_mempool_empty_cache, test_mempool_context, test_mempool_multithread


def test_a_pool_keeps_its_memory_apart():
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        x = on_gpu(3 * MIB)
    y = on_gpu(3 * MIB)
    assert pool_of(x) == pool.id and pool_of(y) == (0, 0)
    address = x.data_ptr()
    del x
    z = on_gpu(3 * MIB)
    assert z.data_ptr() != address, "what a pool has free is its own"
    with torch.cuda.use_mem_pool(pool):
        again = on_gpu(3 * MIB)
    assert again.data_ptr() == address
    del y, z, again


def test_users_of_a_pool_are_counted():
    pool = torch.cuda.MemPool()
    assert pool.use_count() == 1
    with torch.cuda.use_mem_pool(pool):
        assert pool.use_count() == 2
    assert pool.use_count() == 1


def test_pools_have_ids_of_their_own():
    first, second = torch.cuda.MemPool(), torch.cuda.MemPool()
    assert first.id != second.id
    assert torch.cuda.graph_pool_handle() != torch.cuda.graph_pool_handle()


def test_a_pools_snapshot_is_of_the_pool():
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        x = on_gpu(2 * MIB)
    y = on_gpu(2 * MIB)
    segments = pool.snapshot()
    assert segments and all(tuple(s["segment_pool_id"]) == pool.id for s in segments)
    assert len(torch.cuda.memory_snapshot()) > len(segments)
    del x, y


def test_a_pool_that_goes_gives_its_memory_back():
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        x = on_gpu(64 * MIB)
    pool_id = pool.id
    reserved = torch.cuda.memory_reserved()
    del x
    assert segments_of(pool_id)
    del pool
    gc.collect()
    torch.cuda.empty_cache()
    assert not segments_of(pool_id)
    assert torch.cuda.memory_reserved() <= reserved - 64 * MIB


def test_a_tensor_may_outlive_its_pool():
    pool = torch.cuda.MemPool()
    host = torch.arange(1000)
    with torch.cuda.use_mem_pool(pool):
        x = host.cuda()
    del pool
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.equal(x.cpu(), host)
    before = live()
    del x
    assert live() < before


# Memory that one pool has given up is the next one's; it says whose it is now.
def test_pools_one_after_another():
    for _ in range(4):
        pool = torch.cuda.MemPool()
        with torch.cuda.use_mem_pool(pool):
            x = on_gpu(MIB)
        assert pool_of(x) == pool.id and len(pool.snapshot()) == 1
        if SINCE_2_15:
            key = f"reserved_bytes_by_private_pools.{pool.id[0]}_{pool.id[1]}.all.current"
            assert torch.cuda.memory_stats()[key] >= MIB
        del x, pool


def test_pools_nest():
    outer, inner = torch.cuda.MemPool(), torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(outer):
        a = on_gpu(MIB)
        with torch.cuda.use_mem_pool(inner):
            b = on_gpu(MIB)
        c = on_gpu(MIB)
    assert (pool_of(a), pool_of(b), pool_of(c)) == (outer.id, inner.id, outer.id)


def test_a_pool_is_one_threads():
    import threading

    pool = torch.cuda.MemPool()
    found = []
    with torch.cuda.use_mem_pool(pool):
        thread = threading.Thread(target=lambda: found.append(pool_of(on_gpu(MIB))))
        thread.start()
        thread.join()
    assert found == [(0, 0)]


def test_empty_cache_inside_a_pool_is_harmless():
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        x = torch.arange(100).cuda()
        torch.cuda.empty_cache()
        y = on_gpu(MIB)
    assert torch.equal(x.cpu(), torch.arange(100))
    del y


# torch's name: test_mempool_use_on_oom (in ours, the pool lends rather than fail).
def test_a_pool_may_lend_rather_than_fail():
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    pool = torch.cuda.MemPool(use_on_oom=True)
    with torch.cuda.use_mem_pool(pool):
        x = on_gpu(int(total * 0.7))
    del x
    y = on_gpu(int(total * 0.6))
    del y, pool
    gc.collect()


def test_a_pool_keeps_its_memory_to_itself_otherwise():
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        x = on_gpu(int(total * 0.7))
    del x
    with pytest.raises(torch.OutOfMemoryError):
        on_gpu(int(total * 0.6))
    del pool
    gc.collect()


def test_what_is_not_supported_raises():
    with pytest.raises(NotImplementedError, match="no_split"):
        torch.cuda.MemPool(no_split=True)
    other = torch._C._cuda_customAllocator(1, 1)
    with pytest.raises(NotImplementedError, match="allocator of its own"):
        torch.cuda.MemPool(other)


class PoolId(ctypes.Structure):
    _fields_ = [("first", ctypes.c_uint64), ("second", ctypes.c_uint64)]


# Its constructor is a user of the pool already when it finds that it cannot be.
def test_a_pool_that_was_refused_has_no_user():
    _, library = _lib.find()
    handle, users = ctypes.c_void_p(), ctypes.c_size_t(9)
    assert library.stratalloc_default(ctypes.byref(handle)) == 0
    before = torch.cuda.MemPool()
    with pytest.raises(NotImplementedError, match="no_split"):
        torch.cuda.MemPool(no_split=True)
    after = torch.cuda.MemPool()
    assert after.id[1] == before.id[1] + 2
    counts = []
    for number in range(before.id[1], after.id[1] + 1):
        assert library.stratalloc_pool_users(handle, 0, PoolId(after.id[0], number), ctypes.byref(users)) == 0
        counts.append(users.value)
    assert counts == [1, 0, 1]


def test_unknown_pools_raise():
    with pytest.raises(RuntimeError):
        torch._C._cuda_endAllocateToPool(0, (99, 99))
    # Destructors call this, so it does not raise.
    result = run("torch.cuda.init(); torch._C._cuda_releasePool(0, (99, 99)); print('went on')")
    assert "could not release a pool" in result.stderr and "went on" in result.stdout


# ---- graphs; torch's names: test_graph_capture_simple, test_graph_two_successive, test_graph_memory_stats_and_use_result_after_destroy_graph


def capture(graph, work, pool=None):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.cuda.graph(graph, pool=pool, stream=stream):
        kept = work()
    torch.cuda.current_stream().wait_stream(stream)
    return kept


def test_a_graph_replays_on_its_own_memory():
    source = torch.arange(1000, device="cpu").cuda()
    graph = torch.cuda.CUDAGraph()
    out = capture(graph, lambda: torch.empty_like(source).copy_(source))
    assert pool_of(out) == tuple(graph.pool())
    source.copy_(torch.arange(1000, 2000))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out.cpu(), torch.arange(1000, 2000))


def test_what_a_graph_frees_others_do_not_get():
    graph = torch.cuda.CUDAGraph()
    addresses = []

    def work():
        x = on_gpu(5 * MIB)
        addresses.append(x.data_ptr())
        del x
        return on_gpu(100)

    out = capture(graph, work)
    others = [on_gpu(5 * MIB) for _ in range(4)]
    assert addresses[0] not in [t.data_ptr() for t in others]
    del out, others, graph


# Gotcha 4: beginning counts a user, so the pool goes with the graph.
def test_a_graphs_memory_goes_with_the_graph():
    graph = torch.cuda.CUDAGraph()
    out = capture(graph, lambda: on_gpu(64 * MIB))
    pool_id = tuple(graph.pool())
    assert segments_of(pool_id)
    reserved = torch.cuda.memory_reserved()
    del graph
    gc.collect()
    torch.cuda.empty_cache()
    # The result is still there and usable.
    host = torch.full((64 * MIB,), 7, dtype=torch.uint8)
    out.copy_(host)
    assert torch.equal(out.cpu(), host)
    del out
    torch.cuda.empty_cache()
    assert not segments_of(pool_id)
    assert torch.cuda.memory_reserved() <= reserved - 64 * MIB


def test_graphs_may_share_a_pool():
    first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    a = capture(first, lambda: on_gpu(MIB))
    b = capture(second, lambda: on_gpu(MIB), pool=first.pool())
    assert pool_of(a) == pool_of(b) == tuple(first.pool())
    assert a.data_ptr() != b.data_ptr()
    del first
    gc.collect()
    assert segments_of(second.pool())
    del a, b, second


def test_record_stream_in_a_capture():
    graph = torch.cuda.CUDAGraph()
    other = torch.cuda.Stream()

    def work():
        x = on_gpu(2 * MIB)
        other.wait_stream(torch.cuda.current_stream())
        x.record_stream(other)
        torch.cuda.current_stream().wait_stream(other)
        del x
        return on_gpu(MIB)

    out = capture(graph, work)
    graph.replay()
    torch.cuda.synchronize()
    del out, graph


def test_a_capture_that_fails_leaves_the_allocator_usable():
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="on purpose"):
        capture(graph, lambda: (on_gpu(MIB), (_ for _ in ()).throw(RuntimeError("on purpose"))))
    del graph
    gc.collect()
    x = torch.arange(10).cuda()
    assert torch.equal(x.cpu(), torch.arange(10))
    again = torch.cuda.CUDAGraph()
    out = capture(again, lambda: on_gpu(MIB))
    del out, again


def test_graphed_callables():
    layer = torch.nn.Linear(64, 64, device="cuda")
    sample = torch.empty(8, 64, device="cuda", requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(layer, (sample,))
    out = graphed(torch.empty(8, 64, device="cuda", requires_grad=True))
    out.backward(torch.empty_like(out))
    torch.cuda.synchronize()


# ---- checkpoints; torch's names: TestBlockStateAbsorption.test_simple, test_allocated_in_middle_of_segment, test_multiple_middle_allocations, test_tensor_dies_after_checkpoint, test_assigning_back_deleter_fns_to_tensor, test_resnet


class Pool:
    """A pool and its checkpoints, as cudagraph trees use them."""

    def __init__(self):
        self.handle = torch.cuda.graph_pool_handle()
        self.graph = torch.cuda.CUDAGraph()
        # Somebody has to hold the pool.
        self.first = capture(self.graph, lambda: on_gpu(100), pool=self.handle)

    def allocate(self, *sizes):
        torch._C._cuda_beginAllocateCurrentThreadToPool(0, self.handle)
        try:
            return [on_gpu(size) for size in sizes]
        finally:
            torch._C._cuda_endAllocateToPool(0, self.handle)
            torch._C._cuda_releasePool(0, self.handle)

    def checkpoint(self):
        return torch._C._cuda_getCheckpointState(0, self.handle)

    def restore(self, state, stale=(), live=()):
        """`stale`: every tensor that owns memory of the pool; they own none after it. `live`: who is to own memory that the state
        brings back."""
        storages = [[t.untyped_storage()._cdata for t in tensors] for tensors in (stale, live)]
        torch._C._cuda_setCheckpointPoolState(0, state, *storages)

    def live(self):
        blocks = (b for s in segments_of(self.handle) for b in s["blocks"])
        return sorted((b["address"], b["size"]) for b in blocks if b["state"] == "active_allocated")

    def holds(self, *tensors):
        return torch._C._cuda_checkPoolLiveAllocations(0, self.handle, {t.data_ptr() for t in (self.first, *tensors)})


def view_of(tensor):
    """A tensor over the same memory that does not own it, as graph trees make their outputs."""
    return torch._C._construct_CUDA_Tensor_From_Storage_And_Metadata(
        {"nbytes": tensor.numel(), "data_ptr": tensor.data_ptr(), "size": (tensor.numel(),), "stride": (1,), "dtype": torch.uint8, "device": tensor.device, "storage_offset": 0},
        torch._C._construct_storage_from_data_pointer(tensor.data_ptr(), tensor.device, tensor.numel()),
    )


def has_deleter(tensor):
    return torch._C._has_Standard_Deleter(tensor.untyped_storage()._cdata)


def test_a_checkpoint_brings_back_what_was_live():
    pool = Pool()
    kept = pool.allocate(1000, 3 * MIB)
    state = pool.checkpoint()
    then = pool.live()
    later = pool.allocate(5000, 2 * MIB, 9 * MIB)
    assert pool.live() != then
    heirs = [view_of(t) for t in (pool.first, *kept)]
    assert not any(map(has_deleter, heirs))
    pool.restore(state, stale=[pool.first, *kept, *later], live=heirs)
    assert pool.live() == then
    assert pool.holds(*kept) and not pool.holds()
    assert all(map(has_deleter, heirs)) and not any(map(has_deleter, (*kept, *later)))
    # The old owners have nothing to free, the heirs have.
    before = live()
    del kept, later
    assert live() == before
    del heirs[1:]
    assert live() == before - 3 * MIB - 1024


def test_the_same_steps_after_a_restore_take_the_same_addresses():
    pool = Pool()
    kept = pool.allocate(3 * MIB, 700)
    state = pool.checkpoint()
    one = pool.allocate(2 * MIB, 100_000)
    addresses = [t.data_ptr() for t in one]
    heirs = [view_of(t) for t in (pool.first, *kept)]
    pool.restore(state, stale=[pool.first, *kept, *one], live=heirs)
    two = pool.allocate(2 * MIB, 100_000)
    assert [t.data_ptr() for t in two] == addresses
    del one, two, kept


def test_what_died_since_is_live_again():
    pool = Pool()
    kept = pool.allocate(3 * MIB, 700)
    state = pool.checkpoint()
    then = pool.live()
    dead = kept[0].data_ptr()
    del kept[0]
    assert pool.live() != then
    heirs = [view_of(t) for t in (pool.first, *kept)]
    pool.restore(state, stale=[pool.first, *kept], live=heirs)
    assert pool.live() == then
    # As graph trees do with the storages that have died.
    torch._C._cuda_cudaCachingAllocator_raw_delete(dead)
    assert pool.holds(*kept)


def test_states_may_be_restored_in_any_order():
    pool = Pool()
    first = pool.allocate(MIB)
    early = pool.checkpoint()
    at_early = pool.live()
    second = pool.allocate(2 * MIB, 300)
    late = pool.checkpoint()
    at_late = pool.live()
    heirs = [view_of(t) for t in (pool.first, *first)]
    pool.restore(early, stale=[pool.first, *first, *second], live=heirs)
    assert pool.live() == at_early
    more = [view_of(t) for t in (pool.first, *first, *second)]
    pool.restore(late, stale=heirs, live=more)
    assert pool.live() == at_late
    last = [view_of(t) for t in (pool.first, *first)]
    pool.restore(early, stale=more, live=last)
    assert pool.live() == at_early


def test_stale_tensors_must_be_named():
    pool = Pool()
    state = pool.checkpoint()
    later = pool.allocate(2 * MIB)
    with pytest.raises(RuntimeError, match="stale"):
        pool.restore(state)
    # torch found out after the allocator had done it, and has freed what nobody took over. The old owners' frees are refused, with
    # a warning; nothing else is harmed.
    del later, pool
    gc.collect()
    host = torch.arange(1000)
    assert torch.equal(host.cuda().cpu(), host)


def test_checkpoints_of_nothing_raise():
    with pytest.raises(RuntimeError):
        torch._C._cuda_getCheckpointState(0, (77, 77))
    with pytest.raises(RuntimeError):
        torch._C._cuda_checkPoolLiveAllocations(0, (77, 77), set())
