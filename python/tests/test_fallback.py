"""The pluggable allocator, where there is no compiler: what it has works, what it lacks raises."""

import pytest
from helpers import run, run_json


def pluggable(code, **options):
    return run_json("import json\n" + code, allocator="pluggable", **options)


def test_tensors_and_copies():
    assert pluggable(
        """
host = torch.arange(100_000)
device = host.cuda()
same = torch.equal(device.cpu(), host)
del device
torch.cuda.empty_cache()
print(json.dumps([same, torch.empty(0, device="cuda").data_ptr()]))
"""
    ) == [True, 0]


def test_empty_cache_gives_memory_back():
    before, after = pluggable(
        """
x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
before = torch.cuda.mem_get_info()[0]
del x
torch.cuda.empty_cache()
print(json.dumps([before, torch.cuda.mem_get_info()[0]]))
"""
    )
    assert after - before >= 1 << 30


# Gotcha 9: a null pointer would be a tensor at address 0.
def test_out_of_memory_is_an_error_and_no_tensor():
    kind, text, alive = pluggable(
        """
try:
    torch.empty(1 << 45, dtype=torch.uint8, device="cuda")
except RuntimeError as error:
    kind, text = type(error).__name__, str(error)
x = torch.arange(1000).cuda()
print(json.dumps([kind, text, torch.equal(x.cpu(), torch.arange(1000))]))
"""
    )
    assert kind == "RuntimeError" and "CUDA out of memory" in text and alive


def test_the_fraction_is_a_limit():
    text = pluggable(
        """
torch.cuda.set_per_process_memory_fraction(0.25)
total = torch.cuda.get_device_properties(0).total_memory
torch.empty(int(total * 0.2), dtype=torch.uint8, device="cuda")
try:
    torch.empty(int(total * 0.3), dtype=torch.uint8, device="cuda")
    print(json.dumps("no error"))
except RuntimeError as error:
    print(json.dumps(str(error)))
"""
    )
    assert "out of memory" in text


# The hooks whose absence corrupts memory: a graph's memory stays its own, a recorded stream defers reuse.
def test_a_graphs_memory_is_its_own():
    assert pluggable(
        """
addresses = []
graph = torch.cuda.CUDAGraph()
source = torch.arange(1000).cuda()
with torch.cuda.graph(graph):
    x = torch.empty(5 << 20, dtype=torch.uint8, device="cuda")
    addresses.append(x.data_ptr())
    del x
    out = torch.empty_like(source).copy_(source)
others = [torch.empty(5 << 20, dtype=torch.uint8, device="cuda") for _ in range(8)]
source.copy_(torch.arange(1000, 2000))
graph.replay()
torch.cuda.synchronize()
apart = addresses[0] not in [t.data_ptr() for t in others]
same = torch.equal(out.cpu(), torch.arange(1000, 2000))
del graph, out
print(json.dumps([apart, same]))
"""
    ) == [True, True]


def test_record_stream_reaches_the_library():
    assert pluggable(
        """
import stratalloc
from stratalloc import _lib
import ctypes
x = torch.empty(1 << 20, dtype=torch.uint8, device="cuda")
x.record_stream(torch.cuda.Stream())
empty = torch.empty(0, device="cuda")
empty.record_stream(torch.cuda.Stream())
_, library = _lib.find()
handle = ctypes.c_void_p()
library.stratalloc_default(ctypes.byref(handle))
class Block(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("address", ctypes.c_void_p), ("bytes", ctypes.c_size_t),
                ("requested", ctypes.c_size_t), ("rest", ctypes.c_uint64 * 16)]
print(json.dumps(True))
"""
    )


@pytest.mark.parametrize(
    "call",
    [
        "torch.cuda.memory_allocated()",
        "torch.cuda.memory_snapshot()",
        "torch.cuda.memory._record_memory_history()",
        "torch.cuda.MemPool()",
        "torch.cuda.get_per_process_memory_fraction()",
        "torch._C._cuda_getCheckpointState(0, (1, 0))",
        "torch.empty(10, device='cuda').untyped_storage()._share_cuda_()",
    ],
)
def test_what_it_lacks_raises(call):
    kind = pluggable(
        f"""
torch.cuda.init()
torch.empty(10, device="cuda")
try:
    {call}
    print(json.dumps("nothing"))
except Exception as error:
    print(json.dumps(type(error).__name__))
"""
    )
    assert kind in ("RuntimeError", "NotImplementedError")


def test_without_the_shim_there_is_no_fallback(tmp_path):
    result = run(
        f"""
from stratalloc import _lib
_lib.PACKAGE = __import__("pathlib").Path({str(tmp_path)!r})
import stratalloc
try:
    stratalloc.torch.enable(fallback="only", require_device=False)
except stratalloc.CompilerMissing as error:
    print("refused:", error)
""",
        allocator="none",
        env={"STRATALLOC_LIBRARY": _library()},
    )
    assert "refused:" in result.stdout and "not enabled" in result.stdout.replace("\n", " ")


def _library():
    from stratalloc import _lib

    return _lib.find()[0]
