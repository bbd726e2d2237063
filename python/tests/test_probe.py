"""The virtual functions that only C++ reaches, through a small library that is compiled here."""

import ctypes
import subprocess

import pytest
import torch
from stratalloc import _build, _extension
from helpers import HERE, since_2_15


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    output = tmp_path_factory.mktemp("probe") / "probe.so"
    command = _build.command(torch, _build.compiler(), output)
    command[command.index(str(_build.SOURCES / "extension.cpp"))] = str(HERE / "probe" / "probe.cpp")
    command.remove("-fvisibility=hidden")
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(output))


def call(probe, name, *arguments):
    function = getattr(probe, name)
    function.restype = ctypes.c_char_p
    return function(*arguments).decode()


@pytest.mark.parametrize(
    "name",
    [
        *("deleters", "cache_info", "base_allocation", "expandable_sizes", "streams", "trackers"),
        pytest.param("at_an_address", marks=since_2_15),
    ],
)
def test_probe(probe, name):
    assert call(probe, f"probe_{name}") == ""


# torch frees what it holds for other processes this way, before it gives up.
def test_callbacks_free_memory_before_the_error(probe):
    total = torch.cuda.get_device_properties(0).total_memory
    assert call(probe, "probe_free_memory_callbacks", ctypes.c_size_t(total)) == ""


def test_an_extension_names_its_torch():
    _extension._loaded.stratalloc_torch_compiled_for.restype = ctypes.c_char_p
    assert torch.__version__.startswith(_extension._loaded.stratalloc_torch_compiled_for().decode())
