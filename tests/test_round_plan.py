"""A round planned over the knobs that a scenario turns, against every combination tried out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from airtune import planning
from airtune.assignment import Mode
from airtune.errors import InputError
from airtune.merging.rules import MERGING, check_deployable
from airtune.models.affine import affine_coefficients
from airtune.models.workload import full_sizes, payload_bits, training_flops
from airtune.planning.costs import KnobCosts
from airtune.planning.inputs import Situation, plan_of_round, situation_of_scenario
from airtune.planning.knobs import modes_offered, name_of
from airtune.planning.methods import better_than
from airtune.planning.participation import PARTICIPATION
from airtune.planning.round_plan import RoundPlan, plan_round
from airtune.scenario import ParticipationSection, Scenario, load_scenario
from pilot_costs import pilot_costs

SLOW = ["cell.uplink_bandwidth_hz=5e6", "cell.downlink_bandwidth_hz=2e4", "planning.kappa=0.8",
        "devices.1.utilisation=2e-5", "training.local_steps=2"]  # fmt: skip


def costs() -> KnobCosts:
    return pilot_costs(
        absent=0.9,
        rank={4: 0.0, 2: 0.03, 1: 0.1},
        steps={1.0: 0.0, 0.5: 0.35},
        pruning={0.3: 0.05, 0.6: 0.4},
    )


@pytest.fixture(scope="module")
def costs_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("costs") / "costs.json"
    path.write_text(costs().model_dump_json())
    return str(path)


def tiny(*settings: str) -> Scenario:
    return load_scenario("tiny", [*SLOW, *settings])


def planned(scenario: Scenario, round: int = 1) -> tuple[RoundPlan, Situation]:
    situation = situation_of_scenario(scenario, round)
    return plan_round(scenario, situation), situation


def objective(
    scenario: Scenario, at: Situation, modes: Sequence[Mode | None], losses: Sequence[float]
) -> float:
    """Return J of given modes without pruning, from the definitions, with the best bands."""
    here = np.array([mode is not None for mode in modes])
    listeners = np.flatnonzero(here)
    rate = float(at.link.air.downlink_rate_bps[here].min())
    fixed, bits = [], []
    for k in listeners:
        mode = modes[k]
        assert mode is not None
        count = affine_coefficients(
            at.shape, at.loads[k].steps, mode, max_pruning=scenario.pruning.max_pruning
        )
        sent = replace(mode, bits_per_value=16, bits_per_scale=0)
        wait = payload_bits(at.shape, full_sizes(at.shape), sent) / rate
        fixed.append(count.flops(0.0) / at.profiles[k].effective_flops + wait)
        bits.append(count.payload_bits(0.0))
    zero = np.zeros(len(listeners))
    asked = replace(
        at.problem.of_clients(listeners, kappa=0.0),
        downlink_s=zero,
        compute_fixed_s=np.array(fixed),
        compute_full_s=zero,
        payload_fixed_bits=np.array(bits),
        payload_full_bits=zero,
        max_pruning=zero,
    )
    latency = planning.plan(asked, "bandwidth-only", bound=False).round_latency_s
    loss = float(at.problem.weight @ np.array(losses))
    rest = 1.0 - scenario.planning.kappa * loss
    return latency / rest if rest > 1e-9 else np.inf


def best_of(scenario: Scenario, at: Situation, offers: Sequence[Sequence[tuple]]) -> float:
    return min(
        objective(scenario, at, [m for m, _ in choice], [loss for _, loss in choice])
        for choice in itertools.product(*offers)
        if any(mode is not None for mode, _ in choice)
    )


def test_every_rule_is_listed_with_a_source_and_is_a_choice_of_the_scenario() -> None:
    allowed = ParticipationSection.model_fields["rule"].annotation.__args__  # type: ignore[union-attr]
    assert tuple(PARTICIPATION) == allowed
    assert all(entry.description and entry.source for entry in PARTICIPATION.values())


@pytest.mark.parametrize("seed", [1, 2])
def test_partial_work_is_the_best_of_all_whole_steps(seed: int) -> None:
    scenario = tiny("participation.rule=partial", "planning.method=bandwidth-only", f"seed={seed}")
    made, at = planned(scenario)
    offers = []
    for load, mode in zip(at.loads, at.modes, strict=True):
        flops = [training_flops(at.shape, full_sizes(at.shape), s, mode) for s in load.steps]
        offers.append(
            [(replace(mode, local_steps=n), 1 - sum(flops[:n]) / sum(flops)) for n in (1, 2)]
        )
    assert made.plan.objective_s == pytest.approx(best_of(scenario, at, offers), rel=1e-5)
    assert made.plan.gap is not None
    assert made.plan.gap <= 1e-6
    assert len({mode.local_steps for mode in made.modes if mode is not None}) == 2


@pytest.mark.parametrize("price", [0.5, 1.0])
def test_a_deadline_is_the_best_of_all_who_may_sit_out(price: float) -> None:
    scenario = tiny("participation.rule=deadline", "planning.method=bandwidth-only",
                    f"participation.left_out_cost={price}")  # fmt: skip
    made, at = planned(scenario)
    offers = [[(mode, 0.0), (None, price)] for mode in at.modes]
    best = best_of(scenario, at, offers)
    assert made.plan.objective_s == pytest.approx(best, rel=1e-5)
    assert None in made.modes
    assert made.plan.lower_bound_s is not None
    assert made.plan.lower_bound_s <= best * (1 + 1e-9)


def test_ranks_bits_and_absence_together_are_the_best_of_all(costs_file: str) -> None:
    scenario = tiny('planning.knobs=["bandwidth","rank","bits","absence"]', "devices.0.count=1",
                    f"planning.costs={costs_file}", "planning.rank_values=[1]",
                    "planning.bits_values=[4]")  # fmt: skip
    made, at = planned(scenario)
    whole = at.modes[0]
    offers: list[list[tuple]] = []
    for _ in at.modes:
        # Absence beside the weakest work on offer: rank 1 and 4 bits.
        own: list[tuple] = [(None, 1 - (1 - 0.9) * 0.9 * 0.98)]
        for rank, bits in itertools.product((4, 1), (16, 4)):
            loss = 1 - (1 - {4: 0.0, 1: 0.1}[rank]) * (1 - {16: 0.0, 4: 0.02}[bits])
            scale = 32 if bits == 4 else 0
            mode = replace(whole, rank=rank, bits_per_value=bits, bits_per_scale=scale)
            own.append((mode, loss))
        offers.append(own)
    assert made.plan.objective_s == pytest.approx(best_of(scenario, at, offers), rel=1e-5)


def test_what_no_broadcast_is_shown_to_beat_bounds_the_plan(
    costs_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broadcast that is left before its optimum is known leaves its bound, and the tolerance."""
    asked: list[tuple] = []

    def left(problem, known, *, tolerance):
        asked.append((known, tolerance))
        if len(asked) == 1:
            return better_than(problem, known, tolerance=tolerance)
        return None, 0.7 * asked[1][0].objective_s

    monkeypatch.setattr("airtune.planning.round_plan.better_than", left)
    made, _ = planned(tiny("planning.knobs=all", f"planning.costs={costs_file}",
                           "planning.tolerance=1e-3"))  # fmt: skip
    assert len(asked) > 1
    assert {tolerance for _, tolerance in asked} == {1e-3}
    first = asked[1][0]
    assert {known.objective_s for known, _ in asked[1:]} == {first.objective_s}
    assert made.plan.objective_s <= first.objective_s
    assert made.plan.lower_bound_s == pytest.approx(0.7 * first.objective_s)
    assert made.plan.gap == pytest.approx(made.plan.objective_s / (0.7 * first.objective_s) - 1)


