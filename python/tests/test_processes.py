"""Forks, children, threads, exits; and two devices, where the software device has two."""

import json

import pytest
import torch
from helpers import on_gpu, run, run_json


def test_workers_of_a_data_loader_may_be_forked():
    class Numbers(torch.utils.data.Dataset):
        def __len__(self):
            return 64

        def __getitem__(self, at):
            return torch.full((100,), at)

    kept = on_gpu(1000)
    loader = torch.utils.data.DataLoader(Numbers(), batch_size=8, num_workers=2, pin_memory=True)
    rows = sum(int(batch.cuda(non_blocking=True).cpu()[:, 0].sum()) for batch in loader)
    assert rows == sum(range(64))
    assert kept.data_ptr()


def test_a_forked_child_is_told_and_ends_well():
    result = run(
        """
        import os, sys
        x = torch.empty(1000, device="cuda")
        child = os.fork()
        if child == 0:
            try:
                torch.empty(1000, device="cuda")
            except RuntimeError as error:
                print("told:", str(error).splitlines()[0], flush=True)
            del x
            # An exit with all that Python does at its end.
            sys.exit(7)
        _, status = os.waitpid(child, 0)
        y = torch.arange(100).cuda()
        print(os.waitstatus_to_exitcode(status), torch.equal(y.cpu(), torch.arange(100)))
        """
    )
    assert "told:" in result.stdout and "7 True" in result.stdout


# torch gives a pool back in destructors, where an exception ends the process.
@pytest.mark.parametrize("allocator", ["extension", "pluggable"])
def test_a_forked_child_ends_well_with_graphs_and_pools(allocator):
    result = run(
        """
        import os, sys, warnings
        x = torch.zeros(1000, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = x + 1
        pools = []
        if torch.cuda.get_allocator_backend() == "stratalloc":
            pools = [torch.cuda.MemPool(), torch.cuda.MemPool(use_on_oom=True)]
            with torch.cuda.use_mem_pool(pools[0]):
                pooled = torch.empty(1000, device="cuda")
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            warnings.simplefilter("error")
            if pools:
                print("users:", pools[1].use_count(), flush=True)
            del graph, y
            pools.clear()
            sys.exit(7)
        _, status = os.waitpid(child, 0)
        graph.replay()
        z = torch.arange(100).cuda()
        print(os.waitstatus_to_exitcode(status), torch.equal(z.cpu(), torch.arange(100)))
        """,
        allocator=allocator,
    )
    assert "7 True" in result.stdout, result.stderr
    assert allocator == "pluggable" or "users: 1" in result.stdout


# The allocator is made at the first use, so a child that is forked before may have its own. (To count devices, torch asks NVML,
# which the software device cannot answer without the driver: hence require_device.)
def test_enabled_before_a_fork_and_used_after():
    result = run(
        """
        import os, stratalloc, torch
        stratalloc.torch.enable(fallback="never", require_device=False)
        child = os.fork()
        if child == 0:
            x = torch.arange(100).cuda()
            print(torch.cuda.get_allocator_backend(), torch.equal(x.cpu(), torch.arange(100)), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        x = torch.arange(100).cuda()
        print(torch.equal(x.cpu(), torch.arange(100)))
        """,
        allocator="none",
    )
    assert result.stdout.splitlines() == ["stratalloc True", "True"]


def test_tensors_that_live_to_the_end():
    result = run(
        """
        import atexit, threading
        keep = [torch.empty(1 << 20, device="cuda") for _ in range(10)]
        atexit.register(lambda: print("late:", torch.empty(100, device="cuda").numel()))
        threads = [threading.Thread(target=lambda: keep.append(torch.empty(1000, device="cuda"))) for _ in range(4)]
        [thread.start() for thread in threads]
        """
    )
    assert "late: 100" in result.stdout


RECEIVE = """
import pickle, sys
from multiprocessing.connection import Client
import torch
with Client(sys.argv[1], authkey=b"x") as connection:
    torch.cuda.init()
    from multiprocessing.reduction import ForkingPickler
    tensor = pickle.loads(connection.recv_bytes())
    print(torch.cuda.get_allocator_backend(), torch.equal(tensor.cpu(), torch.arange(1000)), flush=True)
    tensor.copy_(torch.arange(1000, 2000))
    torch.cuda.synchronize()
    del tensor
    connection.send("done")
    connection.recv()
"""

