"""Programs over tiers, each for an interpreter of its own, since tiers are configured when stratalloc is enabled. They check themselves;
`test_tiers.py` and `test_offload.py` run them."""

import contextlib
import copy
import ctypes
import gc
import os
import time

import stratalloc
import torch
from on_host import OnHost
from torch import nn
from torch.utils.checkpoint import checkpoint

MIB = 1 << 20


@contextlib.contextmanager
def raises(kind, *words):
    """The block must fail, and say all of `words`."""
    try:
        yield
    except kind as error:
        missing = [word for word in words if word not in str(error)]
        assert not missing, f"{error} does not say {missing}"
    else:
        raise AssertionError(f"no {kind} was raised")


def device_used():
    """What the driver has given away, to anybody."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def host_used():
    """Resident memory of this process that is its own: a software device's memory is a file's, shared. What the C library keeps of
    copies that were freed is none of it."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["RssAnon"].split()[0]) << 10


def files_open():
    return len(os.listdir("/proc/self/fd"))


def synchronizations():
    return stratalloc.tier_stats()["device_synchronizations"]


def model_of_100_mib():
    layer = nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True)
    return nn.Sequential(nn.Embedding(12288, 512), nn.TransformerEncoder(layer, 6), nn.Linear(512, 512))


def on_device(model, tag):
    """A copy whose weights are evictable."""
    with stratalloc.tag(tag):
        return copy.deepcopy(model).cuda()


def same(model, reference):
    # Bytes, since a NaN is not itself.
    def raw(tensor):
        return tensor.detach().cpu().contiguous().view(torch.uint8)

    pairs = zip(model.state_dict().values(), reference.state_dict().values(), strict=True)
    return all(torch.equal(raw(left), raw(right)) for left, right in pairs)


def addresses(model):
    return [tensor.data_ptr() for tensor in model.state_dict().values()]


# ---- sleep and wake


