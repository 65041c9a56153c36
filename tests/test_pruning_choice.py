"""From a rate to units: met, nested, deterministic, least harm first; and cost curves."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.errors import InputError
from airtune.models.loading import label_logits, shape_of
from airtune.models.structure import Structure, whole
from airtune.models.workload import ModelShape, realised_pruning
from airtune.pruning import calibrate, choose, cost_curve, cut
from airtune.pruning.choice import removal_order
from airtune.pruning.layers import blocks_of
from airtune.pruning.statistics import Statistics
from small_models import NAMES, small_model, text_batch


@functools.cache
def calibrated(name: str):
    model = small_model(name)
    shape = shape_of(model)
    return model, shape, calibrate(model, shape, [text_batch(rows=16, length=16)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("units", ["mixed", "mlp", "attention", "blocks"])
def test_rates_are_met_as_nearly_as_units_allow(name: str, units: str) -> None:
    _, shape, statistics = calibrated(name)
    steps = removal_order(statistics, shape, units)
    coarsest = max(step.parameters for step in steps) / shape.block_parameters
    reach = sum(step.parameters for step in steps) / shape.block_parameters
    for tenth in range(9):
        if tenth / 10 > reach:
            continue
        structure = choose(statistics, shape, tenth / 10, units)
        realised = realised_pruning(shape, structure.sizes)
        assert abs(realised - tenth / 10) <= coarsest / 2 + 1e-9


@given(st.floats(0, 0.66), st.floats(0, 0.66), st.sampled_from(["mixed", "blocks"]))
@settings(deadline=None)
def test_higher_rates_keep_a_part_of_what_lower_ones_keep(one, other, units) -> None:
    _, shape, statistics = calibrated("llama-multi-head")
    less, more = (choose(statistics, shape, rate, units) for rate in sorted((one, other)))
    for block in range(shape.blocks):
        for unit in ("mlp", "group"):
            assert set(more.units(block, unit)) <= set(less.units(block, unit))


def test_rate_zero_keeps_everything() -> None:
    for name in NAMES:
        _, shape, statistics = calibrated(name)
        assert choose(statistics, shape, 0.0) == whole(shape)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_impossible_rates_are_refused(rate: float) -> None:
    _, shape, statistics = calibrated("llama")
    with pytest.raises(InputError, match=r"must be in \[0, 1\)"):
        choose(statistics, shape, rate)


def test_rates_beyond_the_units_are_refused() -> None:
    _, shape, statistics = calibrated("llama")
    with pytest.raises(InputError, match="cutting attention units reaches at most 0"):
        choose(statistics, shape, 0.9, "attention")
    with pytest.raises(InputError, match="'heads': must be one of mixed, mlp, attention, blocks"):
        choose(statistics, shape, 0.3, "heads")


@pytest.mark.parametrize("units", ["mixed", "mlp", "attention", "blocks"])
def test_cost_curves_are_what_the_planner_wants(units: str) -> None:
    for name in NAMES:
        _, shape, statistics = calibrated(name)
        reach = sum(step.parameters for step in removal_order(statistics, shape, units))
        limit = min(0.6, reach / shape.block_parameters)
        curve = cost_curve(statistics, shape, units, max_pruning=limit)
        rates, costs = zip(*curve, strict=True)
        assert curve[0] == (0.0, 0.0)
        assert rates[-1] == pytest.approx(limit)
        slopes = [
            (b - a) / (s - r)
            for r, s, a, b in zip(rates, rates[1:], costs, costs[1:], strict=False)
        ]
        assert all(slope >= 0 for slope in slopes)
        assert all(b >= a - 1e-9 for a, b in itertools.pairwise(slopes))
        assert all(0 <= cost <= rate + 1e-12 for rate, cost in curve)


def test_cost_is_the_share_of_what_the_model_knows() -> None:
    _, shape, statistics = calibrated("llama")
    everything = sum(float(s.harm[0]) for s in statistics.mlp + statistics.attention)
    guessing = math.log(shape.vocab)

    def costs(loss: float) -> np.ndarray:
        known = replace(statistics, loss=loss)
        return np.array(cost_curve(known, shape, "mixed", max_pruning=0.3))[:, 1]

    of_everything = costs(guessing - 2 * everything)
    removed = sum(step.harm for step in removal_order(statistics, shape, "mixed"))
    assert 0 < of_everything[-1] < removed / everything
    np.testing.assert_allclose(costs(guessing - everything / 2), 2 * of_everything)
    nothing_known = costs(guessing + 1.0)
    assert nothing_known[-1] == pytest.approx(0.3)
    np.testing.assert_allclose(nothing_known / nothing_known[-1], of_everything / of_everything[-1])


def with_slopes(slopes: dict[str, list[float]]) -> tuple[Statistics, ModelShape]:
    """Statistics whose harm rises evenly, by so much a parameter in each block's sublayers."""
    _, shape, statistics = calibrated("llama")
    made = {}
    for unit, kind in (("mlp", "mlp"), ("group", "attention")):
        made[kind] = tuple(
            replace(one, harm=slope * shape.unit_parameters[unit] * torch.arange(size, -1, -1.0))
            for one, slope in zip(getattr(statistics, kind), slopes[unit], strict=True)
            for size in (len(one.harm) - 1,)
        )
    return replace(statistics, **made), shape


