"""PyTorch untouched, with the preload library under it: `cargo xtask torch` builds it and names it in STRATALLOC_PRELOAD_LIB."""

import os

import pytest
import workloads
from helpers import SINCE_2_15, run_json

LIBRARY = os.environ.get("STRATALLOC_PRELOAD_LIB")

pytestmark = pytest.mark.skipif(not LIBRARY, reason="STRATALLOC_PRELOAD_LIB names no preload library")


def preloaded(code, **environment):
    return run_json("import json\n" + code, allocator="native", env={"LD_PRELOAD": LIBRARY, **environment})


@pytest.mark.parametrize("program", workloads.PROGRAMS)
def test_the_programs_run_with_torch_untouched(program):
    rows = {name: workloads.measure(program, name, 6) for name in ("native", *workloads.PRELOADED)}
    print("\n" + workloads.table(rows.values()))
    assert rows["preloaded"]["backend"] == "native" and rows["preloaded-async"]["backend"] == "cudaMallocAsync"
    # torch's own allocator makes the same requests and takes the same segments, wherever they come from.
    # Where two free blocks are equally good, torch 2.11 takes the one with the lower address: there the addresses have a say.
    for key in ("peak_live", "calls", *(["peak_reserved"] if SINCE_2_15 else [])):
        assert rows["preloaded"][key] == rows["native"][key]
    # Where the library serves each request, it holds less than the driver's pools do.
    assert rows["preloaded-async"]["peak_reserved"] <= rows["async"]["peak_reserved"]


LIMITED = """
free, total = torch.cuda.mem_get_info()
properties = torch.cuda.get_device_properties(0).total_memory
kept = torch.empty(total // 10 * 8, dtype=torch.uint8, device="cuda")
try:
    torch.empty(total // 10 * 3, dtype=torch.uint8, device="cuda")
    refused = ""
except torch.OutOfMemoryError as error:
    refused = str(error)
small = torch.arange(1000).cuda()
print(json.dumps([total, properties, refused, torch.equal(small.cpu(), torch.arange(1000))]))
"""


@pytest.mark.parametrize("backend", ["native", "cudaMallocAsync"])
def test_half_the_memory_is_all_that_torch_sees(backend):
    whole, _, _, _ = preloaded(LIMITED.replace("8,", "1,").replace("* 3", "* 1"))
    option = {"PYTORCH_CUDA_ALLOC_CONF": f"backend:{backend}"}
    total, properties, refused, alive = preloaded(LIMITED, STRATALLOC_CONF="limit:0.5", **option)
    assert total == properties == whole // 2
    assert "out of memory" in refused.lower() and alive