def test_the_gap_of_a_round_below_a_second_is_told(
    costs_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = tiny('planning.knobs=["rank"]', f"planning.costs={costs_file}",
                    "cell.uplink_bandwidth_hz=1e8", "cell.downlink_bandwidth_hz=1e8",
                    *(f"devices.{kind}.utilisation=0.1" for kind in range(3)))  # fmt: skip

    def half(problem, known, *, tolerance):
        made = plan_of_round(scenario, problem, 1)
        return made, 0.5 * made.objective_s

    monkeypatch.setattr("airtune.planning.round_plan.better_than", half)
    made, _ = planned(scenario)
    assert made.plan.objective_s < 1.0
    assert made.plan.gap == pytest.approx(1.0)


def test_what_is_offered_is_the_product_of_what_is_turned(costs_file: str) -> None:
    scenario = tiny("planning.knobs=all", f"planning.costs={costs_file}")
    whole = situation_of_scenario(scenario).modes[0]
    offered = modes_offered(scenario, whole, scenario.planning.turned)
    assert offered[0] == whole
    assert len(offered) == len({name_of(mode) for mode in offered}) == 2 * 3 * 4
    assert {(m.bits_per_value, m.bits_per_scale) for m in offered} == {
        (16, 0), (8, 32), (4, 32), (2, 32)}  # fmt: skip
    assert modes_offered(scenario, whole, frozenset({"bandwidth", "pruning"})) == (whole,)


def test_every_knob_more_is_no_worse_and_times_add_up(costs_file: str) -> None:
    last = np.inf
    for knobs in (["bandwidth"], ["pruning"], ["bits"], ["rank"], ["steps"], ["absence"]):
        turned = list(dict.fromkeys([*(["bandwidth"] if knobs != ["bandwidth"] else []), *knobs]))
        names = ["bandwidth", "pruning", "bits", "rank", "steps", "absence"]
        so_far = names[: names.index(turned[-1]) + 1]
        scenario = tiny(
            f"planning.knobs={so_far}".replace("'", '"'), f"planning.costs={costs_file}"
        )
        made, at = planned(scenario)
        plan = made.plan
        assert plan.objective_s <= last * (1 + 1e-6)
        last = plan.objective_s
        assert plan.gap is not None
        assert plan.gap <= 1e-5
        assert plan.bandwidth_hz.sum() <= at.problem.bandwidth_hz * (1 + 1e-9)
        np.testing.assert_allclose(plan.total_s, plan.downlink_s + plan.compute_s + plan.upload_s)
        for k, mode in enumerate(made.modes):
            if mode is None:
                assert plan.total_s[k] == plan.bandwidth_hz[k] == plan.pruning[k] == 0
                continue
            count = affine_coefficients(
                at.shape, at.loads[k].steps, mode, max_pruning=scenario.pruning.max_pruning
            )
            rate = float(plan.pruning[k])
            assert plan.compute_s[k] == pytest.approx(
                count.flops(rate) / at.profiles[k].effective_flops, rel=1e-6
            )
            assert plan.upload_s[k] == pytest.approx(
                count.payload_bits(rate) / plan.rate_bps[k], rel=1e-6
            )


def test_without_the_bandwidth_knob_bands_are_equal(costs_file: str) -> None:
    scenario = tiny('planning.knobs=["pruning","absence"]', f"planning.costs={costs_file}")
    made, at = planned(scenario)
    bands = made.plan.bandwidth_hz[[mode is not None for mode in made.modes]]
    np.testing.assert_allclose(bands, at.problem.bandwidth_hz / len(bands))


def test_steps_are_priced_by_their_computing_and_not_by_their_number() -> None:
    scenario = tiny("participation.rule=partial", "planning.method=none", "planning.kappa=0.3")
    at = situation_of_scenario(scenario)
    first, second = at.loads[0].steps
    uneven = replace(at.loads[0], steps=(first, replace(second, length=4 * second.length)))
    made = plan_round(scenario, replace(at, loads=(uneven,) * 4))
    flops = [training_flops(at.shape, full_sizes(at.shape), s, at.modes[0]) for s in uneven.steps]
    done = [
        1.0 if m is not None and m.local_steps == 2 else flops[0] / sum(flops) for m in made.modes
    ]
    assert 1.0 > min(done) < 0.4
    expected = float(at.problem.weight @ (1 - np.array(done)))
    assert made.plan.pruning_loss == pytest.approx(expected)


def test_in_turn_everyone_comes_in_every_nth_round() -> None:
    scenario = tiny("participation.rule=in-turn", "planning.method=bandwidth-only",
                    "participation.every_rounds=3", "participation.left_out_cost=0.5")  # fmt: skip
    assert None in planned(scenario, 1)[0].modes
    assert None in planned(scenario, 2)[0].modes
    assert None not in planned(scenario, 3)[0].modes


def test_in_turn_with_knobs_everyone_comes_in_every_nth_round(costs_file: str) -> None:
    scenario = tiny('planning.knobs=["bandwidth","absence"]', f"planning.costs={costs_file}",
                    "participation.rule=in-turn")  # fmt: skip
    assert None in planned(scenario, 1)[0].modes
    assert None not in planned(scenario, 2)[0].modes


def test_memory_forces_pruning_in_every_mode_or_the_mode_is_not_offered(costs_file: str) -> None:
    scenario = tiny('planning.knobs=["bandwidth","rank"]', f"planning.costs={costs_file}",
                    "devices.2.memory_bytes=2.7e6")  # fmt: skip
    made, _ = planned(scenario)
    assert made.plan.pruning[3] > 0.05
    assert (made.plan.pruning[:3] == 0).all()


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (["participation.rule=deadline", "planning.method=uniform"], "bandwidth-only"),
        (["participation.rule=partial", "planning.knobs=all"], "all, in-turn"),
        (['planning.knobs=["colour"]'], "knobs"),
        (["participation.floor=0.2"], "no effect without planning.knobs"),
        (["planning.rank_values=[1]"], r"rank_values = \[1\] has no effect without 'rank'"),
        (['planning.knobs=["rank"]', "planning.steps_values=[1]"], "no effect without 'steps'"),
        (["participation.left_out_cost=0.5"], "no effect with rule = 'all'"),
        (
            ["planning.knobs=all", "participation.rule=in-turn", "participation.left_out_cost=0.5"],
            "left_out_cost = 0.5 has no effect with planning.knobs",
        ),
        (["participation.rule=deadline", "participation.every_rounds=3"], "every_rounds = 3 has"),
        (["planning.knobs=all", "planning.fit_kappa=true"], "fit_kappa"),
        (["planning.knobs=all", "planning.costs=nowhere.json"], "nowhere.json"),
    ],
)
def test_what_cannot_be_combined_is_refused(settings: list[str], names: str) -> None:
    with pytest.raises(InputError, match=names):
        planned(tiny(*settings))


