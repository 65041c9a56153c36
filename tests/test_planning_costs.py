"""Costs of knobs, the floor's queues and assignments: by hand, and what is said of bad files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airtune.errors import InputError
from airtune.planning.assigning import assignments_of
from airtune.planning.broadcast import Link
from airtune.planning.costs import KnobCosts, Measured, Pair, _convex, read_costs, shipped_costs
from airtune.planning.floor import first_queues, next_queues
from airtune.planning.inputs import situation_of_scenario
from airtune.planning.round_plan import plan_round
from airtune.scenario import load_scenario
from assigned import mode


def costs(**changes: Any) -> KnobCosts:
    def of(values: dict) -> dict:
        return {key: Measured(cost=value) for key, value in values.items()}

    made = {
        "rank": of({8: 0.0, 2: 0.2}),
        "bits": of({16: 0.0, 4: 0.4}),
        "steps": of({1.0: 0.0, 0.5: 0.3}),
        "absent": Measured(cost=0.9, spread=0.01),
        "pruning": of({0.5: 0.1}),
        "provenance": {"made": "for a test"},
    }
    return KnobCosts(**(made | changes))


WHOLE = mode(8, steps=4, bits=16)


@pytest.mark.parametrize(
    ("changes", "cost"),
    [
        ({}, 0.0),
        ({"rank": 2}, 0.2),
        ({"rank": 4}, 0.1),  # half way in octaves
        ({"rank": 1}, 0.2),
        ({"bits_per_value": 8}, 0.2),
        ({"bits_per_value": 2}, 0.4),
        ({"local_steps": 2}, 0.3),
        ({"local_steps": 3}, 0.15),
        ({"local_steps": 1}, 0.3),
        ({"rank": 2, "bits_per_value": 4, "local_steps": 2}, 1 - 0.8 * 0.6 * 0.7),
    ],
)
def test_a_modes_cost_is_what_its_knobs_leave_multiplied(changes: dict, cost: float) -> None:
    assert costs().of_mode(replace(WHOLE, **changes), WHOLE) == pytest.approx(cost)


def test_a_cost_is_relative_to_the_clients_own_whole_work() -> None:
    own = replace(WHOLE, rank=4, bits_per_value=8)
    assert costs().of_mode(own, own) == 0
    lower = replace(own, rank=2, bits_per_value=4)
    assert costs().of_mode(lower, own) == pytest.approx(1 - (0.8 / 0.9) * (0.6 / 0.8))
    # A value above the client's own is no gain, and where nothing is left nothing can be lost.
    assert costs().of_mode(WHOLE, own) == 0
    nothing = costs(rank={8: Measured(cost=1.0)})
    assert nothing.of_mode(replace(WHOLE, rank=4), WHOLE) == 0
    little = costs(rank={8: Measured(cost=0.5), 2: Measured(cost=0.75)})
    assert little.of_mode(replace(WHOLE, rank=2), WHOLE) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("points", "end", "curve"),
    [
        ([(0, 0)], 0.8, [(0, 0), (0.8, 0)]),
        ([(0, 0)], 0.0, [(0, 0), (1e-3, 0)]),
        ([(0, 0), (0.5, 0.1)], 0.5, [(0, 0), (0.5, 0.1)]),
        ([(0, 0), (0.5, 0.1)], 0.75, [(0, 0), (0.5, 0.1), (0.75, 0.15)]),
        ([(0, 0), (0.25, 0.2), (0.5, 0.3)], 0.5, [(0, 0), (0.5, 0.3)]),  # above the hull
        ([(0, 0), (0.25, 0.1), (0.5, 0.2)], 0.5, [(0, 0), (0.5, 0.2)]),  # on it
        (
            [(0, 0), (0.25, 0.1), (0.5, 0.3)],
            1.0,
            [(0, 0), (0.25, 0.1), (0.5, 0.3), (1.0, 0.7)],
        ),
        ([(0, 0), (0.25, -0.1), (0.5, 0.3)], 0.5, [(0, 0), (0.25, 0), (0.5, 0.3)]),
    ],
)
def test_the_hull_of_measured_points_goes_on_with_its_last_slope(
    points: list, end: float, curve: list
) -> None:
    found = _convex(points, end)
    assert len(found) == len(curve)
    np.testing.assert_allclose(found, curve, atol=1e-12)


def test_the_pruning_curve_begins_at_nothing() -> None:
    assert costs().pruning_curve(0.5) == ((0.0, 0.0), (0.5, 0.1))


def test_a_costs_file_comes_back(tmp_path: Path) -> None:
    pair = Pair(knobs=("rank", "bits"), measured=0.5, product=0.52)
    made = costs(pairs=(pair,))
    path = tmp_path / "costs.json"
    path.write_text("\ufeff" + made.model_dump_json(), encoding="utf-8")
    assert read_costs(path) == read_costs(str(path)) == made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "{path}: not JSON: Expecting property name"),
        ("[1]", "{path}: format = None: 'airtune-costs/1' is what this version reads"),
        (
            '{"format": "airtune-costs/9"}',
            "{path}: format = 'airtune-costs/9': 'airtune-costs/1' is what this version reads",
        ),
        (
            costs().model_dump_json().replace('"cost":0.3', '"cost":1.5'),
            "{path}: steps.0.5.cost: input should be less than or equal to 1",
        ),
        ('{"format": "airtune-costs/1"}', "{path}: rank: field required"),
    ],
)
def test_a_file_that_is_none_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_costs(path)
    assert str(caught.value).startswith(said.format(path=path))
    assert caught.value.__cause__ is None


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    nowhere = tmp_path / "no.json"
    with pytest.raises(InputError) as caught:
        read_costs(nowhere)
    assert str(caught.value) == f"cannot read costs file '{nowhere}': No such file or directory"
    nowhere.write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError) as caught:
        read_costs(nowhere)
    assert str(caught.value) == f"cannot read costs file '{nowhere}': not UTF-8 text"


def test_queues_start_apart_and_follow_their_rule() -> None:
    queues = first_queues(4, 0.8, np.random.default_rng(1))
    np.testing.assert_allclose(sorted(queues), [0.0, 0.2, 0.4, 0.6])
    assert first_queues(0, 0.8, np.random.default_rng(1)).size == 0
    after = next_queues(np.array([0.0, 1.0, 0.5]), np.array([1.0, 0.25, 0.0]), 0.5)
    np.testing.assert_allclose(after, [0.0, 1.25, 1.0])


def test_an_assignment_is_the_plans_row_of_that_client() -> None:
    scenario = load_scenario("tiny", ["planning.kappa=0.3"])
    at = situation_of_scenario(scenario)
    made = plan_round(scenario, at)
    modes = [None, *made.modes[1:]]
    link: Link = at.link
    told = assignments_of(made.plan, modes, link, [7, 5, 3, 1])
    assert told[0] is None
    listens = np.array([False, True, True, True])
    slowest = float(link.air.downlink_rate_bps[1:].min())
    assert link.rate_bps(listens) == slowest
    assert link.bits(listens) == link.needed_bits[1:].max()
    assert link.needed_s(listens)[0] == 0
    for k, client in ((1, 5), (2, 3), (3, 1)):
        one = told[k]
        assert one is not None
        assert (one.client, one.mode) == (client, made.modes[k])
        assert one.pruning == made.plan.pruning[k]
        assert one.bandwidth_hz == made.plan.bandwidth_hz[k]
        assert one.rate_bps == made.plan.rate_bps[k]
        assert one.downlink_rate_bps == slowest
        assert one.downlink_bits == link.needed_bits[k]
        assert one.planned is not None
        assert one.planned.downlink_s == pytest.approx(link.needed_bits[k] / slowest)
        assert one.planned.compute_s == made.plan.compute_s[k]
        assert one.planned.upload_s == made.plan.upload_s[k]
        assert one.planned.round_s == made.plan.round_latency_s
    with pytest.raises(ValueError, match="zip"):
        assignments_of(made.plan, modes, link, [1, 2, 3])


def test_the_shipped_costs_are_read_and_say_where_they_are_from() -> None:
    costs = shipped_costs()
    assert costs.provenance["model"] == "smollm2-135m-instruct"
    assert costs.provenance["seeds"] == [0, 1]
    ranks = [costs.rank[rank].cost for rank in (8, 4, 2, 1)]
    assert ranks == sorted(ranks)
    assert ranks[0] == 0
    assert max(one.cost for one in costs.bits.values()) < 0.05
    for pair in costs.pairs:
        assert pair.measured == pytest.approx(pair.product, abs=0.03)


@pytest.mark.parametrize("seed", range(30))
def test_the_curve_is_the_lower_hull_of_what_was_measured(seed: int) -> None:
    rng = np.random.default_rng(seed)
    xs = np.concatenate([[0.0], np.sort(rng.uniform(0.1, 0.9, 5))])
    ys = np.concatenate([[0.0], rng.uniform(0.0, 1.0, 5)])
    curve = np.array(_convex(list(zip(xs.tolist(), ys.tolist(), strict=True)), float(xs[-1])))
    # By hand: between any two measured points, none lies below the line that joins them.
    for x in np.linspace(0.0, float(xs[-1]), 50):
        lowest = min(
            float(np.interp(x, [xs[i], xs[j]], [ys[i], ys[j]]))
            for i in range(6)
            for j in range(i + 1, 6)
            if xs[i] <= x <= xs[j]
        )
        assert float(np.interp(x, curve[:, 0], curve[:, 1])) == pytest.approx(lowest, abs=1e-12)
