"""Every public function of torch.cuda.memory, torch.cuda.graphs and torch.accelerator.memory, called once: what it does with the
allocator that is installed. Run as a program, it prints a JSON object; test_functions.py makes ../TORCH.md of it."""

import inspect
import json
import os
import sys
import tempfile

WORKS, RAISES, WARNS, NOT_OURS = "works", "raises", "warns", "not applicable"

#: What no allocator has a part in, and why.
NOT_APPLICABLE = {
    "cuda.memory.host_memory_stats": "pinned host memory, which stays torch's own",
    "cuda.memory.host_memory_stats_as_nested_dict": "pinned host memory",
    "cuda.memory.reset_accumulated_host_memory_stats": "pinned host memory",
    "cuda.memory.reset_peak_host_memory_stats": "pinned host memory",
    "cuda.memory.list_gpu_processes": "asks NVML",
    "cuda.memory.mem_get_info": "asks the driver",
    "cuda.memory.CUDAPluggableAllocator": "makes an allocator, installs none",
    "accelerator.memory.empty_host_cache": "pinned host memory",
    "accelerator.memory.get_memory_info": "asks the driver",
    "cuda.graphs.is_current_stream_capturing": "asks the driver",
    "cuda.graphs.export_dot": "draws a graph",
    "cuda.graphs.export_graph_data": "writes a graph down",
    "cuda.graphs.register_graph_capture_start_hook": "Python only",
    "cuda.graphs.register_graph_capture_end_hook": "Python only",
    "cuda.graphs.register_graph_instantiate_hook": "Python only",
    "cuda.graphs.register_graph_replay_start_hook": "Python only",
    "cuda.graphs.register_graph_replay_end_hook": "Python only",
    "cuda.graphs.register_graph_destroy_hook": "Python only",
    "cuda.memory._set_allocator_settings": "torch's own options; ours are in STRATALLOC_CONF",
    "cuda.memory._save_segment_usage": "draws a snapshot",
    "cuda.memory._save_memory_usage": "draws a snapshot",
    "cuda.memory._use_uvm": "wants the package cuda-python, and a MemPool with an allocator of its own",
}

#: Underscored functions that people use all the same.
PRIVATE = (
    "_record_memory_history", "_snapshot", "_dump_snapshot", "_set_memory_metadata", "_get_memory_metadata",
    "_memory_metadata_supported", "_annotate_tensor", "_allocation_traceback", "_get_current_allocator",
    "_set_allocator_settings", "_save_segment_usage", "_save_memory_usage", "_use_uvm",
)  # fmt: skip


def names(torch):
    """Every name that the table has to have a line for."""
    found = [f"cuda.memory.{name}" for name in torch.cuda.memory.__all__]
    # Not every version has them all.
    found += [f"cuda.memory.{name}" for name in PRIVATE if hasattr(torch.cuda.memory, name)]
    found += [f"cuda.graphs.{name}" for name in torch.cuda.graphs.__all__]
    found += [f"accelerator.memory.{name}" for name in torch.accelerator.memory.__all__]
    return found


#: Beyond torch.cuda.memory: what tensors and torch.compile ask of an allocator.
EXTRA = (
    "Tensor.record_stream", "out of memory", "attach_out_of_memory_observer",
    "checkpoints of a graph's pool", "checkPoolLiveAllocations", "MemPool(allocator)", "MemPool(use_on_oom=True)", "MemPool(no_split=True)",
    "UntypedStorage._share_cuda_", "UntypedStorage._share_cuda_ within stratalloc.torch.shareable()", "profiler's memory events",
    "stratalloc.sleep and wake", "stratalloc.offload and restore", "stratalloc.torch.offload_activations",
    "stratalloc.torch.offload_optimizer",
)  # fmt: skip


#: So that there is somewhere to go.
TIERS = "tiers:host=256MiB"


