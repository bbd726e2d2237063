"""The real PyTorch on the software device: what allocates and copies must work. Kernels do nothing, so data that they
would compute is garbage: only copies are compared.

    LD_LIBRARY_PATH=target/softcuda python crates/softcudart/tests/torch_smoke.py [--list] [CHECK ...]

Prints one line a check; the exit code says whether all held. Each check runs in a process of its own, since settings of
PyTorch's allocator are read once.
"""

import argparse
import os
import subprocess
import sys
import time

MIB = 1 << 20
CHECKS = {}


def check(environment=None):
    """Registers a check, with environment variables that its process gets."""

    def register(function):
        CHECKS[function.__name__] = (function, environment or {})
        return function

    return register


@check()
def empty(torch):
    x = torch.empty(10, device="cuda")
    assert x.is_cuda and x.numel() == 10
    assert torch.cuda.device_count() >= 1
    properties = torch.cuda.get_device_properties(0)
    assert properties.major == 9 and properties.total_memory == torch.cuda.mem_get_info()[1], properties
    assert torch.empty(0, device="cuda").data_ptr() == 0


@check()
def round_trips(torch):
    for dtype in (torch.uint8, torch.int16, torch.float32, torch.float64):
        for count in (1, 3, 1000, 1 << 20):
            source = torch.randint(0, 100, (count,)).to(dtype)
            back = source.to("cuda").to("cpu")
            assert torch.equal(source, back), (dtype, count)
    source = torch.rand(300, 500)
    on_device = source.cuda()
    clone = torch.empty_like(on_device)
    clone.copy_(on_device)
    assert torch.equal(clone.cpu(), source), "a copy from device to device"