@pytest.mark.parametrize(("worst", "before_the_groups"), [(5.0, True), (9.0, False)])
def test_a_sublayers_harm_is_drawn_half_way_to_the_median(
    worst: float, before_the_groups: bool
) -> None:
    """The median of the MLPs is 2: 5 counts as 3.5 and 9 as 5.5; the groups as their own 4."""
    statistics, shape = with_slopes({"mlp": [1.0, 2.0, worst], "group": [4.0] * 3})
    assert shape.blocks == 3
    steps = removal_order(statistics, shape, "mixed")
    first_group = next(i for i, step in enumerate(steps) if step.unit == "group")
    of_the_worst = [i for i, step in enumerate(steps) if (step.unit, step.block) == ("mlp", 2)]
    assert (max(of_the_worst) < first_group) == before_the_groups
    assert (min(of_the_worst) < first_group) == before_the_groups


def test_cost_curve_beyond_the_units_is_refused() -> None:
    _, shape, statistics = calibrated("llama")
    with pytest.raises(InputError, match="cutting attention units reaches at most 0"):
        cost_curve(statistics, shape, "attention", max_pruning=0.6)


def test_cost_curve_of_a_client_that_may_not_prune() -> None:
    _, shape, statistics = calibrated("llama")
    assert cost_curve(statistics, shape, max_pruning=0.0)[0] == (0.0, 0.0)


def test_a_block_is_replaced_by_the_one_before_it() -> None:
    model, shape, statistics = calibrated("llama")
    batch = text_batch(rows=16, length=16)
    structure = choose(statistics, shape, 1 / 3, "blocks")
    (gone,) = [block for block in range(shape.blocks) if structure.dropped(block)]
    assert gone > 0
    assert statistics.blocks[gone].replaced_harm < statistics.blocks[gone].harm
    with torch.no_grad():
        full = label_logits(model, batch)
        errors = [
            float((label_logits(cut(model, shape, structure, s), batch) - full).square().mean())
            for s in (statistics, None)
        ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("name", ["llama", "granite", "smollm3", "gemma", "gpt2"])
def test_a_stand_in_changes_the_stream_by_the_same_mean(name: str) -> None:
    """Also where outputs are multiplied before they are added to the stream (Granite)."""
    model, shape, statistics = calibrated(name)
    batch, full = text_batch(rows=16, length=16), whole(shape)
    gone = shape.blocks - 1
    structure = Structure((*full.channels[:gone], ()), (*full.groups[:gone], ()))
    assert statistics.blocks[gone].replacement.shape[1] > 0
    means = []
    for which, block in ((model, gone), (cut(model, shape, structure, statistics), gone - 1)):
        seen: list[torch.Tensor] = []
        handle = blocks_of(which, shape)[block].register_forward_hook(
            lambda _, __, output, seen=seen: seen.append(output)
        )
        with torch.no_grad():
            which(input_ids=batch.input_ids)
        handle.remove()
        means.append(seen[0][batch.attention_mask.bool()].mean(0))
    torch.testing.assert_close(*means, atol=2e-3, rtol=2e-3)


def test_stand_ins_can_be_left_out() -> None:
    model = small_model("llama")
    shape = shape_of(model)
    statistics = calibrate(model, shape, [text_batch()], stand_ins=False)
    assert all(block.replacement.shape[1] == 0 for block in statistics.blocks)
    assert all(block.harm == block.replaced_harm for block in statistics.blocks)
    structure = choose(statistics, shape, 1 / 3, "blocks")
    ids = text_batch().input_ids
    with torch.no_grad():
        plain, refitted = (
            cut(model, shape, structure, s)(input_ids=ids).logits for s in (None, statistics)
        )
    assert torch.equal(plain, refitted)


def test_post_norm_blocks_are_not_replaced() -> None:
    for name in ("gemma2", "gemma3", "olmo2", "opt-350m"):
        _, _, statistics = calibrated(name)
        assert all(block.replacement.shape[1] == 0 for block in statistics.blocks)
