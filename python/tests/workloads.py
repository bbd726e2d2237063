"""Two programs on several allocators, side by side: what they keep live at most, and what the allocator holds for it.

    python workloads.py [--json] [--check] [--steps N] [--allocators native,expandable,stratalloc]

`train`: a transformer with AdamW, bf16 under autocast, batches of ragged lengths. `decode`: key and value caches that grow by
concatenation, sequences that come and go. Kernels may be no-ops (the software device): nothing depends on values.
Where STRATALLOC_PRELOAD_LIB names the preload library, three more run with PyTorch untouched: `async` on the driver's own pools
(backend:cudaMallocAsync), `preloaded-async` the same with the library in LD_PRELOAD, so that it serves each request, and
`preloaded`, torch's native allocator with its segments from the library.
"""

import argparse
import json
import os
import random
import subprocess
import sys

ALLOCATORS = ("native", "expandable", "stratalloc")
PRELOADED = ("async", "preloaded-async", "preloaded")
PROGRAMS = ("train", "decode")
#: Training steps; the decode loop makes six tokens for each.
STEPS = 24
MIB = 1 << 20


class Watch:
    """The most that the device had in use, seen from outside of any allocator."""

    def __init__(self, torch):
        self.torch = torch
        self.most = 0
        self.base = self.used()

    def used(self):
        free, total = self.torch.cuda.mem_get_info()
        return total - free

    def look(self):
        self.most = max(self.most, self.used() - self.base)


