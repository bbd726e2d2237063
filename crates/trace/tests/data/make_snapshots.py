"""Makes the snapshots beside it with PyTorch itself, and with each the trace that its import must give: written down by the program that made
the calls.

    LD_LIBRARY_PATH=target/softcuda SOFTCUDA_MEMORY=96MiB python make_snapshots.py native.pickle
    LD_LIBRARY_PATH=target/softcuda SOFTCUDA_MEMORY=96MiB PYTORCH_ALLOC_CONF=expandable_segments:True python make_snapshots.py expandable.pickle
"""

import sys

import torch

MIB = 1 << 20
out = sys.argv[1]
lines = []
tensors = {}
streams = [torch.cuda.default_stream(), torch.cuda.Stream()]
count = 0


def alloc(name, size, stream=0):
    global count
    lines.append(f"a {count} {size} {stream}")
    count += 1
    with torch.cuda.stream(streams[stream]):
        try:
            tensors[name] = (count - 1, torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            lines.append(f"f {count - 1}")


def free(name, used_on=None):
    number, tensor = tensors.pop(name)
    if used_on is not None:
        tensor.record_stream(streams[used_on])
        lines.append(f"r {number} {used_on}")
    lines.append(f"f {number}")
    del tensor


# Before the history: one that stays, one that is freed later, one that is gone when it begins.
early = [torch.empty(size, dtype=torch.uint8, device="cuda") for size in (3_000_000, 700, 5_000)]
del early[2]
early.sort(key=lambda tensor: tensor.data_ptr())
for number, tensor in enumerate(early):
    lines.append(f"a {number} {tensor.numel()} 0")
    tensors[f"early{tensor.numel()}"] = (number, tensor)
count = len(early)
del early, tensor

torch.cuda.memory._record_memory_history(context=None, max_entries=10_000)
for step in range(6):
    alloc("x", 1_000_000 * (step + 1))
    alloc("y", 4_000 + step, 1)
    alloc("z", 12 * MIB + 7 * step, step % 2)
    free("x", used_on=1)
    free("y", used_on=0 if step == 3 else None)
    if step == 2:
        free("early700")
    free("z")
alloc("kept", 2 * MIB)
alloc("gone", 2 * MIB)
torch.cuda.empty_cache()
lines.append("e")
free("gone")
alloc("small", 1)
alloc("cached", 12 * MIB, 1)
free("cached")
# Gives back what is cached, and fails all the same: the first is no call of the program's.
alloc("too large", 90 * MIB)
alloc("last", 5 * MIB, 1)
torch.cuda.memory._dump_snapshot(out)

with open(out.replace(".pickle", ".trace"), "w") as file:
    file.write("# stratalloc-trace 1\n# streams: 2\n" + "\n".join(lines) + "\n")
