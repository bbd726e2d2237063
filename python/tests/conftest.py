"""Enables stratalloc for this process before any test uses CUDA. What needs another allocator, or none, runs in a process of
its own: see `helpers.run`."""

import gc
import os

import pytest

import stratalloc

# STRATALLOC_TEST_NATIVE=1 runs the tests on torch's own allocator: how the expectations about torch were checked.
NATIVE = os.environ.get("STRATALLOC_TEST_NATIVE") == "1"
# Programs that the tests run end soon after a backward pass. torch then has its autograd threads end as well, which now and
# then aborts the process ("terminate called without an active exception"), whichever allocator it has: a thread wants the
# interpreter while that is going. With 0 they are left alone.
os.environ.setdefault("TORCH_AUTOGRAD_SHUTDOWN_WAIT_LIMIT", "0")

MODE = "native" if NATIVE else stratalloc.torch.enable(fallback="never", verbose=True)

import torch  # noqa: E402


@pytest.fixture(autouse=True)
def _clean():
    """Each test starts with nothing live and nothing recorded, and leaves the limits as they were."""
    torch.cuda.init()
    yield
    torch.cuda.memory._record_memory_history(None)
    torch.cuda.memory._set_memory_metadata("")
    # torch keeps these from one multiplication to the next; 2.11 has them allocated as tensors are.
    torch._C._cuda_clearCublasWorkspaces()
    gc.collect()
    torch.cuda.synchronize()
    if torch.cuda.get_per_process_memory_fraction() != 1.0:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def pytest_report_header():
    return f"stratalloc: {MODE}, torch {torch.__version__}, {torch.cuda.get_device_name(0)}"
