from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.channel.rate import band_of_rate, rate_of_band, slope_of_snr, snr_of_share
from airtune.errors import InputError
from airtune.planning import METHODS, plan, plan_to_json, problem_from_json, problem_to_json
from oracles import random_curve, random_problem


def document() -> dict[str, Any]:
    """The example of the published format."""
    return {
        "bandwidth_hz": 2e7,
        "kappa": 0.6,
        "clients": [
            {
                "name": name,
                "weight": 0.1,
                "snr_hz": 1.2e8,
                "downlink_s": 0.0,
                "compute_fixed_s": 1.0,
                "compute_full_s": 9.0,
                "payload_fixed_bits": 1e5,
                "payload_full_bits": 1.7e8,
                "min_pruning": 0.0,
                "max_pruning": 0.7,
                "pruning_cost": [[0.0, 0.0], [0.3, 0.05], [0.7, 0.4]],
            }
            for name in ("c0", "c1")
        ],
    }


CLIENT_REFUSALS = [
    ("weight", -1.0, r"client 'c1': weight -1.0 is not allowed"),
    ("snr_hz", float("nan"), r"client 'c1': snr_hz nan is not allowed"),
    ("downlink_s", float("inf"), r"client 'c1': downlink_s inf is not allowed"),
    ("compute_fixed_s", "1", r"client 'c1': compute_fixed_s '1' is not allowed; allowed: a number"),
    ("compute_full_s", True, r"client 'c1': compute_full_s True is not allowed"),
    ("compute_full_s", 1e16, r"client 'c1': compute_full_s 1e\+16 is not allowed"),
    ("payload_fixed_bits", None, r"client 'c1': payload_fixed_bits None is not allowed"),
    ("payload_full_bits", [1], r"client 'c1': payload_full_bits \[1\] is not allowed"),
    ("payload_full_bits", 10**400, r"client 'c1': payload_full_bits is too large"),
    ("min_pruning", 0.8, r"client 'c1': min_pruning 0.8 is above max_pruning 0.7"),
    ("max_pruning", 1.2, r"client 'c1': max_pruning 1.2 is not allowed; allowed: 0 to 1"),
    ("max_pruning", 0.9, r"client 'c1': pruning_cost ends at pruning 0.7; it must reach"),
    ("snr_hz", 0.0, r"client 'c1': snr_hz 0.0 is not allowed; .*cannot be reached"),
    ("snr_hz", 1e-12, r"client 'c1': snr_hz 1e-12 is not allowed; .*cannot be reached"),
    ("max_spectral_efficiency", 0.0, r"client 'c1': max_spectral_efficiency 0.0 is not allowed"),
    ("name", "c0", r"the name 'c0' appears twice"),
    ("name", 7, r"clients\[1\]: name 7 is not allowed"),
    ("speed", 1.0, r"client 'c1': unknown key 'speed'; allowed: name, weight"),
    ("pruning_cost", [[0, 0], [0.3, 0.3], [0.7, 0.4]], r"client 'c1': pruning_cost is not convex"),
    ("pruning_cost", [[0, 0], [0.3, 0.1], [0.7, 0.05]], r"pruning_cost: the costs .*decrease"),
    ("pruning_cost", [[0, 0.1], [0.7, 0.4]], r"'c1': pruning_cost starts at \[0.0, 0.1\]"),
    ("pruning_cost", [[0, 0], [0.4, 0.1], [0.4, 0.2], [0.7, 1]], r"rates .* do not increase"),
    ("pruning_cost", [[0, 0], [0.7]], r"client 'c1': pruning_cost is not allowed"),
    ("pruning_cost", [], r"client 'c1': pruning_cost is not allowed"),
    ("pruning_cost", "steep", r"client 'c1': pruning_cost is not allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "message"), CLIENT_REFUSALS)
def test_refusals_name_the_client_and_the_field(field: str, value: Any, message: str) -> None:
    changed = document()
    changed["clients"][1][field] = value
    with pytest.raises(InputError, match=message) as caught:
        problem_from_json(changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "field", [key for key in document()["clients"][0] if key != "pruning_cost"]
)
def test_a_missing_field_is_named(field: str) -> None:
    changed = document()
    del changed["clients"][1][field]
    with pytest.raises(InputError, match=field):
        problem_from_json(changed)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "bandwidth_hz",
            0.0,
            r"bandwidth_hz: 0.0 is not allowed; allowed: a finite",
        ),
        ("bandwidth_hz", "wide", r"bandwidth_hz 'wide' is not allowed; allowed: a number"),
        ("kappa", -0.1, r"kappa: -0.1 is not allowed"),
        ("clients", [], r"clients: the list is empty"),
        ("clients", {}, r"clients: \{\} is not allowed; allowed: a list"),
        ("clients", [3], r"clients\[0\]: 3 is not allowed; allowed: an object"),
        ("max_pruning_loss", float("nan"), r"max_pruning_loss: nan is not allowed"),
        ("band", 1, r"planning problem: unknown key 'band'"),
    ],
)
def test_refusals_of_the_problem_itself(key: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        problem_from_json({**document(), key: value})


def test_refuses_weights_without_a_sum_and_an_impossible_loss() -> None:
    changed = document()
    for client in changed["clients"]:
        client["weight"] = 0.0
    with pytest.raises(InputError, match=r"weights sum to 0\.0; allowed: a positive sum"):
        problem_from_json(changed)
    changed = document()
    for client in changed["clients"]:
        client["min_pruning"] = 0.3
    with pytest.raises(InputError, match=r"max_pruning_loss: 0.01 is below 0.05"):
        problem_from_json({**changed, "max_pruning_loss": 0.01})
    with pytest.raises(InputError, match=r"kappa·Q can reach 1"):
        problem_from_json({**document(), "kappa": 3.0, "max_pruning_loss": 0.39})


def test_text_that_is_no_json_names_the_place() -> None:
    with pytest.raises(InputError, match="line 2, column 1: not JSON"):
        problem_from_json('{"kappa": 1,\n]')
    with pytest.raises(InputError, match="a planning problem is a JSON object"):
        problem_from_json("[1, 2]")


def test_unknown_method_tolerance_and_blocks_are_refused() -> None:
    problem = problem_from_json(document())
    with pytest.raises(InputError, match=r"method 'magic' is unknown; allowed: exact, bcd"):
        plan(problem, "magic")
    with pytest.raises(InputError, match="tolerance 0 is not allowed"):
        plan(problem, tolerance=0)
    with pytest.raises(InputError, match="blocks: 5 needs block_hz"):
        plan(problem, blocks=5)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_json_round_trip(seed: int) -> None:
    problem = random_problem(np.random.default_rng(seed))
    text = json.dumps(problem_to_json(problem))
    again = problem_from_json(text)
    # Weights are normalised once more; everything else comes back to the bit.
    assert json.loads(json.dumps(problem_to_json(again))).keys() == json.loads(text).keys()
    assert np.array_equal(again.snr_hz, problem.snr_hz)
    assert again.weight == pytest.approx(problem.weight, rel=1e-15)
    assert np.array_equal(again.efficiency, problem.efficiency)
    rate = np.random.default_rng(seed).uniform(problem.min_pruning, problem.max_pruning)
    assert np.array_equal(again.cost(rate), problem.cost(rate))


def test_the_answer_has_the_published_fields() -> None:
    made = plan_to_json(plan(problem_from_json(document())))
    assert list(made) == [
        "method", "objective_s", "lower_bound_s", "gap", "round_latency_s", "pruning_loss",
        "rounds_factor", "solve_s", "clients",
    ]  # fmt: skip
    assert list(made["clients"][0]) == [
        "name", "pruning", "bandwidth_hz", "rate_bps", "downlink_s", "compute_s", "upload_s",
        "total_s",
    ]  # fmt: skip
    assert json.loads(json.dumps(made)) == made
    assert "blocks" in plan_to_json(plan(problem_from_json(document()), block_hz=1e6))["clients"][0]


def test_weights_are_normalised_and_arrays_are_frozen() -> None:
    problem = problem_from_json(document())
    assert problem.weight.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="read-only"):
        problem.snr_hz[0] = 1.0


