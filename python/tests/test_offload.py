"""Activations and optimizer state in a tier. Each program in a process of its own: `tier_programs.py` has them."""

import pytest
from test_tiers import HOST, program


def test_what_is_saved_is_let_go():
    program("what_is_saved_is_let_go()")


@pytest.mark.parametrize("tier", ["host", "nvme"])
def test_gradients_are_those_without(tier, tmp_path):
    program("gradients_are_those_without()", conf=HOST if tier == "host" else f"tiers:nvme={tmp_path}=1GiB")


def test_the_peak_is_lower():
    program("the_peak_is_lower()")


@pytest.mark.parametrize("allocator", ["extension", "pluggable"])
def test_what_cannot_go_stays(allocator):
    program("what_cannot_go_stays()", allocator=allocator)


def test_a_full_tier_leaves_activations_on_the_device():
    program("a_full_tier_leaves_activations_on_the_device()", conf="tiers:host=64MiB")


@pytest.mark.parametrize("tier", [None, "host", "nvme"])
def test_an_optimizer_steps_as_without(tier, tmp_path):
    program(f"an_optimizer_steps_as_without({tier!r})", conf=f"{HOST}+nvme={tmp_path}=1GiB")