SEND = """
import subprocess, sys, contextlib
from multiprocessing.connection import Listener
from multiprocessing.reduction import ForkingPickler
import torch, torch.multiprocessing
import stratalloc
with stratalloc.torch.shareable() if stratalloc.torch.enabled() else contextlib.nullcontext():
    x = torch.arange(1000).cuda()
address = sys.argv[1]
with Listener(address, authkey=b"x") as listener:
    child = subprocess.Popen([sys.executable, "-c", sys.argv[2], address])
    with listener.accept() as connection:
        connection.send_bytes(ForkingPickler.dumps(x))
        connection.recv()
        print(torch.equal(x.cpu(), torch.arange(1000, 2000)), flush=True)
        connection.send("end")
    child.wait()
"""


@pytest.mark.parametrize("sender, receiver", [("stratalloc", "stratalloc"), ("stratalloc", "native"), ("native", "stratalloc")])
def test_tensors_made_to_be_shared_are(sender, receiver, tmp_path):
    enable = "import stratalloc; stratalloc.torch.enable(fallback='never')\n"
    code = {"stratalloc": enable, "native": ""}
    allocator = "extension" if sender == "stratalloc" else "native"
    result = run(SEND, allocator=allocator, arguments=[str(tmp_path / "socket"), code[receiver] + RECEIVE])
    assert result.stdout.splitlines() == [f"{receiver} True", "True"], result.stderr


def test_two_devices():
    found = run_json(
        """
        import json
        x = torch.arange(1000).to("cuda:0")
        y = x.to("cuda:1")
        z = torch.empty(5 << 20, dtype=torch.uint8, device="cuda:1")
        with torch.cuda.device(1):
            w = torch.arange(10).cuda()
        print(json.dumps([
            torch.cuda.device_count(), torch.equal(y.cpu(), torch.arange(1000)), str(w.device),
            torch.cuda.memory_allocated(0), torch.cuda.memory_allocated(1),
            sorted({s["device"] for s in torch.cuda.memory_snapshot()}),
        ]))
        """,
        env={"SOFTCUDA_DEVICES": "2"},
    )
    assert found[:3] == [2, True, "cuda:1"]
    assert found[3] == 8192 and found[4] >= (5 << 20) + 8192
    assert found[5] == [0, 1]


# A context takes some hundred megabytes of a real device. torch makes none on a device that is not used, and neither do we.
@pytest.mark.parametrize("allocator", ["native", "extension", "pluggable"])
def test_a_device_that_is_not_used_has_no_context(allocator):
    result = run(
        """
        def contexts():
            return [torch._C._cuda_hasPrimaryContext(device) for device in range(2)]
        torch.cuda.init()
        x = torch.empty(1000, device="cuda:0")
        if torch.cuda.get_allocator_backend() != "pluggable":
            assert torch.cuda.memory_stats(1)["reserved_bytes.all.current"] == 0
            torch.cuda.reset_peak_memory_stats(1)
            torch.cuda.memory_snapshot()
        torch.cuda.set_per_process_memory_fraction(0.5, 0)
        del x
        torch.cuda.empty_cache()
        print(contexts())
        y = torch.empty(1000, device="cuda:1")
        print(contexts())
        """,
        allocator=allocator,
        env={"SOFTCUDA_DEVICES": "2"},
    )
    assert result.stdout.splitlines() == ["[True, False]", "[True, True]"]


# Memory that is mapped before and after the other device was let in.
def test_peer_access():
    found = run_json(
        """
        import json
        x = torch.arange(1000).to("cuda:0")
        before = torch.cuda.can_device_access_peer(0, 1)
        y = x.to("cuda:1")
        big = torch.arange(1 << 22).to("cuda:0")
        there = big.to("cuda:1")
        print(json.dumps([before, torch.equal(y.cpu(), x.cpu()), torch.equal(there.cpu(), big.cpu())]))
        """,
        env={"SOFTCUDA_DEVICES": "2"},
    )
    assert found[1:] == [True, True]


def test_many_threads_and_one_history():
    result = run(
        """
        import threading, json
        torch.cuda.memory._record_memory_history("all", max_entries=100_000)
        def work(seed):
            for step in range(500):
                torch.empty((seed + 1) * 1000 + step * 64, dtype=torch.uint8, device="cuda")
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        trace = torch.cuda.memory._snapshot()["device_traces"][0]
        counts = {}
        for entry in trace:
            counts[entry["action"]] = counts.get(entry["action"], 0) + 1
        print(json.dumps(counts))
        """
    )
    counts = json.loads(result.stdout.splitlines()[-1])
    assert counts["alloc"] == counts["free_requested"] == counts["free_completed"] == 4000
