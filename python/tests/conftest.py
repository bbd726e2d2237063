"""Enables stratalloc for this process before any test uses CUDA. What needs another allocator, or none, runs in a process of
its own: see `helpers.run`."""

import gc
import os

import pytest

import stratalloc

# STRATALLOC_TEST_NATIVE=1 runs the tests on torch's own allocator: how the expectations about torch were checked.
NATIVE = os.environ.get("STRATALLOC_TEST_NATIVE") == "1"
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