def test_costs_interpolate_the_curves() -> None:
    rng = np.random.default_rng(6)
    curves = tuple(random_curve(rng) if k % 3 else None for k in range(9))
    problem = random_problem(rng, 9, pruning_cost=curves)
    rate = np.random.default_rng(1).uniform(0, problem.max_pruning)
    assert problem.pruning_cost is not None
    expected = [
        rate[k] if curve is None else np.interp(rate[k], curve[:, 0], curve[:, 1])
        for k, curve in enumerate(problem.pruning_cost)
    ]
    assert problem.cost(rate) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_the_rate_and_its_inverse_over_twenty_decades() -> None:
    share = np.concatenate([np.logspace(-40, -0.01, 500), 1 - np.logspace(-7, -0.3, 200)])
    snr = snr_of_share(share)
    assert np.log1p(snr) / snr == pytest.approx(share, rel=1e-14)
    assert snr_of_share(np.array([0.0, 1.0, 2.0])).tolist() == [np.inf, 0.0, 0.0]
    rng = np.random.default_rng(0)
    snr_hz, band = 10 ** rng.uniform(2, 18, 2000), 10 ** rng.uniform(-3, 9, 2000)
    cap = np.where(rng.random(2000) < 0.5, rng.uniform(0.1, 10, 2000), np.inf)
    rate = rate_of_band(band, snr_hz, cap)
    assert (rate <= snr_hz / np.log(2) * (1 + 1e-15)).all()
    back = band_of_rate(rate, snr_hz, cap)
    # Where the rate has come close to its limit s/ln 2 the band is not determined by it.
    firm = band < 1e3 * snr_hz
    assert back[firm] == pytest.approx(band[firm], rel=1e-9)
    assert rate_of_band(np.array([0.0]), np.array([1e6]), np.array([np.inf]))[0] == 0.0
    assert band_of_rate(np.array([0.0, 1e9]), np.array([1e6]), np.array([np.inf])).tolist() == [
        0.0, np.inf,
    ]  # fmt: skip


def test_the_slope_does_not_cancel() -> None:
    snr = np.logspace(-12, 12, 400)
    exact = [
        float(sum((-1) ** n * (n - 1) / n * z**n for n in range(2, 60))) if z < 0.3 else None
        for z in snr
    ]
    ours = slope_of_snr(snr)
    for z, one, truth in zip(snr, ours, exact, strict=True):
        truth = np.log1p(z) - z / (1 + z) if truth is None else truth
        assert one == pytest.approx(truth, rel=1e-12)


def test_every_method_says_what_it_does() -> None:
    assert list(METHODS)[:2] == ["exact", "bcd"]
    for name, method in METHODS.items():
        assert re.fullmatch(r"[a-z-]+", name)
        assert method.description
        assert method.source
