"""Uplinks of few bits: unbiased, never a whole step off, and billed as what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from airtune.adapters.few_bits import received, rounded_change, rounded_codes, scale_shape
from airtune.merging.rules import MERGING
from airtune.models.workload import adapter_size, full_sizes
from airtune.rounds import run
from airtune.scenario import load_scenario
from airtune.training.worker import Worker
from assigned import mode

A, B = "layer.lora_A.weight", "layer.lora_B.weight"


pytestmark = pytest.mark.usefixtures("one_thread")


def adapters(rank: int = 3) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return an adapter before and after training; each rank moved by another order of size."""
    torch.manual_seed(0)
    before = {A: torch.randn(rank, 50), B: torch.randn(40, rank)}
    sizes = 10.0 ** -torch.arange(rank, dtype=torch.float32)
    after = {
        A: before[A] + torch.randn(rank, 50) * sizes[:, None],
        B: before[B] + torch.randn(40, rank) * sizes,
    }
    return before, after


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_values_are_on_each_ranks_own_grid_and_less_than_a_step_away(bits: int) -> None:
    before, after = adapters()
    received = rounded_change(before, after, bits, seed=1)
    levels = 2 ** (bits - 1) - 1
    for name, dim in ((A, 1), (B, 0)):
        change = after[name] - before[name]
        step = change.abs().amax(dim=dim, keepdim=True) / levels
        multiples = (received[name] - before[name]) / step
        assert (multiples - multiples.round()).abs().max() < 1e-3
        assert len(multiples.round().unique()) <= 2 * levels + 1
        assert ((received[name] - after[name]).abs() < step * (1 + 1e-3)).all()


def test_rounding_keeps_the_mean() -> None:
    before, after = adapters()
    draws = 400
    mean = {name: torch.zeros_like(value) for name, value in after.items()}
    for seed in range(draws):
        for name, value in rounded_change(before, after, 2, seed=seed).items():
            mean[name] += value / draws
    for name, dim in ((A, 1), (B, 0)):
        step = (after[name] - before[name]).abs().amax(dim=dim, keepdim=True)
        # A draw's standard deviation is at most half a step; five standard errors.
        assert ((mean[name] - after[name]).abs() <= 5 * 0.5 * step / draws**0.5).all()


def test_what_did_not_change_is_exact_and_a_seed_repeats() -> None:
    before, after = adapters()
    after[A][1] = before[A][1]
    one, other = (rounded_change(before, after, 4, seed=seed) for seed in (3, 3))
    assert torch.equal(one[A][1], before[A][1])
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one[B], rounded_change(before, after, 4, seed=4)[B])


def test_a_run_is_billed_for_few_bits_and_still_learns(tmp_path: Path) -> None:
    settings = ["rounds=2", "task.eval_examples=16", "planning.method=none"]
    few = load_scenario("tiny", [*settings, "aggregation.uplink_change_bits=4"])
    record = run(few, out=tmp_path / "few")
    shape, rank = Worker(few).shape, few.training.lora_rank
    values = adapter_size(shape, full_sizes(shape), mode(rank))
    scales = 32 * rank * 2 * shape.blocks * len(shape.matrices)
    bitmap = shape.blocks * (shape.mlp_channels + shape.kv_heads)
    entry = record.rounds[-1]
    assert {c.uplink_bits for c in entry.clients} == {1024.0 + bitmap + 4 * values + scales}
    assert {c.downlink_bits for c in entry.clients} == {1024.0 + bitmap + 16 * values}
    # What was planned is what is sent.
    assert entry.predicted_latency_s == pytest.approx(entry.round_latency_s)
    whole = run(load_scenario("tiny", settings), out=tmp_path / "whole")
    ours, theirs = record.rounds[-1].eval_loss, whole.rounds[-1].eval_loss
    assert ours is not None
    assert theirs is not None
    assert ours != theirs
    assert ours == pytest.approx(theirs, abs=0.1)


@pytest.mark.parametrize("rule", list(MERGING))
def test_every_rule_goes_with_few_bits_and_pruning(rule: str, tmp_path: Path) -> None:
    settings = [
        "rounds=2",
        "task.eval_examples=8",
        "planning.method=uniform",
        "planning.kappa=0.05",
        "aggregation.uplink_change_bits=2",
        f"aggregation.rule={rule}",
    ]
    record = run(load_scenario("tiny", settings), out=tmp_path / "run")
    for entry in record.rounds:
        assert all(client.status == "ok" for client in entry.clients)
        assert min(client.pruning for client in entry.clients) > 0.1
    if MERGING[rule].restarts:  # the broadcast hands on what came in
        first, second = record.rounds
        assert second.clients[0].downlink_bits == sum(c.uplink_bits for c in first.clients)


def test_every_client_and_round_rounds_by_its_own_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def seen(before, after, bits, *, seed):
        seeds.append(seed)
        return rounded_change(before, after, bits, seed=seed)

    monkeypatch.setattr("airtune.training.worker.rounded_change", seen)
    settings = ["rounds=2", "task.eval_examples=8", "aggregation.uplink_change_bits=4"]
    run(load_scenario("tiny", settings), out=tmp_path / "run")
    assert len(seeds) == len(set(seeds)) == 8


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_code_fits_its_bits_where_the_scale_as_sent_was_rounded_down(sign: float) -> None:
    # Ten times the smallest float32 over seven levels: the scale is rounded to one of it.
    smallest = 2.0**-149
    before = {B: torch.zeros(1, 1)}
    after = {B: torch.full((1, 1), sign * 10 * smallest)}
    codes, scales = rounded_codes(before, after, 4, seed=0)
    assert scales[B].item() == smallest
    assert codes[B].item() == sign * 7


def test_a_receiver_keeps_the_precision_of_what_it_holds() -> None:
    before, after = adapters()
    half = {name: value.bfloat16() for name, value in before.items()}
    codes, scales = rounded_codes(half, after, 4, seed=0)
    assert {value.dtype for value in received(half, codes, scales).values()} == {torch.bfloat16}


def test_a_scale_for_each_rank() -> None:
    before, after = adapters(rank=3)
    _, scales = rounded_codes(before, after, 4, seed=0)
    assert scale_shape(A, (3, 50)) == tuple(scales[A].shape) == (3, 1)
    assert scale_shape(B, (40, 3)) == tuple(scales[B].shape) == (1, 3)