@check()
def pinned_and_non_blocking(torch):
    source = torch.rand(1 << 20).pin_memory()
    assert source.is_pinned()
    target = torch.empty(1 << 20, pin_memory=True)
    on_device = source.to("cuda", non_blocking=True)
    target.copy_(on_device, non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(source, target)
    assert not torch.rand(4).is_pinned()


@check({"SOFTCUDA_EVENT_LAG_US": "200"})
def streams_and_events(torch):
    first, second = torch.cuda.Stream(), torch.cuda.Stream(priority=-1)
    source = torch.rand(1 << 20).pin_memory()
    target = torch.empty_like(source).pin_memory()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(first):
        start.record()
        on_device = source.to("cuda", non_blocking=True)
        end.record()
    second.wait_event(end)
    with torch.cuda.stream(second):
        target.copy_(on_device, non_blocking=True)
        on_device.record_stream(second)
    second.synchronize()
    assert torch.equal(source, target)
    end.synchronize()
    assert end.query() and first.query()
    assert start.elapsed_time(end) >= 0
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@check({"SOFTCUDA_EVENT_LAG_US": "20000"})
def record_stream_defers(torch):
    side = torch.cuda.Stream()
    x = torch.empty(4 * MIB, dtype=torch.uint8, device="cuda")
    address = x.data_ptr()
    with torch.cuda.stream(side):
        torch.empty(1, device="cuda")
        x.record_stream(side)
    del x
    # The side stream's event has not completed: the block must not come back yet.
    y = torch.empty(4 * MIB, dtype=torch.uint8, device="cuda")
    assert y.data_ptr() != address, "a block came back before its other stream was done with it"
    time.sleep(0.1)
    z = torch.empty(4 * MIB, dtype=torch.uint8, device="cuda")
    assert z.data_ptr() == address, "a block never came back"


@check()
def statistics(torch):
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    x = torch.empty(8 * MIB, dtype=torch.uint8, device="cuda")
    stats = torch.cuda.memory_stats()
    assert torch.cuda.memory_allocated() - before == 8 * MIB
    assert stats["allocated_bytes.all.peak"] >= 8 * MIB
    assert stats["reserved_bytes.all.current"] >= 8 * MIB
    assert stats["num_device_alloc"] >= 1
    free, total = torch.cuda.mem_get_info()
    assert total - free >= stats["reserved_bytes.all.current"]
    del x
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == 0
    assert torch.cuda.mem_get_info()[0] > free
    assert "PyTorch CUDA memory summary" in torch.cuda.memory_summary()


@check()
def history_and_snapshot(torch):
    import pickle

    torch.cuda.memory._record_memory_history()
    kept = [torch.empty(size, dtype=torch.uint8, device="cuda") for size in (1000, 3 * MIB, 30 * MIB)]
    gone = torch.empty(MIB, dtype=torch.uint8, device="cuda")
    del gone
    snapshot = torch.cuda.memory._snapshot()
    live = [b for s in snapshot["segments"] for b in s["blocks"] if b["state"] == "active_allocated"]
    assert len(live) >= len(kept)
    actions = {entry["action"] for trace in snapshot["device_traces"] for entry in trace}
    assert {"alloc", "free_requested", "free_completed", "segment_alloc"} <= actions, actions
    assert any(b["frames"] for b in live), "no stack was kept"
    pickle.loads(pickle.dumps(snapshot))
    torch.cuda.memory._record_memory_history(enabled=None)


@check({"SOFTCUDA_MEMORY": "1GiB"})
def out_of_memory(torch):
    x = torch.empty(500 * MIB, dtype=torch.uint8, device="cuda")
    try:
        torch.empty(900 * MIB, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError as error:
        assert "out of memory" in str(error)
    else:
        raise AssertionError("900 MiB of a device that has 500 left")
    y = torch.empty(400 * MIB, dtype=torch.uint8, device="cuda")
    assert torch.cuda.memory_stats()["num_ooms"] == 1
    del x, y


@check({"SOFTCUDA_MEMORY": "1GiB"})
def memory_fraction(torch):
    torch.cuda.set_per_process_memory_fraction(0.25)
    torch.empty(200 * MIB, dtype=torch.uint8, device="cuda")
    try:
        torch.empty(300 * MIB, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        pass
    else:
        raise AssertionError("the fraction does nothing")
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.empty(300 * MIB, dtype=torch.uint8, device="cuda")


@check()
def mem_pool(torch):
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        x = torch.empty(3 * MIB, dtype=torch.uint8, device="cuda")
    outside = torch.empty(3 * MIB, dtype=torch.uint8, device="cuda")
    segments = torch.cuda.memory_snapshot()
    inside = [s for s in segments if s["address"] <= x.data_ptr() < s["address"] + s["total_size"]]
    assert len(inside) == 1 and tuple(inside[0]["segment_pool_id"]) == tuple(pool.id)
    assert len(pool.snapshot()) == 1
    del x, outside, pool


@check()
def graph_capture_and_replay(torch):
    source = torch.zeros(1 << 18).pin_memory()
    target = torch.zeros(1 << 18).pin_memory()
    on_device = torch.empty(1 << 18, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        on_device.copy_(source, non_blocking=True)
        scratch = torch.empty_like(on_device)
        scratch.copy_(on_device)
        target.copy_(scratch, non_blocking=True)
    assert torch.equal(target, torch.zeros(1 << 18)), "a capture ran what it was to record"
    for round_number in range(3):
        source.copy_(torch.full((1 << 18,), float(round_number + 1)))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(source, target), round_number
    pools = {tuple(s["segment_pool_id"]) for s in torch.cuda.memory_snapshot()}
    assert tuple(graph.pool()) in pools, pools
    graph.reset()


@check({"PYTORCH_ALLOC_CONF": "expandable_segments:True"})
def expandable_segments(torch):
    kept = [torch.rand(size * MIB // 4).cuda() for size in (1, 5, 30, 70)]
    first = torch.rand(MIB)
    again = first.cuda()
    assert torch.equal(again.cpu(), first)
    segments = torch.cuda.memory_snapshot()
    assert segments and all(s["is_expandable"] for s in segments), segments
    reserved = torch.cuda.memory_reserved()
    del kept
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < reserved, "nothing was unmapped"
    bigger = torch.rand(90 * MIB // 4)
    assert torch.equal(bigger.cuda().cpu(), bigger)


def train(torch, steps):
    """A small transformer with AdamW in bf16; peak bytes."""
    import torch.nn as nn

    torch.manual_seed(1)
    with torch.device("cuda"):
        layer = nn.TransformerEncoderLayer(256, 8, 1024, batch_first=True, dtype=torch.bfloat16)
        model = nn.Sequential(nn.TransformerEncoder(layer, 4, enable_nested_tensor=False))
        head = nn.Linear(256, 1000, dtype=torch.bfloat16)
    parameters = list(model.parameters()) + list(head.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    for step in range(steps):
        length = 64 + 32 * (step % 3)
        x = torch.randn(8, length, 256, dtype=torch.bfloat16).cuda(non_blocking=True)
        y = torch.randint(0, 1000, (8 * length,)).cuda()
        loss = nn.functional.cross_entropy(head(model(x)).flatten(0, 1), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


@check()
def training_loop(torch):
    peak = train(torch, 6)
    assert peak > 20 * MIB, peak
    stats = torch.cuda.memory_stats()
    assert stats["allocation.all.allocated"] > 500, stats["allocation.all.allocated"]


@check({"PYTORCH_ALLOC_CONF": "expandable_segments:True"})
def training_loop_expandable(torch):
    assert train(torch, 6) > 20 * MIB
    assert all(s["is_expandable"] for s in torch.cuda.memory_snapshot())


@check({"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"})
def cuda_malloc_async(torch):
    assert torch.cuda.get_allocator_backend() == "cudaMallocAsync"
    source = torch.rand(MIB)
    x = source.cuda()
    assert torch.equal(x.cpu(), source)
    assert torch.cuda.memory_allocated() >= 4 * MIB
    del x
    torch.cuda.empty_cache()


@check({"SOFTCUDA_DEVICES": "2"})
def two_devices(torch):
    assert torch.cuda.device_count() == 2
    source = torch.rand(MIB)
    first = source.to("cuda:0")
    second = first.to("cuda:1")
    assert second.device.index == 1 and torch.equal(second.cpu(), source)
    with torch.cuda.device(1):
        assert torch.empty(1, device="cuda").device.index == 1
    assert torch.cuda.current_device() == 0


@check()
def threads(torch):
    import threading

    errors = []

    def work(seed):
        try:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for i in range(50):
                    source = torch.full((1000 + i * 37,), float(seed))
                    assert torch.equal(source.cuda().cpu(), source)
        except BaseException as error:  # shown by the main thread
            errors.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors, errors


def read_shared(queue, answers):
    tensor = queue.get()
    answers.put(tensor.cpu().sum().item())
    del tensor


@check()
def shared_between_processes(torch):
    import torch.multiprocessing as processes

    context = processes.get_context("spawn")
    queue, answers = context.SimpleQueue(), context.SimpleQueue()
    worker = context.Process(target=read_shared, args=(queue, answers))
    worker.start()
    source = torch.arange(1000, dtype=torch.int64)
    shared = source.cuda()
    queue.put(shared)
    result = answers.get()
    worker.join(30)
    assert worker.exitcode == 0, worker.exitcode
    assert result == source.sum().item(), result


@check()
def nvml(torch):
    used = torch.cuda.memory_reserved()
    assert used == 0
    assert torch.cuda.utilization is not None
    # What torch's out-of-memory message and expandable segments ask.
    import ctypes

    library = ctypes.CDLL("libnvidia-ml.so.1")
    count = ctypes.c_uint()
    assert library.nvmlInit_v2() == 0 and library.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
    assert count.value == torch.cuda.device_count()


def run_all(names):
    """Each check in a process of its own. How many failed."""
    failed = 0
    for name in names:
        environment = {**os.environ, **CHECKS[name][1]}
        started = time.time()
        command = [sys.executable, os.path.abspath(__file__), "--here", name]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
            held, text = done.returncode == 0, done.stdout + done.stderr
            why = "" if held else f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            held, text, why = False, "", "no end after 300 s"
        print(f"{'ok    ' if held else 'FAILED'}  {name}  ({time.time() - started:.1f} s) {why}", flush=True)
        if not held:
            failed += 1
            print("    " + "\n    ".join(text.strip().splitlines()[-12:]), flush=True)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checks", nargs="*", help="which checks, all unless told")
    parser.add_argument("--list", action="store_true", help="print the names of the checks")
    parser.add_argument("--here", action="store_true", help="run one check in this process")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.checks if name not in CHECKS]
    if unknown:
        parser.error(f"no such check: {', '.join(unknown)}; --list names them")
    if arguments.list:
        print("\n".join(CHECKS))
        return 0
    if arguments.here:
        import torch

        for name in arguments.checks:
            CHECKS[name][0](torch)
        return 0
    failed = run_all(arguments.checks or list(CHECKS))
    print("all checks held" if failed == 0 else f"{failed} checks failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
