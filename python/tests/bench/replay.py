"""Replays traces through torch on a GPU, on its native allocator, on its expandable segments and on stratalloc, in one run.

    python replay.py [--allocators native,expandable,stratalloc] [--pressure 1.02] [--kernels] [--passes N] [--json FILE] TRACE...

A trace is plain text (`stratalloc import FILE.zst -o FILE` writes it). Each measurement is a process of its own. An allocation is a
torch.empty, a free is the end of the tensor, a record is Tensor.record_stream. With --kernels each tensor is filled on its stream when it
is made, and on the other stream when it is recorded: the device then lags the host as in a program. With --pressure the process may hold that
many times the trace's peak of live bytes, as set_per_process_memory_fraction has it; --least looks for the smallest such factor.

Printed for the first pass and for the best later one: wall time until the host has made all calls, and until the device is done. The first takes memory
from the driver and a later one does not, so their difference is what the driver costs. Python's own time is in both, the same for all.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

MIB = 1 << 20


def read(path):
    """Operations as tuples, the most live bytes, and the number of streams."""
    ops, sizes, live, peak, streams = [], [], 0, 0, 1
    for line in Path(path).read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        kind, *rest = line.split()
        if kind == "a":
            identity, size, stream = map(int, rest)
            ops.append(("a", identity, size, stream))
            sizes.append(size)
            live += size
            peak, streams = max(peak, live), max(streams, stream + 1)
        elif kind == "f":
            live -= sizes[int(rest[0])]
            ops.append(("f", int(rest[0]), 0, 0))
        elif kind == "r":
            ops.append(("r", int(rest[0]), 0, int(rest[1])))
            streams = max(streams, int(rest[1]) + 1)
        elif kind == "e":
            ops.append(("e", 0, 0, 0))
    return ops, peak, streams


def one_pass(torch, ops, streams, kernels):
    """Seconds until the host is through, and until the device is."""
    empty, uint8, use = torch.empty, torch.uint8, torch.cuda.set_stream
    tensors = {}
    current = 0
    use(streams[0])
    start = time.perf_counter()
    for kind, identity, size, stream in ops:
        if kind == "a":
            if stream != current:
                current = stream
                use(streams[stream])
            tensor = empty(size, dtype=uint8, device="cuda")
            if kernels:
                tensor.fill_(90)
            tensors[identity] = tensor
        elif kind == "f":
            tensor = None
            del tensors[identity]
        elif kind == "r":
            tensor = tensors[identity]
            tensor.record_stream(streams[stream])
            if kernels:
                current = stream
                use(streams[stream])
                tensor.fill_(91)
        else:
            tensor = None
            torch.cuda.empty_cache()
    host = time.perf_counter() - start
    torch.cuda.synchronize()
    both = time.perf_counter() - start
    tensor = None
    tensors.clear()
    torch.cuda.synchronize()
    return host, both


def child(options):
    allocator = options.child
    if allocator == "stratalloc":
        import stratalloc

        stratalloc.torch.enable(os.environ.get("STRATALLOC_CONF", ""))
    import torch

    torch.cuda.init()
    ops, peak, streams = read(options.traces[0])
    if options.pressure:
        total = torch.cuda.get_device_properties(0).total_memory
        pages = -(-int(peak * options.pressure) // (2 * MIB))
        torch.cuda.set_per_process_memory_fraction(min(1.0, pages * 2 * MIB / total))
    lanes = [torch.cuda.default_stream(), *(torch.cuda.Stream() for _ in range(streams - 1))]
    passes, error = [], None
    try:
        for _ in range(options.passes):
            passes.append(one_pass(torch, ops, lanes, options.kernels))
    except torch.OutOfMemoryError as failure:
        error = str(failure).splitlines()[0][:200]
    stats = torch.cuda.memory_stats()
    print(
        json.dumps(
            {
                "trace": Path(options.traces[0]).name.split(".")[0],
                "allocator": allocator,
                "torch": torch.__version__,
                "device": torch.cuda.get_device_name(),
                "pressure": options.pressure,
                "kernels": options.kernels,
                "peak_live_bytes": peak,
                "peak_reserved_bytes": stats["reserved_bytes.all.peak"],
                "retries": stats["num_alloc_retries"],
                "host_s": [host for host, _ in passes],
                "device_s": [both for _, both in passes],
                "error": error,
            }
        )
    )


def run(trace, allocator, options, pressure):
    """One measurement, in a process of its own."""
    environment = dict(os.environ)
    environment.pop("PYTORCH_ALLOC_CONF", None)
    environment.pop("PYTORCH_CUDA_ALLOC_CONF", None)
    if allocator == "expandable":
        # The second name is that of versions before 2.10.
        environment["PYTORCH_ALLOC_CONF"] = environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    command = [sys.executable, __file__, "--child", allocator, "--passes", str(options.passes), trace]
    command += ["--kernels"] if options.kernels else []
    command += ["--pressure", str(pressure)] if pressure else []
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        why = result.stderr[-400:].strip() or f"ended with status {result.returncode}"
        return {"trace": Path(trace).name.split(".")[0], "allocator": allocator, "error": why, "crashed": True}
    return json.loads(result.stdout.splitlines()[-1])


def show(row):
    name = f"{row['trace']:<30} {row['allocator']:<11}"
    if row["error"]:
        print(f"{name} {row['error']}", flush=True)
        return
    ratio = row["peak_reserved_bytes"] / row["peak_live_bytes"]
    host, device = row["host_s"], row["device_s"]
    later = min(host[1:], default=0.0)
    print(
        f"{name} {ratio:7.4f} {row['retries']:8} {host[0]:9.3f} {device[0]:9.3f} {later:9.3f} "
        f"{min(device[1:], default=0.0):9.3f} {1e3 * (host[0] - later):11.1f}",
        flush=True,
    )


def completes(trace, allocator, options, factor):
    """Whether there was room. Any other failure ends the search."""
    row = run(trace, allocator, options, factor)
    if row.get("crashed"):
        raise SystemExit(f"{trace} on {allocator}: {row['error']}")
    return row["error"] is None


def least(trace, allocator, options):
    """The smallest factor on which the trace completes, to 0.2 %."""
    low, high = 1.0, 1.3
    while not completes(trace, allocator, options, high):
        low, high = high, 2 * high
    while high - low > 0.002:
        middle = (low + high) / 2
        if completes(trace, allocator, options, middle):
            high = middle
        else:
            low = middle
    return high


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+")
    parser.add_argument("--allocators", default="native,expandable,stratalloc")
    parser.add_argument("--pressure", type=float)
    parser.add_argument("--least", action="store_true")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    rows = []
    if not options.least:
        print(
            f"{'trace':<30} {'allocator':<11} {'/ live':>7} {'retries':>8} {'1st host s':>10}{'device s':>9} {'later s':>9} "
            f"{'device s':>9} {'1st more ms':>11}"
        )
    for trace in options.traces:
        for allocator in options.allocators.split(","):
            if options.least:
                factor = least(trace, allocator, options)
                print(f"{Path(trace).name.split('.')[0]:<30} {allocator:<11} {factor:7.4f}", flush=True)
                rows.append({"trace": trace, "allocator": allocator, "least": factor})
            else:
                rows.append(run(trace, allocator, options, options.pressure))
                show(rows[-1])
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))
    sys.exit(any(row.get("error") for row in rows))


if __name__ == "__main__":
    main()
