"""memory_stats and what is built on it, against torch's own keys and meanings."""

import pytest
import torch
from helpers import MIB, native_stat_keys, on_gpu, run_json, since_2_15

POOLS = ("all", "small_pool", "large_pool")
BYTES = ("allocated_bytes", "active_bytes", "requested_bytes", "reserved_bytes", "inactive_split_bytes")


def stats():
    return torch.cuda.memory_stats()


def test_every_key_of_natives_is_there():
    x = on_gpu(1000)
    assert sorted(stats()) == native_stat_keys()
    del x


def test_current_peak_and_totals():
    torch.cuda.reset_accumulated_memory_stats()
    torch.cuda.reset_peak_memory_stats()
    before = stats()
    x = on_gpu(1000)
    y = on_gpu(3 * MIB)
    now = stats()
    for key, change in [
        ("allocation.all.current", 2),
        ("allocation.small_pool.current", 1),
        ("allocation.large_pool.current", 1),
        ("allocated_bytes.all.current", 3 * MIB + 1024),
        ("allocated_bytes.small_pool.current", 1024),
        ("allocated_bytes.large_pool.current", 3 * MIB),
        ("requested_bytes.all.current", 3 * MIB + 1000),
        ("active_bytes.all.current", 3 * MIB + 1024),
        ("allocation.all.allocated", 2),
        ("allocation.all.freed", 0),
        ("allocated_bytes.all.allocated", 3 * MIB + 1024),
    ]:
        assert now[key] - before[key] == change, key
    del x, y
    after = stats()
    assert after["allocated_bytes.all.current"] == before["allocated_bytes.all.current"]
    assert after["allocated_bytes.all.peak"] == now["allocated_bytes.all.current"]
    assert after["allocation.all.freed"] - before["allocation.all.freed"] == 2


def test_the_parts_add_up():
    keep = [on_gpu(size) for size in (100, 5000, MIB, MIB + 1, 9 * MIB)]
    now = stats()
    for metric in (*BYTES, "allocation", "active", "segment"):
        for kind in ("current", "allocated", "freed"):
            total, small, large = (now[f"{metric}.{pool}.{kind}"] for pool in POOLS)
            if metric == "inactive_split_bytes" or (metric, kind) in [("segment", "allocated"), ("segment", "freed")]:
                continue
            assert total == small + large, f"{metric}.{kind}"
    for metric in (*BYTES, "allocation", "active", "segment", "inactive_split"):
        for pool in POOLS:
            one = {kind: now[f"{metric}.{pool}.{kind}"] for kind in ("current", "peak")}
            assert 0 <= one["current"] <= one["peak"], f"{metric}.{pool}"
    assert now["requested_bytes.all.current"] <= now["allocated_bytes.all.current"] <= now["active_bytes.all.current"]
    assert now["active_bytes.all.current"] <= now["reserved_bytes.all.current"]
    del keep


def test_one_mebibyte_is_small():
    before = stats()
    x = on_gpu(MIB)
    y = on_gpu(MIB + 1)
    now = stats()
    assert now["allocation.small_pool.current"] - before["allocation.small_pool.current"] == 1
    assert now["allocation.large_pool.current"] - before["allocation.large_pool.current"] == 1
    del x, y


def test_peaks_reset_to_what_is_in_use():
    keep = on_gpu(2 * MIB)
    high = on_gpu(50 * MIB)
    del high
    assert torch.cuda.max_memory_allocated() >= 52 * MIB
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == torch.cuda.memory_allocated()
    low = on_gpu(3 * MIB)
    del low
    assert torch.cuda.max_memory_allocated() == torch.cuda.memory_allocated() + 3 * MIB
    del keep


def test_totals_reset_to_nothing():
    on_gpu(2 * MIB)
    torch.cuda.reset_accumulated_memory_stats()
    now = stats()
    zeros = [key for key in now if key.endswith((".allocated", ".freed"))]
    zeros += ["num_ooms", "num_alloc_retries", "num_device_alloc", "num_device_free", "num_sync_all_streams"]
    for key in zeros:
        assert now[key] == 0, key
    on_gpu(2 * MIB)
    now = stats()
    assert now["allocation.all.allocated"] == 1 and now["allocation.all.freed"] == 1


def test_device_calls_are_counted():
    torch.cuda.empty_cache()
    before = stats()
    x = on_gpu(40 * MIB)
    assert stats()["num_device_alloc"] > before["num_device_alloc"]
    del x
    torch.cuda.empty_cache()
    assert stats()["num_device_free"] > before["num_device_free"]


def test_waiting_blocks_are_active_and_not_allocated():
    stream = torch.cuda.Stream()
    x = on_gpu(6 * MIB)
    x.record_stream(stream)
    before = stats()
    del x
    after = stats()
    assert before["allocated_bytes.all.current"] - after["allocated_bytes.all.current"] == 6 * MIB
    assert after["active_bytes.all.current"] >= after["allocated_bytes.all.current"]


@since_2_15
def test_private_pools_are_listed():
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        x = on_gpu(4 * MIB)
    key = f"reserved_bytes_by_private_pools.{pool.id[0]}_{pool.id[1]}.all.current"
    assert stats()[key] >= 4 * MIB
    del x


def test_accelerator_functions_agree():
    x = on_gpu(2 * MIB)
    assert torch.accelerator.memory_allocated() == torch.cuda.memory_allocated()
    assert torch.accelerator.memory_reserved() == torch.cuda.memory_reserved()
    torch.accelerator.reset_peak_memory_stats()
    assert torch.accelerator.max_memory_allocated() == torch.cuda.max_memory_allocated()
    # torch's own function leaves one key out.
    assert set(stats()) - set(torch.accelerator.memory_stats()) <= {"num_oom_rejections"}
    assert torch.accelerator.get_memory_info() == torch.cuda.mem_get_info()
    torch.accelerator.empty_cache()
    del x


def test_the_summary_prints():
    x = on_gpu(2 * MIB)
    text = torch.cuda.memory_summary()
    line = next(line for line in text.splitlines() if "Allocated memory" in line)
    assert "2048 KiB" in line, text
    assert torch.cuda.memory_summary(abbreviated=True)
    del x


def test_a_device_that_is_not_there():
    with pytest.raises(RuntimeError):
        torch._C._cuda_memoryStats(97)


# The profiler reads what each allocation reports (gotcha 6).
def test_the_profiler_sees_memory():
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        x = on_gpu(8 * MIB)
        del x
    changes = [event.device_memory_usage for event in prof.events()]
    assert 8 * MIB in changes, changes


# torch's CUDA sanitizer hears of each allocation through the interpreter's hooks (gotcha 6).
def test_the_sanitizers_hooks_are_called():
    seen = run_json(
        """
        import json
        from torch.utils import _cuda_trace
        import torch._C
        events = []
        torch._C._activate_gpu_trace()
        from torch.cuda import _gpu_trace
        _gpu_trace.register_callback_for_memory_allocation(lambda ptr: events.append(["alloc", ptr]))
        _gpu_trace.register_callback_for_memory_deallocation(lambda ptr: events.append(["free", ptr]))
        x = torch.empty(1000, device="cuda")
        ptr = x.data_ptr()
        del x
        print(json.dumps([["alloc", ptr] in events, ["free", ptr] in events]))
        """.replace("        from torch.utils import _cuda_trace\n", "")
    )
    assert seen == [True, True]