def a_model_sleeps_and_wakes(cycles):
    torch.manual_seed(0)
    reference = model_of_100_mib()
    weights = sum(tensor.nbytes for tensor in reference.state_dict().values())
    assert 90 * MIB < weights < 110 * MIB
    before = device_used()
    model = on_device(reference, "weights")
    other = torch.arange(1000).cuda()
    where, synced = addresses(model), synchronizations()
    assert same(model, reference) and device_used() - before >= weights
    settled = None
    for cycle in range(cycles):
        stratalloc.sleep()
        # The stand-in's own bookkeeping is none of it: what a driver counts is.
        asleep = device_used() - before
        assert asleep < weights // 100 + 2 * MIB, (cycle, asleep)
        assert stratalloc.residency(model[2].weight).state in ("host", "disk")
        stratalloc.wake()
        assert addresses(model) == where
        # Comparing makes copies on the host: often enough before the figures are taken that it changes them no more.
        if cycle % max(1, cycles // 10) == 0 or cycle == cycles - 1:
            assert same(model, reference), cycle
            assert stratalloc.residency(model[2].weight).state == "resident"
        if cycle == cycles // 2:
            gc.collect()
            settled = device_used(), host_used(), files_open()
    assert torch.equal(other.cpu(), torch.arange(1000))
    assert synchronizations() == synced
    device, host, files = settled
    gc.collect()
    assert device_used() <= device and files_open() <= files
    assert host_used() <= host + 8 * MIB, (host_used(), host)
    del model
    gc.collect()
    torch.cuda.empty_cache()
    assert device_used() - before <= 4 * MIB


def tags_are_kept_saved_or_dropped():
    torch.manual_seed(1)
    values = {name: torch.randn(3 * MIB) for name in ("weights", "cache", "head")}
    tensors = {}
    for name, value in values.items():
        with stratalloc.tag(name):
            tensors[name] = value.cuda()
    untagged = values["head"].cuda()
    where = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    full = device_used()
    stratalloc.sleep({"cache": "drop", "head": "keep"})
    states = {name: stratalloc.residency(tensor).state for name, tensor in tensors.items()}
    assert states["weights"] in ("host", "disk") and states["head"] == "resident"
    assert states["cache"] not in ("resident", "host", "disk"), states
    assert full - device_used() >= 24 * MIB
    assert torch.equal(tensors["head"].cpu(), values["head"]) and torch.equal(untagged.cpu(), values["head"])
    # The memory is anybody's meanwhile.
    other = torch.empty(12 * MIB, dtype=torch.uint8, device="cuda")
    del other
    stratalloc.wake(["weights"])
    assert torch.equal(tensors["weights"].cpu(), values["weights"])
    assert stratalloc.residency(tensors["cache"]).state == states["cache"]
    stratalloc.wake()
    assert stratalloc.residency(tensors["cache"]).state == "resident"
    tensors["cache"].copy_(values["cache"])
    for name, tensor in tensors.items():
        assert tensor.data_ptr() == where[name] and torch.equal(tensor.cpu(), values[name]), name


def tensors_and_tags_come_and_go():
    torch.manual_seed(2)
    value = torch.randn(2 * MIB)
    small = [torch.randn(size) for size in (1, 700, 5000, 200_000)]
    with stratalloc.tag("weights"):
        tensor = value.cuda()
        smalls = [one.cuda() for one in small]
    found = stratalloc.residency(tensor)
    assert found == stratalloc.Residency("resident", "weights", tensor.nbytes, 0)
    seen = []
    remove = stratalloc.on_residency(lambda event, address, size: seen.append((event, address, size)))
    stratalloc.offload(tensor)
    assert stratalloc.residency(tensor).state in ("host", "disk")
    # A view is its storage.
    assert stratalloc.residency(tensor[100:200].view(10, 10)) == stratalloc.residency(tensor)
    stratalloc.prefetch(tensor)
    stratalloc.restore(tensor)
    assert torch.equal(tensor.cpu(), value)
    assert [event for event, address, _ in seen if address <= tensor.data_ptr()] == ["unmapping", "remapped"]
    remove()
    count = len(seen)
    stratalloc.offload("weights")
    assert all(stratalloc.residency(one).state in ("host", "disk") for one in [tensor, *smalls])
    stratalloc.restore("weights")
    assert len(seen) == count
    stratalloc.offload()
    with stratalloc.pin(tensor):
        assert torch.equal(tensor.cpu(), value)
        with raises(stratalloc.TierError, "pinned"):
            stratalloc.offload(tensor)
        stratalloc.offload("weights")
        assert stratalloc.residency(tensor).state == "resident"
        with raises(stratalloc.TierError, "pinned"):
            stratalloc.sleep()
    stratalloc.offload(tensor)
    assert stratalloc.residency(tensor).state in ("host", "disk")
    stratalloc.restore()
    assert torch.equal(tensor.cpu(), value)
    assert all(torch.equal(one.cpu(), host) for one, host in zip(smalls, small))
    stats = stratalloc.tier_stats()
    assert stats["evicted_bytes"] >= 3 * value.nbytes and stats["restored_bytes"] >= 3 * value.nbytes, stats
    assert stats["failures"] == 0 and not stats["asleep"], stats
    # What is away can be freed.
    stratalloc.offload()
    used = stratalloc.tier_stats()["tiers"][0]["used"]
    del tensor, smalls
    gc.collect()
    torch.cuda.synchronize()
    assert used > 0 and stratalloc.tier_stats()["tiers"][0]["used"] == 0


def mistakes_are_told():
    with stratalloc.tag("weights"):
        tensor = torch.arange(MIB).cuda()
    plain = torch.arange(1000).cuda()
    for call in (stratalloc.residency, stratalloc.offload, stratalloc.restore, stratalloc.prefetch):
        with raises(ValueError, "evictable"):
            call(plain)
        with raises(ValueError, "cpu"):
            call(torch.zeros(3))
        with raises((TypeError, ValueError)):
            call(7)
    with raises(ValueError, "no tag 'weihgts'", "weights"):
        stratalloc.offload("weihgts")
    with raises(ValueError, "no tag 'kv'"):
        stratalloc.sleep({"kv": "drop"})
    with raises(ValueError, "save, keep, drop", "'lose'"):
        stratalloc.sleep({"weights": "lose"})
    with raises(ValueError, "no tag"):
        stratalloc.wake(["kv"])
    with raises(ValueError, "codec", "zip"), stratalloc.tag("weights", codec="zip"):
        pass
    for wrong in ("tape", 7):
        with raises(ValueError, f"no tier {wrong!r}", "host"), stratalloc.tag("weights", tier=wrong):
            pass
    with raises(ValueError, "codec"):
        stratalloc.tag("weights", codec=None)
    for name in ("", 3, "a\0b"):
        with raises(ValueError, "a tag is"), stratalloc.tag(name):
            pass
    assert stratalloc.residency(tensor).state == "resident"
    with raises(stratalloc.TierError, "sleep"):
        stratalloc.wake()
    stratalloc.sleep()
    with raises(stratalloc.TierError, "sleep"):
        stratalloc.sleep()
    assert stratalloc.residency(tensor).state in ("host", "disk")
    stratalloc.wake()
    assert torch.equal(tensor.cpu(), torch.arange(MIB))


def a_tier_that_is_too_small_takes_nothing():
    """Configured with 64 MiB of host memory."""
    with stratalloc.tag("weights"):
        tensors = [torch.full((MIB,), float(number)).cuda() for number in range(32)]
    with raises(stratalloc.TierError, "full"):
        stratalloc.sleep()
    torch.cuda.synchronize()
    stratalloc.restore()
    assert all(torch.equal(tensor.cpu(), torch.full((MIB,), float(number))) for number, tensor in enumerate(tensors))
    # With less, there is room.
    del tensors[8:]
    stratalloc.sleep()
    stratalloc.wake()
    assert all(torch.equal(tensor.cpu(), torch.full((MIB,), float(number))) for number, tensor in enumerate(tensors))


def codecs_keep_what_they_promise():
    torch.manual_seed(7)
    value = (torch.randn(4 * MIB) * 0.02).to(torch.bfloat16)
    tensors = {}
    for codec in ("none", "lossless16", "int8-bf16"):
        with stratalloc.tag(codec, codec=codec):
            tensors[codec] = value.cuda()
        stratalloc.offload(codec)
    used = stratalloc.tier_stats()["tiers"][0]["bytes_in"]
    # As it is, at least a fifth less, at most 9 of 16 bits.
    assert used < value.nbytes * (1 + 0.8 + 9 / 16 + 0.05), used / value.nbytes
    stratalloc.restore()
    for codec in ("none", "lossless16"):
        assert torch.equal(tensors[codec].cpu(), value), codec
    error = (tensors["int8-bf16"].cpu().float() - value.float()).abs().max().item()
    assert 0 < error <= value.abs().max().item() / 100, error


def threads_and_captures_have_their_own():
    import threading

    found = {}

    def elsewhere():
        found["thread"] = torch.zeros(MIB, device="cuda")

    with stratalloc.tag("weights"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        with stratalloc.tag("names only", evictable=False):
            named = torch.zeros(MIB, device="cuda")
        inside = torch.zeros(MIB, device="cuda")
    after = torch.zeros(MIB, device="cuda")
    assert stratalloc.residency(inside).tag == "weights"
    for tensor in (found["thread"], named, after):
        with raises(ValueError, "evictable"):
            stratalloc.residency(tensor)
    graph = torch.cuda.CUDAGraph()
    with stratalloc.tag("weights"), torch.cuda.graph(graph):
        captured = torch.empty(MIB, device="cuda")
    # A graph replays with the addresses it has seen: its memory stays.
    with raises(ValueError, "evictable"):
        stratalloc.residency(captured)


# ---- offloading


class Block(nn.Module):
    """Attention from views of one tensor, a residual that two operations save, and a wide middle."""

    def __init__(self, width):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.middle = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        batch, length, width = x.shape
        heads = self.qkv(self.norms[0](x)).view(batch, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(*heads)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.middle(self.norms[1](x))


class Net(nn.Module):
    def __init__(self, layers=4, width=64):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, 1)
        self.checkpointed = False

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.head(x).square().mean()


def backward(loss, _):
    loss.backward()


def backward_twice(loss, _):
    loss.backward(retain_graph=True)
    loss.backward()


def double_backward(loss, x):
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    gradient.square().sum().backward()


def gradients(net, x, way, context, checkpointed=False, inside=False):
    """Every gradient."""
    net = copy.deepcopy(net).cuda()
    net.checkpointed = checkpointed
    x = x.cuda().requires_grad_()
    with OnHost():
        with context:
            loss = net(x)
            if inside:
                way(loss, x)
        if not inside:
            way(loss, x)
    tensors = [*net.parameters(), x]
    return [tensor.grad.cpu() for tensor in tensors if tensor.grad is not None]


def gradients_are_those_without():
    torch.manual_seed(3)
    net, x = Net(), torch.randn(4, 64, 64)
    offload = stratalloc.torch.offload_activations
    cases = [
        (way, checkpointed, inside)
        for way in (backward, backward_twice, double_backward)
        for checkpointed in (False, True)
        for inside in (False, True)
        if not (checkpointed and way is double_backward)
    ]
    for way, checkpointed, inside in cases:
        case = way.__name__, checkpointed, inside
        wanted = gradients(net, x, way, contextlib.nullcontext(), checkpointed, inside)
        assert len(wanted) > 40
        for settings in ({}, {"keep_last": 0, "prefetch": 0}, {"keep_last": 5, "prefetch": 50}):
            context = offload(min_bytes=1000, **settings)
            found = gradients(net, x, way, context, checkpointed, inside)
            assert all(torch.equal(left, right) for left, right in zip(wanted, found, strict=True)), (case, settings)
            # With checkpoints, fewer are saved than that.
            assert context.bytes_out > 0 or checkpointed and settings.get("keep_last") == 5, (case, settings)
            assert context.bytes_refused == 0, (case, settings)
    gc.collect()
    torch.cuda.synchronize()
    # Nothing is left behind once writes that were under way for what is gone have ended.
    until = time.monotonic() + 30
    while any(tier["used"] for tier in stratalloc.tier_stats()["tiers"]) and time.monotonic() < until:
        time.sleep(0.01)
    assert all(tier["used"] == 0 for tier in stratalloc.tier_stats()["tiers"]), stratalloc.tier_stats()


def the_peak_is_lower():
    """Where copies keep up with the arithmetic: each layer waits for both, since the stand-in's arithmetic takes no time of the device's."""
    torch.manual_seed(6)
    net, x = Net(8).cuda(), torch.randn(8, 64, 64).cuda()
    for block in net.blocks:
        block.register_forward_hook(lambda *_: torch.cuda.synchronize())
        block.register_full_backward_pre_hook(lambda *_: torch.cuda.synchronize())
    peaks = []
    for context in (contextlib.nullcontext(), stratalloc.torch.offload_activations(min_bytes=1000)):
        net.zero_grad()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with OnHost():
            with context:
                loss = net(x)
            loss.backward()
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    without, offloaded = peaks
    assert offloaded < without / 2, peaks


def what_is_saved_is_let_go():
    torch.manual_seed(4)
    host = torch.randn(4, MIB // 4)
    x = host.cuda().requires_grad_()
    settled = torch.cuda.memory_allocated()
    synced = synchronizations()
    with OnHost(), stratalloc.torch.offload_activations(keep_last=0) as context:
        y = x
        for _ in range(8):
            y = (y * 2).sigmoid()
        loss = y.sum()
    torch.cuda.synchronize()
    # Of eight saved results, none is on the device but the last, which `y` is.
    assert torch.cuda.memory_allocated() - settled <= x.nbytes + MIB, torch.cuda.memory_allocated() - settled
    assert context.bytes_out >= 7 * x.nbytes
    with OnHost():
        loss.backward()
    wanted = host.clone().requires_grad_()
    y_host = wanted
    for _ in range(8):
        y_host = (y_host * 2).sigmoid()
    y_host.sum().backward()
    assert torch.equal(x.grad.cpu(), wanted.grad)
    assert synchronizations() == synced
    # A graph that nobody goes back through.
    with OnHost(), stratalloc.torch.offload_activations(keep_last=0):
        loss = (x * 2).sigmoid().exp().sum()
    assert stratalloc.tier_stats()["tiers"][0]["used"] > 0
    del loss, y
    gc.collect()
    torch.cuda.synchronize()
    assert stratalloc.tier_stats()["tiers"][0]["used"] == 0


def what_cannot_go_stays():
    weight = nn.Parameter(torch.randn(512, 512).cuda())
    x = torch.randn(512, 512).cuda()
    with stratalloc.torch.offload_activations(min_bytes=1, keep_last=0) as context:
        (x @ weight.t()).sum()
    # x went; the weight, and its transpose, did not.
    assert context.bytes_out == x.nbytes, context.bytes_out
    with stratalloc.torch.offload_activations(min_bytes=2 * x.nbytes, keep_last=0) as context:
        (x @ weight).sum()
    assert context.bytes_out == 0
    host = torch.randn(512, 512, requires_grad=True)
    with stratalloc.torch.offload_activations(min_bytes=1, keep_last=0) as context:
        host.exp().sum().backward()
    # How the work is split over threads may cost the last digit.
    assert context.bytes_out == 0 and torch.allclose(host.grad, host.detach().exp())
    for options in ({"min_bytes": 0}, {"keep_last": -1}, {"prefetch": 1.5}, {"min_bytes": True}):
        with raises(ValueError, next(iter(options))):
            stratalloc.torch.offload_activations(**options)
    with raises(ValueError, "tier"):
        stratalloc.torch.offload_activations(tier="tape")


def a_full_tier_leaves_activations_on_the_device():
    """Configured with 64 MiB of host memory."""
    import warnings

    x = torch.randn(16 * MIB).cuda().requires_grad_()
    with OnHost(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with stratalloc.torch.offload_activations(keep_last=0) as context:
            loss = x.sigmoid().sigmoid().sigmoid().sum()
        loss.backward()
    assert context.bytes_refused > 0 and len(told) == 1 and "stay on the device" in str(told[0].message)
    host = x.detach().cpu().requires_grad_()
    host.sigmoid().sigmoid().sigmoid().sum().backward()
    assert torch.equal(x.grad.cpu(), host.grad)


def an_optimizer_steps_as_without(tier):
    torch.manual_seed(5)
    first, x = Net(2), [torch.randn(4, 64, 64) for _ in range(4)]
    ways = {
        "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    }
    for name, make in ways.items():
        results = []
        for offloaded in (False, True):
            net = copy.deepcopy(first).cuda()
            optimizer = make(net.parameters())
            handle = stratalloc.torch.offload_optimizer(optimizer, tier=tier, min_bytes=4096) if offloaded else None
            with OnHost():
                for batch in x:
                    optimizer.zero_grad()
                    net(batch.cuda()).backward()
                    optimizer.step()
                    if offloaded:
                        large = [
                            value
                            for state in optimizer.state.values()
                            for value in state.values()
                            if torch.is_tensor(value) and value.nbytes >= 4096
                        ]
                        states = {stratalloc.residency(value).state for value in large}
                        assert large and states <= {"host", "disk"}, states
                        assert tier is None or states == {"disk" if tier == "nvme" else tier}, states
            if offloaded:
                handle.remove()
                assert {stratalloc.residency(value).state for value in large} == {"resident"}
            results.append([tensor.cpu() for tensor in net.state_dict().values()])
        assert all(torch.equal(left, right) for left, right in zip(*results, strict=True)), name
    with raises(TypeError, "Optimizer"):
        stratalloc.torch.offload_optimizer(first)