def test_costs_files_that_are_none_are_refused(tmp_path: Path) -> None:
    dear = costs().model_dump_json().replace("0.9", "1.9")
    for text, names in (
        ("{", "not JSON"),
        ("{}", "airtune-costs/1"),
        ("[]", "format"),
        (dear, "absent.cost"),
    ):
        path = tmp_path / "costs.json"
        path.write_text(text)
        with pytest.raises(InputError, match=names):
            planned(tiny("planning.knobs=all", f"planning.costs={path}"))


def test_costs_between_and_relative_to_what_was_measured() -> None:
    made = costs()
    whole = Mode(local_steps=4, rank=4, bits_per_value=16)
    assert made.of_mode(whole, whole) == 0
    assert made.of_mode(replace(whole, rank=2), whole) == pytest.approx(0.03)
    assert made.of_mode(replace(whole, local_steps=3), whole) == pytest.approx(0.175)
    both = replace(whole, rank=1, local_steps=2)
    assert made.of_mode(both, whole) == pytest.approx(1 - 0.9 * 0.65)
    # A client whose own rank is 2 loses only what rank 1 loses beyond that.
    two = replace(whole, rank=2)
    assert made.of_mode(replace(two, rank=1), two) == pytest.approx(1 - 0.9 / 0.97)
    curve = np.array(made.pruning_curve(0.8))
    slopes = np.diff(curve[:, 1]) / np.diff(curve[:, 0])
    assert (np.diff(slopes) >= -1e-12).all()
    assert curve[0].tolist() == [0, 0]
    assert curve[-1, 0] == 0.8
    np.testing.assert_allclose(np.interp([0.3, 0.6], curve[:, 0], curve[:, 1]), [0.05, 0.4])


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (["aggregation.rule=flora", "training.keep_optimizer=true"], "training.keep_optimizer"),
        (["aggregation.rule=ffa-lora", "devices.0.lora_rank=2"], "devices.lora_rank"),
        (["aggregation.rule=flora", "participation.rule=partial-fednova"], "partial-fednova"),
        (["aggregation.rule=sum"], "flexlora"),
        (["aggregation.rule=flora"], "aggregation.rule = 'flora' runs in simulation only"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: list[str], names: str) -> None:
    with pytest.raises(InputError, match=names):
        check_deployable(load_scenario("tiny", settings))


def test_a_rank_above_the_servers_is_refused() -> None:
    with pytest.raises(InputError, match=r"devices\.0\.lora_rank = 9"):
        load_scenario("tiny", ["devices.0.lora_rank=9"])


def test_what_is_deployable_is() -> None:
    for name, rule in MERGING.items():
        if not rule.restarts:
            check_deployable(load_scenario("tiny", [f"aggregation.rule={name}"]))


def test_absence_is_no_cheaper_than_the_weakest_work_on_offer(costs_file: str) -> None:
    """Without other knobs it costs what was measured; beside them, what is left multiplies."""

    def absent(knobs: str) -> np.ndarray:
        made, _ = planned(tiny(f"planning.knobs={knobs}", f"planning.costs={costs_file}"))
        assert made.problem.absent_cost is not None
        return made.problem.absent_cost

    np.testing.assert_allclose(absent('["bandwidth","absence"]'), 0.9)
    np.testing.assert_allclose(absent('["steps","absence"]'), 1 - 0.1 * 0.65)
    weakest = 0.65 * 0.9 * 0.7 * 0.6  # a step of two, rank 1, 2 bits, pruned by 0.6
    np.testing.assert_allclose(absent("all"), 1 - 0.1 * weakest)
