"""The harness of `cargo xtask peers`, on PyTorch's own allocator: what that does with three blocks is known."""

import os
import struct
import subprocess
from pathlib import Path

import pytest
import torch
from stratalloc import _build
from helpers import HERE, MIB

ROOT = HERE.parent.parent
ALLOC, FREE, MARKER = 0, 1, 4


def decoded(ops):
    """A trace as `peer-floor decode` writes it: operations of (kind, id, bytes), all on one stream."""
    body = b"".join(struct.pack("=QIHBB", size, identity, 0, kind, 0) for kind, identity, size in ops)
    return b"stratops" + struct.pack("=QQQ", len(ops), 0, 1) + body


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peer")
    torch_folder = Path(torch.__file__).parent
    runtime = next(Path(path) for path in os.environ["LD_LIBRARY_PATH"].split(":") if path)
    command = [
        *_build.compiler(),
        "-std=c++20", "-O1", str(ROOT / "benches/peers/harness/c10.cpp"), "-o", str(folder / "peer"),
        "-I", str(ROOT / "crates/softcuda/include"),
        "-isystem", str(torch_folder / "include"), "-isystem", str(_build.cuda_include()),
        "-isystem", str(_build.SOURCES / "stubs"),
        "-L", str(torch_folder / "lib"), "-lc10", "-lc10_cuda", "-L", str(runtime), "-l:libcudart.so.13", "-ldl", "-pthread",
    ]  # fmt: skip
    subprocess.run(command, check=True)

    def run(ops, memory, conf=""):
        (folder / "ops").write_bytes(decoded(ops))
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SOFTCUDA_", "PYTORCH_"))}
        environment["LD_LIBRARY_PATH"] = f"{runtime}:{torch_folder / 'lib'}"
        environment.update(SOFTCUDA_MEMORY=str(memory), SOFTCUDA_BACKING="none", SOFTCUDA_CLOCK="virtual")
        environment.update({"PYTORCH_ALLOC_CONF": conf} if conf else {})
        words = ["--trace", folder / "ops", "--watch", "--dump", folder / "dump"]
        result = subprocess.run(
            [folder / "peer", *words], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode in (0, 3), result.stderr
        figures = dict(line.split(" ", 1) for line in result.stdout.splitlines())
        return result.returncode, figures, (folder / "dump.reserved").read_text()

    return run


OPS = [(ALLOC, 0, 512), (ALLOC, 1, 5 * MIB), (MARKER, 0, 0), (FREE, 0, 0), (ALLOC, 2, 15 * MIB)]


@pytest.mark.skipif(not os.environ.get("LD_LIBRARY_PATH"), reason="wants the software device's CUDA runtime to link to")
class TestPeer:
    def test_what_is_reserved_is_told_after_each_change(self, peer):
        # A small segment, one of 20 MiB, of which what is left is just enough for the third block.
        status, figures, reserved = peer(OPS, 1 << 30)
        assert (status, reserved) == (0, f"0 {2 * MIB}\n1 {22 * MIB}\n")
        assert (int(figures["peak_reserved"]), int(figures["peak_live"])) == (22 * MIB, 20 * MIB)
        assert (figures["calls.first.cuMemAlloc_v2"], figures["retries"]) == ("2", "0")

    def test_settings_reach_the_peer(self, peer):
        status, figures, _ = peer(OPS, 1 << 30, "expandable_segments:True")
        assert status == 0 and "calls.first.cuMemAlloc_v2" not in figures
        assert int(figures["calls.first.cuMemCreate"]) > 0

    def test_no_room_is_no_fault(self, peer):
        status, figures, reserved = peer(OPS, 12 * MIB)
        assert (status, figures["no_room"], figures["failed_op"], reserved) == (3, "1", "1", f"0 {2 * MIB}\n")
