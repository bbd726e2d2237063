"""torch.compile's graph trees, driven without a compiler: they keep a pool's state by checkpoints, and go back to it when a
program takes another way."""

import gc

import pytest
import torch
from helpers import live

pytest.importorskip("torch._inductor.cudagraph_trees")

from torch._inductor import config  # noqa: E402
from torch._inductor.cudagraph_trees import (  # noqa: E402
    cudagraphify_impl,
    get_container,
    get_manager,
    reset_cudagraph_trees,
)


@pytest.fixture(autouse=True)
def _strict():
    """With torch's own slow checks on: they compare a pool's live blocks with the live outputs at each step."""
    with config.patch({"triton.slow_path_cudagraph_asserts": True, "triton.fast_path_cudagraph_asserts": True}):
        yield
    gc.collect()
    reset_cudagraph_trees()


def graphed(function, example):
    return cudagraphify_impl(
        function, [example], (), device_index=0, is_backward=False, is_inference=True, stack_traces=None
    )


def twice(arguments):
    (x,) = arguments
    arguments.clear()
    out = torch.empty_like(x).copy_(x)
    return [out, torch.empty_like(out).copy_(out)]


def larger(arguments):
    (x,) = arguments
    arguments.clear()
    work = torch.empty(3_000_000, dtype=torch.uint8, device="cuda")
    out = torch.empty(2 * x.numel(), dtype=x.dtype, device="cuda")
    out[: x.numel()].copy_(x)
    del work
    return [out]


def step(function, x):
    torch.compiler.cudagraph_mark_step_begin()
    return function([x])


def test_a_graph_is_recorded_and_replayed():
    numbers = torch.arange(1000).cuda()
    run = graphed(twice, numbers)
    for offset in range(5):
        out = step(run, torch.arange(offset, 1000 + offset).cuda())
        torch.cuda.synchronize()
        assert torch.equal(out[0].cpu(), torch.arange(offset, 1000 + offset))
        assert torch.equal(out[1].cpu(), torch.arange(offset, 1000 + offset))
        del out


def test_another_way_goes_back_to_a_checkpoint():
    numbers = torch.arange(1000).cuda()
    first, second, third = graphed(twice, numbers), graphed(larger, numbers), graphed(twice, numbers)

    def program(last):
        out = step(first, torch.arange(1000).cuda())
        then = last([out[0]])
        torch.cuda.synchronize()
        result = then[0][:1000].cpu()
        assert torch.equal(out[1].cpu(), torch.arange(1000)), "what is still live was overwritten"
        return result

    for _ in range(4):
        assert torch.equal(program(second), torch.arange(1000))
    # `first` has been recorded; what follows it now is another graph, recorded from the state after `first`.
    for _ in range(4):
        assert torch.equal(program(third), torch.arange(1000))
        assert torch.equal(program(second), torch.arange(1000))
    manager = get_manager(0)
    assert manager.debug_checkpointing_counter > 0


def test_outputs_that_outlive_their_step_keep_their_memory():
    numbers = torch.arange(1000).cuda()
    run = graphed(larger, numbers)
    for _ in range(3):
        out = step(run, numbers)
        del out
    kept = [t.clone() for t in step(run, numbers)]
    others = [torch.full((1000,), 7).cuda() for _ in range(20)]
    assert all(torch.equal(t.cpu(), torch.full((1000,), 7)) for t in others)
    del kept, others


def test_everything_goes_with_the_trees():
    gc.collect()
    torch.cuda.empty_cache()
    before = live()
    numbers = torch.arange(1000).cuda()
    run = graphed(twice, numbers)
    for _ in range(3):
        out = step(run, numbers)
        del out
    del run, numbers
    gc.collect()
    reset_cudagraph_trees()
    gc.collect()
    torch.cuda.synchronize()
    assert live() <= before + 8192
    assert get_container(0).tree_manager is None
