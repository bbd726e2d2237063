"""Records what a program asks of its allocator, as a trace that `stratalloc replay` and `cargo xtask peers` read.

    cargo xtask torch --exec python python/tests/record.py PROGRAM FILE.trace.zst [--steps N]

`train` and `decode` are the programs of workloads.py; `moe` trains a mixture of experts whose tokens travel on a second stream, as
between devices that share the experts: blocks of one stream are used on the other, with record_stream. Kernels may do nothing (the
software device): nothing depends on values. Each step ends with a marker. Compression is the program `zstd`'s.
"""

import argparse
import ctypes
import os
import random
import subprocess
import sys
import tempfile

import workloads

#: A request of this size is a marker: no program makes one.
MARKER_BYTES = 7


def moe(torch, steps, watch):
    """Experts get other shares of the tokens at each step and layer."""
    from torch import nn

    width, layers, experts, words, batch = 768, 6, 8, 16_000, 8
    random.seed(13)
    torch.backends.cuda.enable_cudnn_sdp(False)
    wire = torch.cuda.Stream()

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(width, experts)
            self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(experts))
            self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(experts))

        def send(self, tokens):
            """To the experts and back: a copy on the other stream, of a block of this one."""
            here = torch.cuda.current_stream()
            wire.wait_stream(here)
            with torch.cuda.stream(wire):
                arrived = tokens.clone()
            tokens.record_stream(wire)
            here.wait_stream(wire)
            arrived.record_stream(here)
            return arrived

        def forward(self, x):
            rows = x.shape[0]
            weights = self.gate(x).softmax(dim=-1)
            cuts = sorted(random.randrange(1, rows) for _ in range(experts - 1))
            shares = [end - start for start, end in zip([0, *cuts], [*cuts, rows])]
            parts = self.send(x).split(shares)
            done = [down(nn.functional.gelu(up(part))) for part, up, down in zip(parts, self.up, self.down)]
            return x + self.send(torch.cat(done)) * weights.sum(dim=-1, keepdim=True)

    with torch.device("cuda"):
        model = nn.Sequential(nn.Embedding(words, width), *(Experts() for _ in range(layers)), nn.Linear(width, words))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(steps):
        rows = batch * random.randrange(128, 1025, 8)
        tokens = torch.zeros(rows, dtype=torch.long).cuda()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(tokens), tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        del loss, tokens
        watch.look()


class Marks:
    """In place of workloads.Watch: what a program looks at after each step becomes a marker."""

    def __init__(self, torch):
        self.torch = torch

    def look(self):
        self.torch.empty(MARKER_BYTES, dtype=self.torch.uint8, device="cuda")


def record(program, path, steps):
    """Runs the program on stratalloc, recording as text."""
    import stratalloc
    from stratalloc import _lib

    stratalloc.torch.enable(fallback="never")
    import torch

    torch.cuda.init()
    _, library = _lib.find()
    allocator, operations = ctypes.c_void_p(), ctypes.c_uint64()
    library.stratalloc_trace_start.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.stratalloc_trace_stop.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.stratalloc_last_error.restype = ctypes.c_char_p

    def must(status):
        if status != 0:
            raise RuntimeError(library.stratalloc_last_error().decode())

    must(library.stratalloc_default(ctypes.byref(allocator)))
    must(library.stratalloc_trace_start(allocator, os.fsencode(path)))
    {"train": workloads.train, "decode": workloads.decode, "moe": moe}[program](torch, steps, Marks(torch))
    torch.cuda.synchronize()
    must(library.stratalloc_trace_stop(allocator, ctypes.byref(operations)))
    return torch.__version__, operations.value


def rewritten(lines, header):
    """The trace with its markers in place, and ids that are dense again."""
    markers, numbers, steps = set(), {}, 0
    body = []
    for line in lines:
        words = line.split()
        if line.startswith("#") or not words:
            continue
        if words[0] == "a" and int(words[2]) == MARKER_BYTES:
            markers.add(words[1])
            steps += 1
            body.append(f"m step {steps}")
        elif words[0] in "afr" and words[1] in markers:
            continue
        elif words[0] == "a":
            numbers[words[1]] = len(numbers)
            body.append(f"a {numbers[words[1]]} {words[2]} {words[3]}")
        elif words[0] in "fr":
            body.append(" ".join([words[0], str(numbers[words[1]]), *words[2:]]))
        else:
            body.append(line.rstrip("\n"))
    streams = 1 + max(int(line.split()[-1]) for line in body if line[0] in "ar")
    first = ["# stratalloc-trace 1", *(f"# {key}: {value}" for key, value in header), f"# streams: {streams}"]
    return "\n".join([*first, *body]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=("train", "decode", "moe"))
    parser.add_argument("file", help="what is written; its name without endings is the workload's")
    parser.add_argument("--steps", type=int, default=workloads.STEPS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plain = os.path.join(folder, "plain")
        version, operations = record(options.program, plain, options.steps)
        header = [
            ("workload", os.path.basename(options.file).removesuffix(".zst").removesuffix(".trace")),
            ("framework", f"torch {version}"),
            ("notes", "software stand-in for CUDA: kernels do nothing; recorded by python/tests/record.py"),
        ]
        with open(plain, encoding="utf-8") as file:
            text = rewritten(file, header)
        subprocess.run(["zstd", "-q", "-f", "-19", "-o", options.file], input=text.encode(), check=True)
    print(f"{options.file}: {operations} calls, {os.path.getsize(options.file)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
