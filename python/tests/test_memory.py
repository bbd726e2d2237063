"""Sharing memory and plans, from Python."""

import gc

import pytest
import torch
from helpers import MIB, on_gpu, run, run_json

import stratalloc


def test_tensors_keep_address_and_contents():
    keep = []
    for number in range(256):
        x = on_gpu(60_000)
        x.copy_(torch.full((60_000,), number % 251, dtype=torch.uint8))
        if number % 4 == 0:
            keep.append((x, x.data_ptr(), number % 251))
    del x
    gc.collect()
    report = stratalloc.defragment()
    assert sorted(report) == ["chunks", "copied", "meshed", "pages", "paired", "released"]
    assert report["pages"] + report["chunks"] > 0
    for x, address, value in keep:
        assert x.data_ptr() == address
        assert bool((x.cpu() == value).all())


def test_limits_and_devices_are_checked():
    x = on_gpu(MIB)
    for limits in ({"max_bytes": 0}, {"max_seconds": -1}):
        with pytest.raises(ValueError):
            stratalloc.defragment(**limits)
    for device in (7, -1):
        with pytest.raises(ValueError):
            stratalloc.defragment(device)
    assert stratalloc.defragment("cuda:0", max_bytes=1, max_seconds=1.0)["copied"] == 0
    assert stratalloc.defragment(torch.device("cuda"))["released"] >= 0
    del x


def test_a_capture_is_told_and_goes_on():
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x = on_gpu(MIB)
        with pytest.raises(stratalloc.StratallocError, match="capture"):
            stratalloc.defragment()
    graph.replay()
    del x


STEPS = """
import json, stratalloc
def program():
    for _ in range(4):
        stratalloc.step()
        for round in range(1, 200):
            x = torch.empty(round << 14, dtype=torch.uint8, device="cuda")
            del x
program()
plan = stratalloc.export_plan()
again = stratalloc.export_plan(0)
steps = stratalloc.import_plan(plan)
refused = 0
for wrong in (b"", plan[:-1], b"not a plan"):
    try:
        stratalloc.import_plan(wrong)
    except stratalloc.StratallocError:
        refused += 1
print(json.dumps([len(plan) > 0, plan == again, steps, refused]))
"""


def test_a_plan_is_exported_and_taken_over():
    for allocator in ("extension", "pluggable"):
        found = run_json(STEPS, allocator=allocator, env={"STRATALLOC_CONF": "plan:inline"})
        assert found[0] and found[1] and found[2] >= 1 and found[3] == 3, (allocator, found)


def test_nothing_without_enable():
    code = """
    import stratalloc
    for call in (stratalloc.step, stratalloc.defragment, stratalloc.export_plan):
        try:
            call()
        except stratalloc.StratallocError as error:
            assert "enable" in str(error)
        else:
            raise SystemExit(call.__name__)
    """
    run(code, allocator="native")
