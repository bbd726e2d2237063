"""Snapshots and recorded history: shape, contents, and that memory_viz and pickle open them."""

import io
import pickle
import time

import memory_viz
import pytest
import torch
from helpers import MIB, SINCE_2_15, on_gpu

history = torch.cuda.memory._record_memory_history
snapshot = torch.cuda.memory._snapshot


def trace(action=None):
    entries = snapshot()["device_traces"][0]
    return [e for e in entries if action in (None, e["action"])]


def block_of(tensor, taken=None):
    blocks = (b for s in (taken or snapshot())["segments"] for b in s["blocks"])
    return next(b for b in blocks if b["address"] == tensor.data_ptr())


def test_a_snapshot_tiles():
    keep = [on_gpu(size) for size in (100, 600, 5000, 70_000, MIB, 3 * MIB, 40 * MIB)]
    del keep[1::2]
    memory_viz.check(snapshot())
    del keep


def test_a_busy_history_replays_backwards():
    history("all")
    generator = torch.Generator().manual_seed(3)
    keep = []
    for step in range(400):
        size = int(torch.randint(1, 1 << 22, (1,), generator=generator))
        keep.append(on_gpu(size if step % 3 else size // 1000 + 1))
        if len(keep) > 30:
            del keep[step % 30]
        if step % 150 == 149:
            torch.cuda.empty_cache()
    taken = snapshot()
    memory_viz.check(taken)
    actions = {entry["action"] for entry in taken["device_traces"][0]}
    assert {"alloc", "free_requested", "free_completed", "segment_map", "segment_unmap"} <= actions
    # With stack traces, all of it: the page shows them for segments too.
    without = {e["action"] for e in taken["device_traces"][0] if not e.get("frames")}
    assert without <= {"snapshot"}, without
    del keep


def test_memory_viz_and_pickle_open_it(tmp_path):
    history("all")
    x = on_gpu(5 * MIB)
    path = tmp_path / "snapshot.pickle"
    torch.cuda.memory._dump_snapshot(str(path))
    data = path.read_bytes()
    ours = memory_viz.load(data)
    assert ours == pickle.loads(data)
    memory_viz.check(ours)
    memory_viz.check(memory_viz.load(pickle.dumps(snapshot(), protocol=2)))
    del x


def test_torchs_own_drawings():
    history("all")
    x = on_gpu(5 * MIB)
    from torch.cuda._memory_viz import memory, segments, trace_plot, segment_plot, segsum

    taken = snapshot()
    assert "<svg" in trace_plot(taken) or "html" in trace_plot(taken)
    assert segment_plot(taken)
    assert "5.0MiB" in segsum(taken) or segsum(taken)
    del x, memory, segments


def test_contexts_of_live_blocks_and_of_the_trace():
    history("all", context="all", stacks="python")
    x = on_gpu(3 * MIB)
    taken = snapshot()
    names = [frame["name"] for frame in block_of(x, taken)["frames"]]
    assert "test_contexts_of_live_blocks_and_of_the_trace" in names
    alloc = [e for e in taken["device_traces"][0] if e["action"] == "alloc"][-1]
    assert "test_contexts_of_live_blocks_and_of_the_trace" in [frame["name"] for frame in alloc["frames"]]
    assert alloc["addr"] == x.data_ptr() and alloc["size"] == 3 * MIB and alloc["stream"] == 0
    if SINCE_2_15:
        assert tuple(alloc["pool_id"]) == (0, 0)
        assert torch.cuda.memory._allocation_traceback(x.data_ptr())
    del x


def test_state_alone_keeps_no_trace_contexts():
    history("state", context="state", stacks="python")
    x = on_gpu(3 * MIB)
    assert block_of(x)["frames"]
    assert all(not entry.get("frames") for entry in trace("alloc"))
    del x


def test_no_context():
    history("all", context=None)
    x = on_gpu(3 * MIB)
    assert not block_of(x)["frames"]
    assert trace("alloc")[-1]["addr"] == x.data_ptr()
    del x


def test_off_is_off():
    assert not torch._C._cuda_isHistoryEnabled()
    history("all")
    assert torch._C._cuda_isHistoryEnabled()
    x = on_gpu(MIB)
    history(None)
    assert not torch._C._cuda_isHistoryEnabled()
    assert trace() == []
    y = on_gpu(MIB)
    assert trace() == [] and not block_of(y)["frames"] and not block_of(x)["frames"]
    del x, y


# torch's name: test_max_entries / test_memory_snapshot_with_max_entries.
def test_the_newest_entries_are_kept():
    history("all", max_entries=10)
    addresses = []
    for _ in range(30):
        x = on_gpu(3 * MIB)
        addresses.append(x.data_ptr())
        del x
    entries = trace()
    assert len(entries) == 10
    assert [e["action"] for e in entries if e["action"] != "snapshot"][-3:] == ["alloc", "free_requested", "free_completed"]


def test_clear_history():
    history("all")
    on_gpu(MIB)
    assert trace("alloc")
    history("all", clear_history=True)
    assert not trace("alloc")


# torch's name: test_memory_snapshot_skip_actions.
def test_actions_may_be_skipped():
    history("all", skip_actions=["free_requested", "snapshot", "segment_map"])
    on_gpu(90 * MIB)
    snapshot()
    actions = {e["action"] for e in trace()}
    assert "alloc" in actions and "free_completed" in actions
    assert not actions & {"free_requested", "snapshot", "segment_map"}
    with pytest.raises(RuntimeError):
        history("all", skip_actions=["nonsense"])


# Gotcha 5: times are of this century, and of this second.
def test_times_are_right():
    history("all")
    before = time.time() * 1e6
    on_gpu(MIB)
    after = time.time() * 1e6
    for entry in trace("alloc"):
        assert before - 5e4 <= entry["time_us"] <= after + 5e4


def test_freeing_waits_for_recorded_streams_in_the_trace():
    history("all")
    stream = torch.cuda.Stream()
    x = on_gpu(6 * MIB)
    x.record_stream(stream)
    address = x.data_ptr()
    del x
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    mine = [e["action"] for e in trace() if e.get("addr") == address]
    mine = [action for action in mine if not action.startswith("segment")]
    assert mine == ["alloc", "free_requested", "free_completed"]


def test_a_blocks_own_stream_is_nothing_to_wait_for_in_the_trace():
    history("all")
    x = on_gpu(6 * MIB)
    x.record_stream(torch.cuda.current_stream())
    address = x.data_ptr()
    del x
    mine = [e["action"] for e in trace() if e.get("addr") == address and not e["action"].startswith("segment")]
    assert mine == ["alloc", "free_requested", "free_completed"]


def test_region_annotations_stay_in_order_when_more_are_kept():
    def annotate(name):
        with torch.profiler.record_function(name):
            on_gpu(MIB)

    history("all", max_entries=3, global_record_annotations=True)
    for number in range(4):
        annotate(f"old {number}")
    history("all", max_entries=100, global_record_annotations=True)
    annotate("new")
    times = [a["time_us"] for a in snapshot()["external_annotations"]]
    assert len(times) > 3 and times == sorted(times)


# torch's names: test_memory_metadata, test_annotate_tensor.
def test_metadata_and_annotations():
    history("all")
    # torch 2.11 takes texts only.
    torch.cuda.memory._set_memory_metadata({"step": 3} if SINCE_2_15 else '{"step":3}')
    assert torch.cuda.memory._get_memory_metadata() == '{"step":3}'
    x = on_gpu(2 * MIB)
    torch.cuda.memory._set_memory_metadata("")
    y = on_gpu(2 * MIB)
    allocs = {e["addr"]: e for e in trace("alloc")}
    assert allocs[x.data_ptr()]["user_metadata"] == '{"step":3}'
    assert not allocs[y.data_ptr()].get("user_metadata")
    if SINCE_2_15:
        assert torch.cuda.memory._memory_metadata_supported()
        torch.cuda.memory._annotate_tensor(x[10:], "weights")
        note = trace("annotate")[-1]
        assert note["addr"] == x.data_ptr() and note["user_metadata"] == "weights" and note["size"] == 2 * MIB
    del x, y


def test_metadata_is_a_threads_own():
    import threading

    torch.cuda.memory._set_memory_metadata("main")
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.cuda.memory._get_memory_metadata()))
    thread.start()
    thread.join()
    assert found == [""]


def test_compile_contexts():
    history("all", compile_context=True)
    x = on_gpu(MIB)
    assert all("compile_context" in e for e in trace("alloc"))
    del x


def test_region_annotations():
    history("all", global_record_annotations=True)
    with torch.profiler.record_function("my region"):
        on_gpu(MIB)
    names = [a.get("name") for a in snapshot()["external_annotations"]]
    assert "my region" in names


def test_settings_are_in_the_snapshot():
    settings = snapshot()["allocator_settings"]
    assert settings["expandable_segments"] is True


def test_no_traces_when_none_are_asked_for():
    history("all")
    x = on_gpu(MIB)
    without = torch._C._cuda_memorySnapshot((0, 0, False))
    assert all(not t for t in without["device_traces"])
    assert any(torch._C._cuda_memorySnapshot((0, 0, True))["device_traces"])
    del x


def test_an_unpickler_that_refuses():
    data = pickle.dumps({"segments": io.BytesIO})
    with pytest.raises(AssertionError, match="opcode"):
        memory_viz.load(data)
