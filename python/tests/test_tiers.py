"""Tensors that leave the device and come back. Each program in a process of its own: `tier_programs.py` has them."""

import pytest
from helpers import run

HOST = "tiers:host=1GiB"


def program(call, *, allocator="extension", conf=HOST):
    run(f"import tier_programs\ntier_programs.{call}", allocator=allocator, env={"STRATALLOC_CONF": conf})


@pytest.mark.parametrize("allocator", ["extension", "pluggable"])
def test_tags_are_kept_saved_or_dropped(allocator):
    program("tags_are_kept_saved_or_dropped()", allocator=allocator)


def test_a_model_sleeps_and_wakes_a_hundred_times():
    program("a_model_sleeps_and_wakes(cycles=100)")


def test_a_model_sleeps_on_disk(tmp_path):
    program("a_model_sleeps_and_wakes(cycles=5)", conf=f"tiers:nvme={tmp_path}=1GiB")


@pytest.mark.parametrize("tier", ["host", "nvme"])
def test_tensors_and_tags_come_and_go(tier, tmp_path):
    program("tensors_and_tags_come_and_go()", conf=HOST if tier == "host" else f"tiers:nvme={tmp_path}=1GiB")


def test_codecs_keep_what_they_promise():
    program("codecs_keep_what_they_promise()")


def test_mistakes_are_told():
    program("mistakes_are_told()")


def test_a_tier_that_is_too_small_takes_nothing():
    program("a_tier_that_is_too_small_takes_nothing()", conf="tiers:host=64MiB")


def test_threads_and_captures_have_their_own():
    program("threads_and_captures_have_their_own()")


def test_without_stratalloc_or_tiers_it_is_told():
    run(
        """
        import stratalloc
        from tier_programs import raises
        with raises(stratalloc.NotEnabled, "enable()"):
            stratalloc.sleep()
        with raises(stratalloc.NotEnabled, "enable()"), stratalloc.tag("weights"):
            pass
        """,
        allocator="native",
    )
    run(
        """
        from tier_programs import raises
        with raises(ValueError, "tiers:host="):
            stratalloc.torch.offload_activations()
        with raises(ValueError, "tiers:host="):
            stratalloc.torch.offload_optimizer(torch.optim.SGD([torch.zeros(3, requires_grad=True)]))
        """
    )
