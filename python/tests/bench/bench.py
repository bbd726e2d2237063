"""Nanoseconds a pair of raw_alloc and raw_delete, through torch's C++ entry, on four allocators in one run.

    python bench.py [--rounds N] [--count N] [--json]

Each measurement is a process of its own; the allocators take turns, round after round, so that a slow minute of the machine
meets all of them. Printed: the median, and its ratio to torch's native allocator in the same run. The bias: one size at a time,
so every allocator serves from its cache, and all threads use one stream.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ALLOCATORS = ("native", "expandable", "pluggable", "extension")
SIZES = (1000, 64 << 10, 4 << 20)
THREADS = (1, 2)


def compile_bench(folder):
    """The C++ part, compiled as the extension is."""
    import torch
    from stratalloc import _build

    source = Path(__file__).with_name("bench.cpp")
    output = Path(folder) / "bench.so"
    command = _build.command(torch, _build.compiler(), output)
    command[command.index(str(_build.SOURCES / "extension.cpp"))] = str(source)
    command.remove("-fvisibility=hidden")
    subprocess.run(command, check=True)
    return output


def child(allocator, library, count):
    if allocator in ("pluggable", "extension"):
        import stratalloc

        way = stratalloc.torch.enable(fallback="only" if allocator == "pluggable" else "never")
        assert way == allocator
    import torch

    torch.cuda.init()
    torch.empty(1, device="cuda")
    pairs = ctypes.CDLL(library).stratalloc_bench_pairs
    pairs.restype = ctypes.c_double
    pairs.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_long]
    print(json.dumps([[size, threads, pairs(threads, size, count)] for size in SIZES for threads in THREADS]))


def measure(allocator, library, count):
    environment = dict(os.environ)
    if allocator == "expandable":
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    command = [sys.executable, __file__, "--child", allocator, str(library), "--count", str(count)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{allocator}: {result.stdout}{result.stderr}")
    return {(size, threads): ns for size, threads, ns in json.loads(result.stdout.strip().splitlines()[-1])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=300_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.child:
        return child(*options.child, options.count)
    results = {allocator: [] for allocator in ALLOCATORS}
    with tempfile.TemporaryDirectory() as folder:
        library = compile_bench(folder)
        for _ in range(options.rounds):
            for allocator in ALLOCATORS:
                results[allocator].append(measure(allocator, library, options.count))
    print(f"{'ns a pair':<12}{'bytes':>10}{'threads':>9}{'median':>10}{'lowest':>10}{'of native':>11}")
    for size in SIZES:
        for threads in THREADS:
            base = statistics.median(found[size, threads] for found in results["native"])
            for allocator in ALLOCATORS:
                times = [found[size, threads] for found in results[allocator]]
                middle = statistics.median(times)
                print(f"{allocator:<12}{size:>10}{threads:>9}{middle:>10.1f}{min(times):>10.1f}{middle / base:>11.3f}")
                if options.json:
                    print(json.dumps({"allocator": allocator, "bytes": size, "threads": threads, "ns": times}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
