"""What works is written down in ../TORCH.md, which this test makes and compares: none of torch's functions is silent."""

import os
import re
import sys
from pathlib import Path

import functions
import pytest
import torch
from helpers import SINCE_2_15, run_json, since_2_15

HERE = Path(__file__).resolve().parent
TABLE = HERE.parent / "TORCH.md"

HEAD = """\
# What works in PyTorch on stratalloc

Made by `python/tests/test_functions.py`, which calls each function on torch {version} and compares this file:
`STRATALLOC_BLESS=1 cargo xtask torch -- test_functions.py` writes it anew. *extension* is the way with a C++ compiler, *fallback* the one
without.

On torch 2.11 the same holds for the functions that it has: those for annotations, for whether metadata is kept, for an allocation's stack trace, and
`caching_allocator_disabled` are not among them.

| function | extension | fallback |
|---|---|---|
"""


def outcomes(way):
    return run_json("", allocator="none", interpreter=[sys.executable, str(HERE / "functions.py")], arguments=[way])


@pytest.fixture(scope="module")
def both():
    return outcomes("extension"), outcomes("pluggable")


def test_every_public_function_has_a_line(both):
    for table in both:
        assert set(table) == {*functions.names(torch), *functions.EXTRA}


def test_the_extension_lacks_only_what_it_says(both):
    raising = {name for name, (word, _) in both[0].items() if word == functions.RAISES}
    assert raising == {"MemPool(allocator)", "MemPool(no_split=True)", "UntypedStorage._share_cuda_"}
    for name in raising:
        assert both[0][name][1].startswith("NotImplementedError: stratalloc"), both[0][name]


def test_nothing_is_silent(both):
    extension, fallback = both
    assert [name for name, (word, _) in extension.items() if word == "SILENT"] == []
    assert {name for name, (word, _) in fallback.items() if word == "SILENT"} <= SILENT_IN_TORCH


#: torch's pluggable allocator reports nothing to the profiler, which no hook of it could change; `capabilities()` says so.
SILENT_IN_TORCH = {"profiler's memory events"}
if not SINCE_2_15:
    # From 2.15 on it warns.
    SILENT_IN_TORCH.add("cuda.memory._set_memory_metadata")


def text(word, why):
    # Names of parameters and addresses in torch's own messages may change; the first sentence says it.
    why = re.sub(r"(?<=[a-z])\. .*", "", why).replace("|", "\\|")
    if word == "SILENT":
        return "none: torch's pluggable allocator reports none, as `stratalloc.torch.capabilities()` says"
    return word if not why else f"{word}: {why}"


# The table is that of the newest version.
@since_2_15
def test_the_table_is_up_to_date(both):
    extension, fallback = both
    lines = [f"| `{name}` | {text(*extension[name])} | {text(*fallback[name])} |" for name in extension]
    made = HEAD.format(version=torch.__version__.split("+")[0]) + "\n".join(lines) + "\n"
    if os.environ.get("STRATALLOC_BLESS") == "1":
        TABLE.write_text(made)
    assert TABLE.read_text() == made, "TORCH.md differs: STRATALLOC_BLESS=1 writes it anew"
