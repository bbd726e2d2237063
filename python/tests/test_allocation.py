"""Tensors, raw memory, streams, deleters: what the allocator does for every program."""

import gc
import threading

import pytest
import torch
from helpers import MIB, live, on_gpu, run_json, since_2_15, uncached


def test_a_tensor_takes_memory_and_gives_it_back():
    before = live()
    x = on_gpu(1000)
    assert live() - before == 1024
    assert x.data_ptr() % 512 == 0
    del x
    assert live() == before


def test_contents_go_there_and_back():
    for size in (1, 511, 512, 513, 3 * MIB + 7):
        host = torch.arange(size, dtype=torch.int64).to(torch.uint8)
        device = host.cuda()
        assert torch.equal(device.cpu(), host)


def test_pinned_and_non_blocking_copies():
    host = torch.arange(1 << 16).pin_memory()
    device = host.to("cuda", non_blocking=True)
    back = torch.empty_like(host).pin_memory()
    back.copy_(device, non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(back, host)


def test_live_tensors_do_not_overlap():
    sizes = [1, 512, 513, 70_000, MIB, 5 * MIB] * 20
    tensors = [on_gpu(size) for size in sizes]
    ranges = sorted((t.data_ptr(), t.data_ptr() + t.numel()) for t in tensors)
    for (_, end), (start, _) in zip(ranges, ranges[1:]):
        assert end <= start


# Native returns a null pointer for an empty tensor, on the current device, with a deleter that accepts it.
def test_an_empty_tensor_has_no_memory():
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    x = on_gpu(0)
    assert x.data_ptr() == 0 and x.device.index == 0
    x.record_stream(torch.cuda.Stream())
    del x
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


# torch's name: test_caching_allocator_alloc / raw_alloc on a given stream.
def test_raw_memory_on_a_stream():
    stream = torch.cuda.Stream()
    before = live()
    ptr = torch.cuda.caching_allocator_alloc(MIB, stream=stream)
    segment = next(s for s in torch.cuda.memory_snapshot() if s["address"] <= ptr < s["address"] + s["total_size"])
    assert segment["stream"] == stream.cuda_stream
    assert live() - before == MIB
    torch.cuda.caching_allocator_delete(ptr)
    assert live() == before


def test_raw_memory_of_nothing():
    assert not torch.cuda.caching_allocator_alloc(0)
    torch.cuda.caching_allocator_delete(0)


@pytest.mark.parametrize("offset", [256, 8])
def test_a_pointer_into_a_block_is_not_freed(offset):
    ptr = torch.cuda.caching_allocator_alloc(4096)
    with pytest.raises(RuntimeError, match="invalid device pointer"):
        torch.cuda.caching_allocator_delete(ptr + offset)
    torch.cuda.caching_allocator_delete(ptr)


def test_foreign_and_double_frees_raise_and_harm_nothing():
    with pytest.raises(RuntimeError, match="invalid device pointer"):
        torch.cuda.caching_allocator_delete(0x1234_5600)
    ptr = torch.cuda.caching_allocator_alloc(3 * MIB)
    torch.cuda.caching_allocator_delete(ptr)
    with pytest.raises(RuntimeError, match="freed twice|invalid device pointer"):
        torch.cuda.caching_allocator_delete(ptr)
    x = on_gpu(3 * MIB)
    assert x.data_ptr() != 0


# Gotcha 3: the context is the data pointer and the deleter is raw_deleter(), which copy-on-write clones rely on.
def test_a_lazy_clone_shares_and_then_copies():
    x = torch.arange(1024, dtype=torch.int64).cuda()
    before = live()
    y = torch._lazy_clone(x)
    assert live() == before
    assert torch.equal(y.cpu(), torch.arange(1024))
    # Writing makes its own copy; kernels are no-ops on the software device, so the write is a copy from the host.
    y.copy_(torch.zeros(1024, dtype=torch.int64))
    assert live() > before
    assert torch.equal(x.cpu(), torch.arange(1024))
    assert torch.equal(y.cpu(), torch.zeros(1024, dtype=torch.int64))


def test_the_deleter_is_the_standard_one():
    x = on_gpu(100)
    assert torch._C._has_Standard_Deleter(x.untyped_storage()._cdata)


# Gotcha 3 again: memory that is not ours has another deleter, and record_stream leaves it alone.
def test_record_stream_skips_foreign_memory():
    with uncached():
        x = on_gpu(4096)
    x.record_stream(torch.cuda.Stream())
    y = on_gpu(4096)
    view = torch.from_dlpack(y)
    view.record_stream(torch.cuda.Stream())
    del x, y, view


# The software device is told to let events lag, so that a block whose stream has work is not free at once.
def test_record_stream_defers_reuse():
    reused_at_once, reused_after = run_json(
        """
        import json
        other = torch.cuda.Stream()
        x = torch.empty(7 << 20, dtype=torch.uint8, device="cuda")
        address = x.data_ptr()
        host = torch.empty(7 << 20, dtype=torch.uint8).pin_memory()
        with torch.cuda.stream(other):
            host.copy_(x, non_blocking=True)
        x.record_stream(other)
        del x
        y = [torch.empty(7 << 20, dtype=torch.uint8, device="cuda") for _ in range(4)]
        at_once = address in [t.data_ptr() for t in y]
        del y
        torch.cuda.synchronize()
        import time
        time.sleep(0.5)
        torch.cuda.empty_cache()
        y = [torch.empty(7 << 20, dtype=torch.uint8, device="cuda") for _ in range(40)]
        spans = [(t.data_ptr(), t.data_ptr() + (7 << 20)) for t in y]
        print(json.dumps([at_once, torch.cuda.memory_stats()["active_bytes.all.current"] == 280 << 20]))
        """,
        env={"SOFTCUDA_EVENT_LAG_US": "200000"},
    )
    assert not reused_at_once and reused_after


def test_caching_can_be_switched_off():
    before = live()
    with uncached():
        x = on_gpu(5 * MIB)
        assert live() == before
    y = on_gpu(5 * MIB)
    assert live() - before == 5 * MIB
    del x, y
    assert live() == before


@since_2_15
def test_torch_knows_whether_caching_is_on():
    with torch.cuda.memory.caching_allocator_disabled():
        assert not torch._C._cuda_cudaCachingAllocator_is_enabled()
    assert torch._C._cuda_cudaCachingAllocator_is_enabled()


def test_resize_and_growth():
    x = on_gpu(1000)
    x.resize_(10 * MIB)
    assert live() >= 10 * MIB
    x.resize_(0)
    x.untyped_storage().resize_(0)
    assert live() < 10 * MIB


def test_empty_cache_gives_memory_back():
    xs = [on_gpu(64 * MIB) for _ in range(4)]
    reserved = torch.cuda.memory_reserved()
    assert reserved >= 256 * MIB
    del xs
    assert torch.cuda.memory_reserved() == reserved
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= reserved - 256 * MIB


def test_threads_allocate_on_streams_of_their_own():
    failures = []

    def work(seed):
        try:
            stream = torch.cuda.Stream()
            generator = torch.Generator().manual_seed(seed)
            with torch.cuda.stream(stream):
                kept = []
                for step in range(300):
                    size = int(torch.randint(1, 1 << 20, (1,), generator=generator))
                    host = torch.full((size,), seed, dtype=torch.uint8)
                    kept.append((host, host.cuda()))
                    if len(kept) > 8:
                        host, device = kept.pop(step % 8)
                        assert torch.equal(device.cpu(), host)
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    before = live()
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    gc.collect()
    assert live() == before


def test_the_allocator_says_who_it_is():
    assert torch.cuda.get_allocator_backend() == "stratalloc"


def test_memory_that_was_not_made_to_be_shared_raises():
    x = on_gpu(1000)
    with pytest.raises(NotImplementedError, match="shareable"):
        x.untyped_storage()._share_cuda_()
