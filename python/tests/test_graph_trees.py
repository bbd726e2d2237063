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


def graphed(function, example, outputs=2, static=(0,)):
    """Inputs are static, as parameters are: others are copied in by a kernel, which the software device does not run."""
    return cudagraphify_impl(
        function, [example], static, device_index=0, is_backward=False, is_inference=True, stack_traces=[None] * outputs
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
        expected = torch.arange(offset, 1000 + offset)
        numbers.copy_(expected)
        out = step(run, numbers)
        torch.cuda.synchronize()
        assert torch.equal(out[0].cpu(), expected) and torch.equal(out[1].cpu(), expected)
        del out


def test_another_way_goes_back_to_a_checkpoint():
    numbers = torch.arange(1000).cuda()
    first = graphed(twice, numbers)
    # Their input is what the first graph puts out, in the pool: known to the trees, and copied by nobody.
    second, third = graphed(larger, numbers, outputs=1, static=()), graphed(twice, numbers, static=())

    def program(last, offset):
        expected = torch.arange(offset, 1000 + offset)
        numbers.copy_(expected)
        out = step(first, numbers)
        then = last([out[0]])
        torch.cuda.synchronize()
        assert torch.equal(out[1].cpu(), expected), "what is still live was overwritten"
        assert torch.equal(then[0][:1000].cpu(), expected)

    for offset in range(4):
        program(second, offset)
    # `first` has been recorded; what follows it now is another graph, recorded from the state after `first`.
    before = get_manager(0).debug_checkpointing_counter
    for offset in range(4):
        program(third, offset)
        program(second, offset)
    assert get_manager(0).debug_checkpointing_counter > before


def test_outputs_that_outlive_their_step_keep_their_memory():
    numbers = torch.arange(1000).cuda()
    run = graphed(larger, numbers, outputs=1)
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
