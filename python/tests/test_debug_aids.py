"""Debug aids, by the environment alone: damage and leaks are lines on stderr, and a program without errors prints none."""

from helpers import run

AIDS = {"STRATALLOC_CONF": "poison:check,redzone:512,quarantine:64MiB,leaks:true"}

# Device memory is the process's own on the stand-in, so the host can write where a kernel should not.
WRONG = """
import ctypes
def touch(address): ctypes.memset(address, 1, 1)
kept = torch.empty(5000, dtype=torch.uint8, device="cuda")
x = torch.empty(1000, dtype=torch.uint8, device="cuda")
touch(x.data_ptr() + 1000 + 30)
torch.cuda.synchronize()
address = x.data_ptr()
del x
torch.cuda.synchronize()
touch(address + 7)
torch.cuda.empty_cache()
y = [torch.empty(1000, dtype=torch.uint8, device="cuda") for _ in range(100)]
torch.cuda.synchronize()
del y
"""

RIGHT = """
s = torch.cuda.Stream()
blocks = []
for step in range(300):
    block = torch.empty(step * 7919 % 3_000_000 + 1, dtype=torch.uint8, device="cuda")
    with torch.cuda.stream(s):
        other = torch.empty(step * 104_729 % 900_000 + 1, dtype=torch.uint8, device="cuda")
        block.record_stream(s)
    blocks.append((block, other))
    if step % 3 == 0:
        blocks.pop(step * 31 % len(blocks))
g = torch.cuda.CUDAGraph()
with torch.cuda.graph(g):
    z = torch.empty(4096, device="cuda")
del block, other, blocks, z, g
torch.cuda.synchronize()
"""


def said(code, allocator):
    lines = run(code, allocator=allocator, env=AIDS).stderr.splitlines()
    return [line for line in lines if line.startswith("stratalloc: ")]


def test_damage_is_told():
    for allocator in ("extension", "pluggable"):
        lines = said(WRONG, allocator)
        assert sum("overflow: 1 byte(s)" in line and "of 1000 bytes" in line for line in lines) == 1, (allocator, lines)
        assert sum("write after free: 1 byte(s)" in line and "offset 7" in line for line in lines) == 1, (allocator, lines)


def test_leaks_are_told():
    for allocator in ("extension", "pluggable"):
        code = "import os\nkept = torch.empty(5000, dtype=torch.uint8, device='cuda')\ndel torch\n"
        lines = said(code + "import builtins; builtins.kept = kept\n", allocator)
        assert any("still in use on device 0" in line for line in lines), (allocator, lines)


def test_a_correct_program_hears_nothing():
    for allocator in ("extension", "pluggable"):
        lines = [line for line in said(RIGHT, allocator) if "still in use" not in line]
        assert lines == [], allocator