def calls(torch):
    """How each is called, and what it has to come to. A call that does nothing fails its own assertion."""
    memory, graphs = torch.cuda.memory, torch.cuda.graphs

    def tensor(size=1 << 20):
        return torch.empty(size, dtype=torch.uint8, device="cuda")

    def raw():
        ptr = memory.caching_allocator_alloc(1 << 20)
        assert ptr
        memory.caching_allocator_delete(ptr)

    def leaves(go, come_back):
        values = torch.arange(1 << 20)
        with stratalloc.tag("weights"):
            x = values.cuda()
        address = x.data_ptr()
        go()
        assert stratalloc.residency(x).state == "host"
        come_back()
        assert stratalloc.residency(x).state == "resident"
        assert x.data_ptr() == address and torch.equal(x.cpu(), values)

    def activations():
        x = torch.zeros(1 << 20, device="cuda", requires_grad=True)
        with stratalloc.torch.offload_activations(keep_last=0) as offloaded:
            y = x.exp().sum()
        y.backward()
        assert x.grad.shape == x.shape
        assert offloaded.bytes_out == offloaded.bytes_in == x.nbytes

    def optimizer():
        x = torch.zeros(1 << 20, device="cuda", requires_grad=True)
        made = torch.optim.SGD([x], momentum=0.9)
        stratalloc.torch.offload_optimizer(made)
        x.grad = torch.zeros_like(x)
        made.step()
        assert stratalloc.residency(made.state[x]["momentum_buffer"]).state == "host"

    def disabled():
        with memory.caching_allocator_disabled():
            assert not torch._C._cuda_cudaCachingAllocator_is_enabled()
            x = tensor()
            del x

    def enable():
        memory.caching_allocator_enable(False)
        try:
            before = memory._snapshot()["segments"]
            # Memory that the driver gives and takes itself.
            free = torch.cuda.mem_get_info()[0]
            x = tensor(64 << 20)
            assert torch.cuda.mem_get_info()[0] <= free - (64 << 20)
            assert memory._snapshot()["segments"] == before
            del x
            assert torch.cuda.mem_get_info()[0] == free
        finally:
            memory.caching_allocator_enable(True)

    def fraction():
        memory.set_per_process_memory_fraction(0.5)
        try:
            torch.empty(int(torch.cuda.get_device_properties(0).total_memory * 0.6), dtype=torch.uint8, device="cuda")
        except RuntimeError as error:
            assert "out of memory" in str(error)
        else:
            raise AssertionError("no limit")
        finally:
            memory.set_per_process_memory_fraction(1.0)

    def empties(empty):
        x = tensor(256 << 20)
        free = torch.cuda.mem_get_info()[0]
        del x
        empty()
        assert torch.cuda.mem_get_info()[0] >= free + (256 << 20)

    def counts(read):
        before = read()
        x = tensor(32 << 20)
        assert read() >= before
        assert read() > 0
        del x

    def peaks(reset, read, current):
        x = tensor(64 << 20)
        del x
        reset()
        assert read() == current()

    def totals(reset):
        x = tensor()
        del x
        reset()
        assert memory.memory_stats()["allocation.all.allocated"] == 0

    def pool():
        made = torch.cuda.MemPool()
        with torch.cuda.use_mem_pool(made):
            x = tensor()
        ptr = x.data_ptr()
        assert any(s["address"] <= ptr < s["address"] + s["total_size"] for s in made.snapshot())

    def lending():
        total = torch.cuda.get_device_properties(0).total_memory
        made = torch.cuda.MemPool(use_on_oom=True)
        with torch.cuda.use_mem_pool(made):
            x = torch.empty(int(total * 0.7), dtype=torch.uint8, device="cuda")
        del x
        torch.empty(int(total * 0.6), dtype=torch.uint8, device="cuda")

    def recorded(check):
        memory._record_memory_history("all")
        try:
            x = tensor()
            memory._set_memory_metadata("here")
            if hasattr(memory, "_annotate_tensor"):
                memory._annotate_tensor(x, "note")
            memory._set_memory_metadata("")
            check(x, memory._snapshot()["device_traces"][0])
        finally:
            memory._record_memory_history(None)

    def metadata():
        memory._set_memory_metadata("here")
        if not hasattr(memory, "_memory_metadata_supported") or memory._memory_metadata_supported():
            assert memory._get_memory_metadata() == "here"
        memory._set_memory_metadata("")

    def dump():
        with tempfile.TemporaryDirectory() as folder:
            memory._dump_snapshot(os.path.join(folder, "snapshot.pickle"))

    def graph():
        source = torch.arange(100).cuda()
        made = torch.cuda.CUDAGraph()
        with torch.cuda.graph(made):
            out = torch.empty_like(source).copy_(source)
        source.copy_(torch.arange(100, 200))
        made.replay()
        torch.cuda.synchronize()
        assert torch.equal(out.cpu(), torch.arange(100, 200))

    def graphed():
        layer = torch.nn.Linear(8, 8, device="cuda")
        graphs.make_graphed_callables(layer, (torch.empty(2, 8, device="cuda", requires_grad=True),))

    def record_stream():
        x = tensor()
        x.record_stream(torch.cuda.Stream())

    def out_of_memory():
        try:
            tensor(1 << 45)
        except torch.OutOfMemoryError as error:
            assert "stratalloc" in str(error)
        except RuntimeError as error:
            assert "out of memory" in str(error)
            raise RuntimeError("an error that is a RuntimeError and not torch.OutOfMemoryError") from error

    def observer():
        seen = []
        torch._C._cuda_attach_out_of_memory_observer(lambda *facts: seen.append(facts))
        try:
            tensor(1 << 45)
        except torch.OutOfMemoryError:
            pass
        assert seen

    def checkpoint():
        handle = torch.cuda.graph_pool_handle()
        made = torch.cuda.CUDAGraph()
        with torch.cuda.graph(made, pool=handle):
            x = tensor()
        state = torch._C._cuda_getCheckpointState(0, handle)
        torch._C._cuda_setCheckpointPoolState(0, state, [x.untyped_storage()._cdata], [])
        torch._C._cuda_cudaCachingAllocator_raw_delete(x.data_ptr())

    def shared():
        import stratalloc

        with stratalloc.torch.shareable():
            x = tensor()
        handle = x.untyped_storage()._share_cuda_()
        assert handle[1][1:2] == b"c"

    def live_check():
        handle = torch.cuda.graph_pool_handle()
        made = torch.cuda.CUDAGraph()
        with torch.cuda.graph(made, pool=handle):
            x = tensor()
        assert torch._C._cuda_checkPoolLiveAllocations(0, handle, {x.data_ptr()})
        assert not torch._C._cuda_checkPoolLiveAllocations(0, handle, set())

    def profiler():
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
            x = tensor(8 << 20)
            del x
        assert (8 << 20) in [event.device_memory_usage for event in prof.events()]

    change = memory.change_current_allocator

    def too_late():
        try:
            change(memory._get_current_allocator())
        except RuntimeError as error:
            # After CUDA is initialised, torch refuses any allocator.
            assert "swap" in str(error)

    stats = {
        "cuda.memory.memory_stats": lambda: counts(lambda: len(memory.memory_stats())),
        "cuda.memory.memory_stats_as_nested_dict": lambda: counts(lambda: len(memory.memory_stats_as_nested_dict())),
        "cuda.memory.memory_allocated": lambda: counts(memory.memory_allocated),
        "cuda.memory.max_memory_allocated": lambda: counts(memory.max_memory_allocated),
        "cuda.memory.memory_reserved": lambda: counts(memory.memory_reserved),
        "cuda.memory.max_memory_reserved": lambda: counts(memory.max_memory_reserved),
        "cuda.memory.memory_cached": lambda: counts(memory.memory_cached),
        "cuda.memory.max_memory_cached": lambda: counts(memory.max_memory_cached),
        "cuda.memory.memory_snapshot": lambda: counts(lambda: len(memory.memory_snapshot())),
        "cuda.memory.memory_summary": lambda: counts(lambda: len(memory.memory_summary())),
        "cuda.memory.reset_accumulated_memory_stats": lambda: totals(memory.reset_accumulated_memory_stats),
        "accelerator.memory.memory_stats": lambda: counts(lambda: len(torch.accelerator.memory_stats())),
        "accelerator.memory.memory_allocated": lambda: counts(torch.accelerator.memory_allocated),
        "accelerator.memory.max_memory_allocated": lambda: counts(torch.accelerator.max_memory_allocated),
        "accelerator.memory.memory_reserved": lambda: counts(torch.accelerator.memory_reserved),
        "accelerator.memory.max_memory_reserved": lambda: counts(torch.accelerator.max_memory_reserved),
        "accelerator.memory.reset_accumulated_memory_stats": lambda: totals(
            torch.accelerator.reset_accumulated_memory_stats
        ),
        "accelerator.memory.reset_peak_memory_stats": lambda: peaks(
            torch.accelerator.reset_peak_memory_stats, memory.max_memory_allocated, memory.memory_allocated
        ),
    }
    for name in ("reset_peak_memory_stats", "reset_max_memory_allocated"):
        stats[f"cuda.memory.{name}"] = lambda name=name: peaks(
            getattr(memory, name), memory.max_memory_allocated, memory.memory_allocated
        )
    stats["cuda.memory.reset_max_memory_cached"] = lambda: peaks(
        memory.reset_max_memory_cached, memory.max_memory_reserved, memory.memory_reserved
    )
    return stats | {
        "cuda.memory.caching_allocator_alloc": raw,
        "cuda.memory.caching_allocator_delete": raw,
        "cuda.memory.caching_allocator_disabled": disabled,
        "cuda.memory.caching_allocator_enable": enable,
        "cuda.memory.get_per_process_memory_fraction": lambda: memory.get_per_process_memory_fraction() or 1 / 0,
        "cuda.memory.set_per_process_memory_fraction": fraction,
        "cuda.memory.empty_cache": lambda: empties(memory.empty_cache),
        "accelerator.memory.empty_cache": lambda: empties(torch.accelerator.empty_cache),
        "cuda.memory.get_allocator_backend": lambda: memory.get_allocator_backend() or 1 / 0,
        "cuda.memory.change_current_allocator": too_late,
        "cuda.memory.MemPool": pool,
        "cuda.memory.use_mem_pool": pool,
        "cuda.memory._record_memory_history": lambda: recorded(lambda x, trace: trace or 1 / 0),
        "cuda.memory._snapshot": lambda: counts(lambda: len(memory._snapshot())),
        "cuda.memory._dump_snapshot": dump,
        "cuda.memory._set_memory_metadata": metadata,
        "cuda.memory._get_memory_metadata": lambda: isinstance(memory._get_memory_metadata(), str) or 1 / 0,
        "cuda.memory._memory_metadata_supported": lambda: isinstance(memory._memory_metadata_supported(), bool) or 1 / 0,
        "cuda.memory._annotate_tensor": lambda: recorded(
            lambda x, trace: [e for e in trace if e["action"] == "annotate"] or 1 / 0
        ),
        "cuda.memory._allocation_traceback": lambda: recorded(
            lambda x, trace: memory._allocation_traceback(x.data_ptr()) or 1 / 0
        ),
        "cuda.memory._get_current_allocator": lambda: memory._get_current_allocator() or 1 / 0,
        "cuda.graphs.graph_pool_handle": lambda: graphs.graph_pool_handle() or 1 / 0,
        "cuda.graphs.CUDAGraph": graph,
        "cuda.graphs.graph": graph,
        "cuda.graphs.make_graphed_callables": graphed,
        "Tensor.record_stream": record_stream,
        "out of memory": out_of_memory,
        "attach_out_of_memory_observer": observer,
        "checkpoints of a graph's pool": checkpoint,
        "checkPoolLiveAllocations": live_check,
        "MemPool(allocator)": lambda: torch.cuda.MemPool(torch._C._cuda_customAllocator(1, 1)),
        "MemPool(use_on_oom=True)": lending,
        "MemPool(no_split=True)": lambda: torch.cuda.MemPool(no_split=True),
        "UntypedStorage._share_cuda_": lambda: tensor().untyped_storage()._share_cuda_(),
        "UntypedStorage._share_cuda_ within stratalloc.torch.shareable()": shared,
        "profiler's memory events": profiler,
        "stratalloc.sleep and wake": lambda: leaves(stratalloc.sleep, stratalloc.wake),
        "stratalloc.offload and restore": lambda: leaves(stratalloc.offload, stratalloc.restore),
        "stratalloc.torch.offload_activations": activations,
        "stratalloc.torch.offload_optimizer": optimizer,
    }


def outcomes(torch):
    """Each function's outcome: a word, and a text."""
    import warnings

    table = {}
    how = calls(torch)
    for name in (*names(torch), *EXTRA):
        if name in NOT_APPLICABLE:
            table[name] = [NOT_OURS, NOT_APPLICABLE[name]]
            continue
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                how[name]()
            said = [str(w.message) for w in caught if "does not support" in str(w.message)]
            table[name] = [WARNS, said[0]] if said else [WORKS, ""]
        except AssertionError as error:
            table[name] = ["SILENT", str(error)]
        except ZeroDivisionError:
            table[name] = ["SILENT", "no value"]
        except Exception as error:  # noqa: BLE001
            table[name] = [RAISES, f"{type(error).__name__}: {str(error).splitlines()[0]}"]
    return table


if __name__ == "__main__":
    import stratalloc

    stratalloc.torch.enable(TIERS, fallback={"extension": "never", "pluggable": "only"}[sys.argv[1]])
    import torch

    torch.cuda.init()
    assert inspect.ismodule(torch.cuda.memory)
    print(json.dumps(outcomes(torch)))
