"""Modes in the problem file, subsets of the knobs, the floor, and what is refused."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from airtune.errors import InputError
from airtune.planning import (
    METHODS,
    ClientMode,
    Method,
    plan,
    plan_to_json,
    problem_from_json,
    problem_to_json,
)
from airtune.planning.floor import (
    check_floor,
    contributions,
    first_queues,
    most_contributed,
    next_queues,
    weighed,
)
from airtune.planning.knobs import KNOBS, Setting, check_knobs, restricted
from airtune.planning.methods import better_than
from airtune.planning.mode_plans import keeps_budgets
from airtune.planning.optimum.fixed_bands import at_bands
from mode_oracles import mode_problem
from oracles import random_problem

TOLERANCE = 1e-6


def document() -> dict[str, Any]:
    costs = {"compute_fixed_s": 0.5, "payload_fixed_bits": 1e5}
    full = {"name": "full", "cost": 0.0, "compute_full_s": 9.0, "payload_full_bits": 1e7, **costs}
    half = {"name": "half", "cost": 0.4, "compute_full_s": 4.0, "payload_full_bits": 1e6, **costs}
    client = {
        "weight": 1.0, "snr_hz": 1e8, "downlink_s": 0.1, "min_pruning": 0.0, "max_pruning": 0.7,
        "compute_power_w": 10.0, "transmit_power_w": 1.0, "modes": [full, half],
    }  # fmt: skip
    absent = {"absent_cost": 1.0, "energy_budget_j": 60.0}
    return {
        "bandwidth_hz": 2e6,
        "kappa": 0.8,
        "clients": [{"name": "a", **deepcopy(client)}, {"name": "b", **client, **absent}],
    }


def test_a_problem_with_modes_goes_through_a_file_unchanged() -> None:
    problem = problem_from_json(document())
    again = problem_from_json(problem_to_json(problem))
    assert again.modes == problem.modes
    made, same = plan(problem), plan(again)
    assert same.objective_s == made.objective_s
    answer = plan_to_json(made)["clients"]
    assert {client["mode"] for client in answer} <= {"full", "half", None}
    for client in answer:
        spent = 10 * client["compute_s"] + client["upload_s"]
        assert client["energy_j"] == pytest.approx(spent)
    assert answer[1]["energy_j"] <= 60 * (1 + 1e-9)


def test_who_sits_out_has_no_mode_no_band_and_no_pruning() -> None:
    changed = document()
    changed["clients"][1]["snr_hz"] = 200.0
    made = plan_to_json(plan(problem_from_json(changed)))["clients"][1]
    assert made["mode"] is None
    assert [made[key] for key in ("pruning", "bandwidth_hz", "total_s", "energy_j")] == [0.0] * 4


REFUSED = [
    ({"cost": 1.2}, r"client 'b': mode 'half': cost 1\.2 is not allowed; allowed: .* 0 to 1"),
    ({"cost": -0.1}, r"client 'b': mode 'half': cost -0\.1 is not allowed"),
    ({"cost": "low"}, r"client 'b': mode 'half': cost 'low' is not allowed; allowed: a number"),
    ({"name": "full"}, r"client 'b': modes: the name 'full' appears twice"),
    ({"name": 3}, r"client 'b': modes\[1\]: name 3 is not allowed"),
    ({"compute_full_s": float("nan")}, r"client 'b': mode 'half': compute_full_s nan"),
    ({"max_pruning": 1.5}, r"client 'b': mode 'half': max_pruning 1\.5 is not allowed"),
    ({"speed": 1.0}, r"client 'b': mode 'half': unknown key 'speed'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_refusals_name_client_mode_and_field(changes: dict[str, Any], message: str) -> None:
    changed = document()
    mode = changed["clients"][1]["modes"][1]
    changed["clients"][1]["modes"][1] = {**mode, **changes}
    with pytest.raises(InputError, match=message) as caught:
        problem_from_json(changed)
    assert "\n" not in str(caught.value)


def test_a_client_whose_modes_all_fail_is_refused_unless_it_may_sit_out() -> None:
    changed = document()
    changed["clients"][0]["energy_budget_j"] = 1e-3
    with pytest.raises(InputError, match=r"'a': modes: none fits \(mode 'full': energy_budget_j"):
        problem_from_json(changed)
    changed["clients"][0]["absent_cost"] = 0.9
    assert plan(problem_from_json(changed)).modes[0] is None  # type: ignore[index]
    for mode in changed["clients"][1]["modes"]:
        mode["min_pruning"] = 0.8
    del changed["clients"][1]["absent_cost"]
    with pytest.raises(InputError, match=r"'b': .*mode 'half': min_pruning is above max_pruning"):
        problem_from_json(changed)
    changed = document()
    changed["clients"][0]["modes"] = []
    with pytest.raises(InputError, match=r"client 'a': modes is empty"):
        problem_from_json(changed)
    changed["clients"][0]["modes"] = "all"
    with pytest.raises(InputError, match=r"client 'a': modes 'all' is not allowed"):
        problem_from_json(changed)
    changed = document()
    changed["clients"][1]["absent_cost"] = 1.5
    with pytest.raises(InputError, match=r"client 'b': absent_cost 1\.5 is not allowed"):
        problem_from_json(changed)
    lossy = document()
    for mode in lossy["clients"][0]["modes"]:
        mode["cost"] = 0.9
    with pytest.raises(InputError, match=r"kappa: .*kappa·Q"):
        problem_from_json({**lossy, "kappa": 3.0})


def test_a_method_that_does_not_plan_energy_says_so() -> None:
    changed = document()
    changed["clients"][1]["energy_budget_j"] = 40.0
    problem = problem_from_json(changed)
    with pytest.raises(InputError, match=r"'b': energy_budget_j 40\.0 is not kept by .*'none'"):
        plan(problem, "none", bound=False)
    assert plan(problem, "bcd-knobs").gap >= 0


def settings() -> dict[str, Setting]:
    return {
        f"{steps}-{rank}-{bits}": Setting(steps, rank, bits)
        for steps in (4, 2)
        for rank in (8, 2)
        for bits in (16, 4)
    }


def with_settings(seed: int) -> Any:
    problem = mode_problem(np.random.default_rng(seed), 3, 2, absent=0.0)
    modes = tuple(
        tuple(
            ClientMode(
                name,
                cost=1 - one.steps / 4 * (0.98 if one.rank == 2 else 1) * (0.9 + one.bits / 160),
                compute_fixed_s=float(problem.compute_fixed_s[k]) * one.steps / 4,
                compute_full_s=float(problem.compute_full_s[k]) * one.steps / 4,
                payload_fixed_bits=float(problem.payload_fixed_bits[k]) * one.rank * one.bits / 128,
                payload_full_bits=float(problem.payload_full_bits[k]) * one.rank * one.bits / 128,
            )
            for name, one in settings().items()
        )
        for k in range(3)
    )
    return replace(problem, modes=modes, absent_cost=np.ones(3), kappa=1.0)


def test_each_further_knob_can_only_help() -> None:
    for seed in range(3):
        problem = with_settings(seed)
        turned: list[str] = []
        last = np.inf
        for knob in KNOBS:
            made = plan(restricted(problem, turned, settings()))
            assert made.gap <= TOLERANCE
            assert made.objective_s <= last * (1 + 2 * TOLERANCE)
            last = made.objective_s
            names = [mode for mode in made.modes or () if mode is not None]
            for index, name in ((0, "steps"), (1, "rank"), (2, "bits")):
                if name not in turned:
                    assert {mode.split("-")[index] for mode in names} == {("4", "8", "16")[index]}
            if "absence" not in turned:
                assert len(names) == 3
            if "pruning" not in turned:
                assert made.pruning == pytest.approx(problem.min_pruning)
            if "bandwidth" not in turned:
                assert np.ptp(made.bandwidth_hz) == 0
            turned.append(knob)


def test_unknown_knobs_and_modes_are_refused() -> None:
    with pytest.raises(InputError, match=r"knobs: 'power' is unknown; allowed: bandwidth, pruning"):
        check_knobs(["bandwidth", "power"])
    problem = with_settings(1)
    with pytest.raises(InputError, match=r"client 'c0': mode '4-8-16' has no setting"):
        restricted(problem, ["bits"], {})
    corner = tuple(m for m in (problem.modes or ())[0] or () if m.name in ("4-2-4", "2-8-16"))
    lacking = replace(problem, modes=(corner, *(problem.modes or ())[1:]))
    with pytest.raises(InputError, match=r"client 'c0': modes: none has steps 4, rank 8, bits 16"):
        restricted(lacking, ["bandwidth"], settings())


def test_the_queues_follow_their_rule_and_their_bound() -> None:
    queues = next_queues(np.array([0.0, 0.2, 1.0]), np.array([0.5, 0.0, 1.0]), 0.25)
    assert queues == pytest.approx([0.0, 0.45, 0.25])
    first = first_queues(8, 0.25, np.random.default_rng(0))
    assert np.sort(first) == pytest.approx(0.25 * np.arange(8) / 8)
    rng = np.random.default_rng(1)
    queues, total = first_queues(4, 0.3, rng), np.zeros(4)
    start = queues
    for _ in range(50):
        contributed = rng.uniform(0, 1, 4) * (rng.random(4) < 0.4)
        queues, total = next_queues(queues, contributed, 0.3), total + contributed
    assert (total >= 0.3 * 50 - queues + start - 1e-9).all()


def test_the_queues_weigh_the_clients_and_a_plan_with_progress_stays() -> None:
    problem = replace(with_settings(0), kappa=0.4)
    queues = np.array([0.0, 0.5, 1.0])
    heavier = weighed(problem, queues)
    # κ·Q is κ·Σ w·(1 + Z)·ℓ, whatever the weights sum to.
    assert heavier.kappa * heavier.weight == pytest.approx(0.4 * problem.weight * (1 + queues))
    held = weighed(problem, np.full(3, 1e4))
    least = float(held.weight @ (1 - most_contributed(held)))
    assert held.kappa * least < 1
    assert np.isfinite(plan(held).objective_s)


def test_a_floor_brings_back_who_was_left_out() -> None:
    problem = with_settings(2)
    modes = problem.modes or ()
    late = tuple(replace(m, compute_full_s=100 * m.compute_full_s + 100) for m in modes[2] or ())
    slow = replace(problem, modes=(*modes[:2], late), weight=[0.3, 0.3, 0.4])
    share, rounds = 0.25, 16
    check_floor(slow, share)
    alone = contributions(slow, plan(slow))
    queues, total = first_queues(3, share, np.random.default_rng(0)), np.zeros(3)
    for _ in range(rounds):
        made = plan(weighed(slow, queues), tolerance=1e-4)
        total += contributions(slow, made)
        queues = next_queues(queues, contributions(slow, made), share)
    mean = total / rounds
    assert (mean >= share - queues / rounds - 1e-9).all()
    # The plan without a floor leaves out the slow one.
    assert alone[2] == 0
    assert mean[2] > 0.05


def test_a_floor_that_cannot_be_met_is_refused() -> None:
    problem = with_settings(0)
    with pytest.raises(InputError, match=r"floor: 1\.5 is not allowed; allowed: a share"):
        check_floor(problem, 1.5)
    modes = problem.modes or ()
    lossy = replace(
        problem, modes=(tuple(replace(m, cost=0.9) for m in modes[0] or ()), *modes[1:])
    )
    assert most_contributed(lossy)[0] == pytest.approx(0.1, abs=0.05)
    with pytest.raises(
        InputError, match=r"client 'c0': floor 0\.25 cannot be met: in mode '4-8-16'"
    ):
        check_floor(lossy, 0.25)


def test_the_descent_plans_its_bands_and_keeps_the_budgets() -> None:
    better = 0
    for seed in range(6):
        problem = mode_problem(np.random.default_rng(70 + seed), 3, 3, budgets=1.0)
        best = plan(problem)
        try:
            made = plan(problem, "bcd-knobs", bound=False)
        except InputError:  # no plan at equal bands keeps the budgets
            continue
        assert keeps_budgets(problem, made)
        assert made.objective_s >= best.lower_bound_s * (1 - 1e-9)
        equal, _ = at_bands(problem, np.full(3, problem.bandwidth_hz / 3))
        if equal is not None:
            assert made.objective_s <= equal.objective_s * (1 + TOLERANCE)
            better += made.objective_s < 0.999 * equal.objective_s
    assert better >= 2


def test_what_is_no_better_than_a_known_plan_is_refuted() -> None:
    for seed in range(3):
        problem = mode_problem(np.random.default_rng(80 + seed), 3, 4)
        best = plan(problem)
        truth = best.objective_s
        worse = replace(best, objective_s=1.02 * truth)
        found, bound = better_than(problem, worse)
        assert found is not None
        assert found.objective_s == pytest.approx(truth, rel=2 * TOLERANCE)
        assert bound <= truth * (1 + TOLERANCE)
        assert bound >= found.objective_s * (1 - TOLERANCE)
        ahead = replace(best, objective_s=0.98 * truth)
        found, bound = better_than(problem, ahead)
        assert found is None
        assert ahead.objective_s * (1 - TOLERANCE) <= bound <= ahead.objective_s
        equal = replace(problem, equal_bands=True)
        assert better_than(equal, ahead)[0] is None


def half_pruned(problem: Any, tolerance: float, rng: np.random.Generator) -> tuple:
    shares = np.full(problem.clients, problem.bandwidth_hz / problem.clients)
    return 0.5 * (problem.min_pruning + problem.max_pruning), shares


def test_a_function_or_a_method_plans_as_a_name_does() -> None:
    problem = random_problem(np.random.default_rng(4), 4)
    made = plan(problem, half_pruned)
    assert made.method == "half_pruned"
    assert made.gap is not None
    assert made.gap >= 0
    assert made.pruning == pytest.approx(0.5 * (problem.min_pruning + problem.max_pruning))
    named = Method("prunes by half", "for a test", half_pruned)
    assert plan(problem, named).objective_s == made.objective_s
    by_name = plan(problem, METHODS["bandwidth-only"])
    assert by_name.method == "bandwidth-only"
    assert by_name.objective_s == plan(problem, "bandwidth-only").objective_s
    with pytest.raises(InputError, match="'too_wide': the bands sum to"):
        plan(problem, too_wide)
    with pytest.raises(InputError, match=r"method 3 is not allowed; allowed: exact, .* a function"):
        plan(problem, 3)  # type: ignore[arg-type]


def too_wide(problem: Any, tolerance: float, rng: np.random.Generator) -> tuple:
    return problem.min_pruning, np.full(problem.clients, problem.bandwidth_hz)
