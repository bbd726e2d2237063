"""Scripts in processes of their own, on any allocator; sizes; what native torch says."""

import functools
import json
import os
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

MIB = 1 << 20
GIB = 1 << 30

#: Whether torch is 2.15 at least; the other version that works is 2.11.
SINCE_2_15 = tuple(map(int, version("torch").split(".")[:2])) >= (2, 15)

#: For what torch 2.11 does not have.
since_2_15 = pytest.mark.skipif(not SINCE_2_15, reason="torch 2.11 does not have it")

ENABLE = "import stratalloc; stratalloc.torch.enable(fallback={fallback!r})\n"


def run(code, *, allocator="extension", env=None, ok=True, seconds=300, interpreter=None, arguments=()):
    """Runs `code` in a new interpreter with an allocator: native, expandable, extension, pluggable, or none at all.
    Returns the finished process; with `ok`, its failure fails the test."""
    environment = dict(os.environ)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        environment.pop(name, None)
    environment.update(env or {})
    prelude = ""
    if allocator == "expandable":
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    elif allocator in ("extension", "pluggable"):
        prelude = ENABLE.format(fallback="never" if allocator == "extension" else "only")
    elif allocator not in ("native", "none"):
        raise ValueError(allocator)
    if allocator != "none":
        prelude += "import torch\n"
    command = interpreter or [sys.executable, "-c", prelude + textwrap.dedent(code)]
    result = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    if ok:
        assert result.returncode == 0, f"status {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def run_json(code, **options):
    """`run`, whose last line of output is JSON."""
    return json.loads(run(code, **options).stdout.strip().splitlines()[-1])


@functools.cache
def native_stat_keys():
    """The keys of memory_stats under torch's own allocator, after an allocation."""
    return run_json(
        """
        import json
        x = torch.empty(1000, device="cuda")
        print(json.dumps(sorted(torch.cuda.memory_stats())))
        """,
        allocator="native",
    )


@contextmanager
def uncached():
    """Allocations inside are cudaMalloc's. torch 2.11 has no context manager for it."""
    import torch

    torch.cuda.memory.caching_allocator_enable(False)
    try:
        yield
    finally:
        torch.cuda.memory.caching_allocator_enable(True)


def on_gpu(*shape, dtype=None):
    import torch

    return torch.empty(*shape, dtype=dtype or torch.uint8, device="cuda")


def live():
    import torch

    return torch.cuda.memory_allocated()
