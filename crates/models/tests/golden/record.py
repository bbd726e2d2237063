"""Records what PyTorch's own allocator does with a trace: how many bytes it holds after each operation.

Run on the torch 2.15.0 wheel over the stand-in libraries, with addresses only, so that large devices cost nothing:

    cargo xtask softcuda --torch SITE_PACKAGES
    LD_LIBRARY_PATH=target/softcuda python crates/models/tests/golden/record.py tests/traces/NAME.trace.zst OUTPUT.zst

Every run is a process of its own, since torch reads its settings once.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile

PAGE = 2 << 20
CALLS = [
    "cuMemAlloc", "cuMemFree", "cuMemAddressReserve", "cuMemAddressFree", "cuMemCreate", "cuMemRelease", "cuMemMap", "cuMemSetAccess",
    "cuMemUnmap", "cuStreamSynchronize", "cuEventRecord", "cuEventQuery", "cuEventSynchronize",
]
# What is set, and the capacity: a multiple of the peak of live bytes, a number of GiB, or more than can be used.
RUNS = [
    ("", None),
    ("expandable_segments:True", None),
    ("", "80"),
    ("", 1.02),
    ("expandable_segments:True", 1.02),
]
# On one trace more of the settings are compared.
MORE = {
    "llama3-8b-generate-kvcat": [
        ("max_split_size_mb:64", 1.1),
        ("max_split_size_mb:21,max_non_split_rounding_mb:40", 1.06),
        ("roundup_power2_divisions:8", None),
        ("roundup_power2_divisions:[4:2,64:16,>:4],expandable_segments:True", 1.1),
        ("per_process_memory_fraction:0.5,garbage_collection_threshold:0.75", "80"),
        ("per_process_memory_fraction:0.45,garbage_collection_threshold:0.6,max_split_size_mb:128", "80"),
        ("large_segment_size_mb:40", 1.1),
        ("large_segment_size_mb:64,expandable_segments:True", 1.03),
    ],
}


def operations(path):
    text = subprocess.run(["zstd", "-dc", path], capture_output=True, check=True, text=True).stdout
    return [line.split() for line in text.splitlines() if not line.startswith("#")]


def peak_live(ops):
    live, peak, sizes = 0, 0, {}
    for op in ops:
        if op[0] == "a":
            sizes[op[1]] = int(op[2])
            live += int(op[2])
            peak = max(peak, live)
        elif op[0] == "f":
            live -= sizes.pop(op[1])
    return peak


def replay(ops):
    """Replays on torch. Returns torch's history of events, how many segments each empty_cache gave back, and where memory ran out."""
    import torch

    count = 1 + max(max(int(op[3]) for op in ops if op[0] == "a"), max((int(op[2]) for op in ops if op[0] == "r"), default=0))
    streams = [torch.cuda.default_stream()] + [torch.cuda.Stream() for _ in range(count - 1)]
    torch.cuda.memory._record_memory_history("all", context=None, stacks="python", max_entries=10_000_000)
    live, emptied, current, out_of_memory = {}, {}, 0, None
    # Never freed: what the program gives up when it ends is no operation of the trace.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(live))
    for index, op in enumerate(ops):
        if op[0] == "a":
            if int(op[3]) != current:
                current = int(op[3])
                torch.cuda.set_stream(streams[current])
            try:
                live[op[1]] = torch.empty((int(op[2]),), dtype=torch.uint8, device="cuda")
            except torch.OutOfMemoryError:
                out_of_memory = index
                break
        elif op[0] == "f":
            del live[op[1]]
        elif op[0] == "r":
            live[op[1]].record_stream(streams[int(op[2])])
        elif op[0] == "e":
            before = torch.cuda.memory_stats().get("num_device_free", 0)
            torch.cuda.empty_cache()
            emptied[index] = torch.cuda.memory_stats().get("num_device_free", 0) - before
    stats = torch.cuda.memory_stats()
    history = torch.cuda.memory._snapshot()["device_traces"][0]
    return history, emptied, out_of_memory, stats


def changes(ops, history, emptied, out_of_memory):
    """(index, bytes held) wherever an operation has changed them."""
    held, found, events = 0, [], iter(history)
    step = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}

    def take(event):
        nonlocal held
        if event["action"] in step:
            held += step[event["action"]] * event["size"]
            return 1
        return 0

    for index, op in enumerate(ops):
        before = held
        if op[0] in "af":
            last = {"a": ("alloc", "oom"), "f": ("free_requested",)}[op[0]]
            for event in events:
                take(event)
                if event["action"] in last:
                    break
        elif op[0] == "e":
            left = emptied[index]
            while left > 0:
                left -= take(next(events))
        if held != before:
            found.append((index, held))
        if index == out_of_memory:
            break
    return found


def one(trace, conf, capacity):
    ops = operations(trace)
    history, emptied, out_of_memory, stats = replay(ops)
    found = changes(ops, history, emptied, out_of_memory)
    print(f"run {capacity} {conf or '-'}")
    if out_of_memory is not None:
        print(f"oom {out_of_memory}")
    print(f"peak {stats['reserved_bytes.all.peak']}")
    print(f"retries {stats['num_alloc_retries']}")
    op, held = 0, 0
    for index, now in found:
        print(f"r {index - op} {now - held}")
        op, held = index, now


def main(trace, output):
    peak = peak_live(operations(trace))
    text = f"# made by crates/models/tests/golden/record.py {os.path.basename(trace)} on torch 2.15.0\n"
    name = os.path.basename(trace).removesuffix(".trace.zst")
    for conf, part in RUNS + MORE.get(name, []):
        if part is None:
            part = "512"
        capacity = int(part) << 30 if isinstance(part, str) else int(peak * part) // PAGE * PAGE
        environment = dict(os.environ, SOFTCUDA_BACKING="none", SOFTCUDA_MEMORY=f"{capacity}B", PYTORCH_ALLOC_CONF=conf)
        environment.pop("PYTORCH_CUDA_ALLOC_CONF", None)
        command = [sys.executable, __file__, trace, conf, str(capacity)]
        with tempfile.NamedTemporaryFile() as report:
            environment["SOFTCUDA_REPORT"] = report.name
            text += subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout
            calls = json.load(report)["calls"]
        for name in CALLS:
            text += f"c {name} {calls.get(name, 0) + calls.get(name + '_v2', 0)}\n"
    subprocess.run(["zstd", "-19", "-q", "-f", "-o", output], input=text, check=True, text=True)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        one(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main(sys.argv[1], sys.argv[2])
