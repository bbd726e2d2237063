"""Running out of memory: the error, what it says, who is told, and that life goes on."""

import pytest
import torch
from helpers import GIB, MIB, live, on_gpu, run, run_json


def capacity():
    return torch.cuda.get_device_properties(0).total_memory


def test_the_error_is_torchs_and_explains_itself():
    with pytest.raises(torch.OutOfMemoryError) as caught:
        on_gpu(capacity() * 2)
    text = str(caught.value)
    assert "CUDA out of memory. Tried to allocate" in text
    assert "has a total capacity of" in text and "is free" in text
    assert "stratalloc: " in text
    assert "on device 0: the request is larger than the device; ask for at most" in text


def test_life_goes_on():
    before = live()
    with pytest.raises(torch.OutOfMemoryError):
        on_gpu(capacity() - MIB, dtype=torch.int64)
    x = on_gpu(64 * MIB)
    assert live() - before == 64 * MIB
    host = torch.arange(1000)
    assert torch.equal(host.cuda().cpu(), host)
    del x


def test_the_error_says_what_to_do():
    x = on_gpu(capacity() // 2)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        on_gpu(capacity() // 4 * 3)
    assert "live blocks fill the memory; free " in str(caught.value)
    assert f"at {x.data_ptr():#x}" in str(caught.value)
    del x


# torch's name: test_out_of_memory.
def test_an_absurd_size():
    with pytest.raises(torch.OutOfMemoryError, match="more than 1EB memory"):
        torch.empty(1024 * 1024 * 1024 * 8000000000, dtype=torch.int8, device="cuda")


def test_errors_are_counted():
    torch.cuda.reset_accumulated_memory_stats()
    for _ in range(3):
        with pytest.raises(torch.OutOfMemoryError):
            on_gpu(capacity() * 2)
    assert torch.cuda.memory_stats()["num_ooms"] == 3


# torch's name: test_set_per_process_memory_fraction.
def test_a_fraction_bounds_the_process():
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.5)
    assert torch.cuda.get_per_process_memory_fraction() == 0.5
    total = capacity()
    used = torch.cuda.memory_reserved()
    x = on_gpu(int(total * 0.49) - used)
    del x
    torch.cuda.empty_cache()
    with pytest.raises(torch.OutOfMemoryError) as caught:
        on_gpu(int(total * 0.51))
    assert "allowed" in str(caught.value)
    torch.cuda.set_per_process_memory_fraction(1.0)
    x = on_gpu(int(total * 0.51))
    del x


def test_a_fraction_of_nothing():
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.0)
    with pytest.raises(torch.OutOfMemoryError):
        on_gpu(4 * GIB)


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_a_fraction_that_is_none(fraction):
    with pytest.raises(ValueError):
        torch.cuda.set_per_process_memory_fraction(fraction)
    with pytest.raises(RuntimeError, match="fraction"):
        torch._C._cuda_setMemoryFraction(fraction, 0)


# torch's name: test_notifies_oom.
def test_observers_are_told():
    seen = []
    torch._C._cuda_attach_out_of_memory_observer(lambda *facts: seen.append(facts))
    request = capacity() * 2
    with pytest.raises(torch.OutOfMemoryError):
        on_gpu(request)
    assert len(seen) == 1
    device, size, total, free = seen[0]
    assert (device, size) == (0, request) and 0 < free <= total == capacity()


# As with torch's own: what comes first in an observer is a snapshot with the shortage in it.
def test_the_history_has_the_shortage():
    torch.cuda.memory._record_memory_history("all")
    request = capacity() * 2
    with pytest.raises(torch.OutOfMemoryError):
        on_gpu(request)
    last = [entry for entry in torch.cuda.memory._snapshot()["device_traces"][0] if entry["action"] == "oom"][-1]
    assert last["size"] == request and last["device_free"] > 0


def test_memory_that_garbage_holds_is_not_lost():
    class Cycle:
        pass

    cycle = Cycle()
    cycle.self = cycle
    cycle.memory = on_gpu(int(capacity() * 0.6))
    del cycle
    with pytest.raises(torch.OutOfMemoryError):
        on_gpu(int(capacity() * 0.6))
    import gc

    gc.collect()
    x = on_gpu(int(capacity() * 0.6))
    del x


def test_a_limit_in_the_configuration():
    result = run(
        """
        import torch
        total = torch.cuda.get_device_properties(0).total_memory
        assert abs(torch.cuda.get_per_process_memory_fraction() - 0.25) < 0.01
        try:
            torch.empty(int(total * 0.3), dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError as error:
            print("refused:", error)
        torch.empty(int(total * 0.2), dtype=torch.uint8, device="cuda")
        """,
        env={"STRATALLOC_CONF": "limit:0.25"},
    )
    assert "refused: CUDA out of memory" in result.stdout


def test_torchs_own_option_for_the_fraction():
    result = run_json(
        """
        import json, torch
        torch.cuda.init()
        print(json.dumps(torch.cuda.get_per_process_memory_fraction()))
        """,
        env={"PYTORCH_CUDA_ALLOC_CONF": "per_process_memory_fraction:0.5"},
    )
    assert result == 0.5