def train(torch, steps, watch):
    """Ragged lengths make each step's activations other sizes; the optimizer's state stays."""
    from torch import nn

    width, heads, layers, words, batch = 1024, 16, 8, 32_000, 8
    random.seed(7)
    # cuDNN may be one that does nothing; torch has attention of its own.
    torch.backends.cuda.enable_cudnn_sdp(False)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            rows, length, _ = x.shape
            q, k, v = (
                part.view(rows, length, heads, width // heads).transpose(1, 2)
                for part in self.qkv(self.before(x)).chunk(3, dim=-1)
            )
            seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(seen.transpose(1, 2).reshape(rows, length, width))
            return x + self.down(nn.functional.gelu(self.up(self.after(x))))

    with torch.device("cuda"):
        model = nn.Sequential(nn.Embedding(words, width), *(Block() for _ in range(layers)), nn.Linear(width, words))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(steps):
        length = random.randrange(64, 1025, 8)
        tokens = torch.zeros(batch, length, dtype=torch.long).cuda()
        targets = torch.zeros(batch * length, dtype=torch.long).cuda()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = model(tokens)
            loss = nn.functional.cross_entropy(logits.view(-1, words), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        del logits, loss, tokens, targets
        watch.look()


def decode(torch, steps, watch):
    """Each token makes each layer's cache longer; a sequence that ends makes room for another."""
    layers, heads, width, slots = 16, 8, 128, 12
    random.seed(11)
    with torch.device("cuda"), torch.inference_mode():
        weights = [torch.empty(4 * 1024, 1024, dtype=torch.bfloat16) for _ in range(4 * layers)]

        def begin():
            length = random.randrange(32, 700)
            rest = random.randrange(20, 200)
            return [[torch.empty(2, heads, length, width, dtype=torch.bfloat16) for _ in range(layers)], rest]

        sequences = [begin() for _ in range(slots)]
        for _ in range(steps * 6):
            for at, (cache, rest) in enumerate(sequences):
                for layer in range(layers):
                    token = torch.empty(2, heads, 1, width, dtype=torch.bfloat16)
                    cache[layer] = torch.cat([cache[layer], token], dim=2)
                    scores = torch.empty(heads, cache[layer].shape[2], dtype=torch.float32)
                    del scores, token
                sequences[at][1] = rest - 1
                if rest <= 1:
                    sequences[at] = None
                    del cache
                    sequences[at] = begin()
            watch.look()
        del weights, sequences


def child(program, allocator, steps):
    if allocator == "stratalloc":
        import stratalloc

        stratalloc.torch.enable(fallback="never")
    import torch

    torch.cuda.init()
    watch = Watch(torch)
    {"train": train, "decode": decode}[program](torch, steps, watch)
    torch.cuda.synchronize()
    stats = torch.cuda.memory_stats()
    if allocator == "expandable":
        # Where the option is not heard of, the baseline would silently be another.
        assert all(s["is_expandable"] for s in torch.cuda.memory_snapshot()), "segments are not expandable"
    print(
        json.dumps(
            {
                "program": program,
                "allocator": allocator,
                "backend": torch.cuda.get_allocator_backend(),
                # torch's allocator over the driver's pools counts no requests.
                "peak_live": stats["requested_bytes.all.peak"] or stats["allocated_bytes.all.peak"],
                "peak_allocated": stats["allocated_bytes.all.peak"],
                "peak_reserved": stats["reserved_bytes.all.peak"],
                "peak_device": watch.most,
                "calls": stats["allocation.all.allocated"] + stats["allocation.all.freed"],
                "device_calls": stats["num_device_alloc"] + stats["num_device_free"],
                "retries": stats["num_alloc_retries"],
            }
        )
    )


def measure(program, allocator, steps):
    """Runs one in a process of its own."""
    environment = dict(os.environ)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "LD_PRELOAD"):
        environment.pop(name, None)
    if allocator == "expandable":
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    if allocator.endswith("async"):
        environment["PYTORCH_ALLOC_CONF"] = "backend:cudaMallocAsync"
    if allocator.startswith("preloaded"):
        environment["LD_PRELOAD"] = os.environ["STRATALLOC_PRELOAD_LIB"]
    command = [sys.executable, __file__, "--child", program, allocator, "--steps", str(steps)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{program} on {allocator} failed:\n{result.stdout}{result.stderr}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def table(rows):
    columns = ("peak live", "peak reserved", "reserved/live", "on the device", "calls", "driver calls", "retries")
    lines = [f"{'program':<8}{'allocator':<17}" + "".join(f"{name:>15}" for name in columns)]
    for row in rows:
        live = row["peak_live"]
        values = (
            f"{live / MIB:.1f} MiB",
            f"{row['peak_reserved'] / MIB:.1f} MiB",
            f"{row['peak_reserved'] / live:.4f}",
            f"{row['peak_device'] / MIB:.1f} MiB",
            str(row["calls"]),
            str(row["device_calls"]),
            str(row["retries"]),
        )
        lines.append(f"{row['program']:<8}{row['allocator']:<17}" + "".join(f"{value:>15}" for value in values))
    return "\n".join(lines)


def over(rows):
    """Programs for which ours holds more than torch's expandable segments, as texts."""
    found = {(row["program"], row["allocator"]): row["peak_reserved"] for row in rows}
    problems = []
    for program in PROGRAMS:
        ours, theirs = found.get((program, "stratalloc")), found.get((program, "expandable"))
        if ours is not None and theirs is not None and ours > theirs:
            problems.append(f"{program}: {ours / MIB:.1f} MiB reserved, expandable segments {theirs / MIB:.1f} MiB")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--allocators", default=",".join(ALLOCATORS))
    parser.add_argument("--json", action="store_true", help="a line for each run")
    parser.add_argument("--check", action="store_true", help="fail where ours holds more than expandable segments")
    options = parser.parse_args()
    if options.child:
        return child(*options.child, options.steps)
    allocators = options.allocators.split(",")
    if os.environ.get("STRATALLOC_PRELOAD_LIB") and options.allocators == ",".join(ALLOCATORS):
        allocators += PRELOADED
    rows = [measure(program, allocator, options.steps) for program in PROGRAMS for allocator in allocators]
    for row in rows if options.json else []:
        print(json.dumps(row))
    print(table(rows))
    problems = over(rows)
    for problem in problems:
        print("MORE THAN EXPANDABLE:", problem)
    return 1 if options.check and problems else 0


if __name__ == "__main__":
    sys.exit(main())
