"""Fewer steps, or a round's rest: planned by the same objective, billed as done."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from airtune import planning
from airtune.errors import InputError
from airtune.merging.rules import MERGING, check_deployable
from airtune.planning import Plan, PlanningProblem
from airtune.planning.bcd import bandwidth_block
from airtune.planning.participation import PARTICIPATION, Participation, decide
from airtune.scenario import ParticipationSection, load_scenario

STEPS = 4


def problem(
    seed: int = 0, clients: int = 5, kappa: float = 0.6, **changes: object
) -> PlanningProblem:
    """Some clients far slower than others, computing longer than they send."""
    rng = np.random.default_rng(seed)
    values = {
        "bandwidth_hz": 1e7,
        "kappa": kappa,
        "names": tuple(f"c{k}" for k in range(clients)),
        "weight": rng.uniform(1, 3, clients),
        "snr_hz": 10 ** rng.uniform(7, 9, clients),
        "downlink_s": np.full(clients, 0.1),
        "compute_fixed_s": np.full(clients, 0.1),
        "compute_full_s": 10 ** rng.uniform(0, 1.5, clients),
        "payload_fixed_bits": np.full(clients, 1e5),
        "payload_full_bits": np.full(clients, 1e7),
        "min_pruning": np.zeros(clients),
        "max_pruning": np.full(clients, 0.7),
    }
    return PlanningProblem(**{**values, **changes})  # type: ignore[arg-type]


def decided(
    asked: PlanningProblem,
    rule: str,
    method: str = "bandwidth-only",
    round: int = 1,
    left_out_cost: float = 1.0,
) -> Participation:
    def planner(given: PlanningProblem, other: str | None) -> Plan:
        return planning.plan(given, other or method, bound=False)

    shares = [np.full(STEPS, 1 / STEPS)] * asked.clients
    return decide(
        asked,
        planner,
        rule=rule,
        method=method,
        step_shares=shares,
        round=round,
        every_rounds=3,
        left_out_cost=left_out_cost,
    )


def test_every_rule_is_listed_with_a_source_and_is_a_choice_of_the_scenario() -> None:
    allowed = ParticipationSection.model_fields["rule"].annotation.__args__  # type: ignore[union-attr]
    assert tuple(PARTICIPATION) == allowed
    assert all(entry.description and entry.source for entry in PARTICIPATION.values())


@pytest.mark.parametrize("rule", list(PARTICIPATION))
@pytest.mark.parametrize("method", ["none", "bandwidth-only", "exact"])
def test_times_are_those_of_the_work_that_is_done(rule: str, method: str) -> None:
    asked = problem()
    made = decided(asked, rule, method)
    plan, steps = made.plan, np.array([n or 0 for n in made.steps])
    present = steps > 0
    assert present.any()
    assert plan.bandwidth_hz.sum() <= asked.bandwidth_hz * (1 + 1e-9)
    assert (plan.bandwidth_hz[~present] == 0).all()
    compute = asked.compute_s(plan.pruning) * steps / STEPS
    upload = asked.payload_bits(plan.pruning)[present] / plan.rate_bps[present]
    np.testing.assert_allclose(plan.compute_s[present], compute[present])
    np.testing.assert_allclose(plan.upload_s[present], upload)
    assert plan.round_latency_s == pytest.approx(plan.total_s.max())
    if not rule.startswith("partial"):
        left_out = float(asked.weight[~present].sum())
        expected = left_out + float(asked.weight[present] @ plan.pruning[present])
        assert plan.pruning_loss == pytest.approx(expected)
    else:
        done = float(asked.weight @ (1 - steps / STEPS))
        assert plan.pruning_loss == pytest.approx(done)
    assert plan.objective_s == pytest.approx(
        plan.round_latency_s / (1 - asked.kappa * plan.pruning_loss)
    )


@pytest.mark.parametrize("seed", range(4))
def test_partial_work_is_as_good_as_any_whole_steps(seed: int) -> None:
    # Brute force over all numbers of steps, with the best bands for each.
    asked = problem(seed, clients=4)
    best = np.inf
    for steps in itertools.product(range(1, STEPS + 1), repeat=4):
        share = np.array(steps) / STEPS
        whole = asked.compute_s(np.zeros(4)) * share
        fixed = replace(
            asked, compute_fixed_s=whole, compute_full_s=np.zeros(4), max_pruning=np.zeros(4)
        )
        latency = planning.plan(fixed, "bandwidth-only", bound=False).round_latency_s
        best = min(best, latency / (1 - asked.kappa * float(asked.weight @ (1 - share))))
    assert decided(asked, "partial").plan.objective_s <= best * 1.001
    assert decided(asked, "partial").plan.objective_s >= best * (1 - 1e-6)


@pytest.mark.parametrize("rule", ["partial", "deadline"])
def test_a_rival_is_never_worse_than_everyone_doing_everything(rule: str) -> None:
    for seed in range(5):
        asked = problem(seed)
        everyone = decided(asked, "all").plan
        assert decided(asked, rule).plan.objective_s <= everyone.objective_s * (1 + 1e-9)


def test_those_who_stay_are_planned_for_the_objective_of_all() -> None:
    asked = problem(1, kappa=0.7)
    made = decided(asked, "deadline", "exact")
    active = np.array([n is not None for n in made.steps])
    assert not active.all()
    rng = np.random.default_rng(0)
    for _ in range(200):
        # Nearby plans with the best bands for them, priced from the definition.
        step = rng.normal(0, 0.05, asked.clients)
        pruning = np.where(active, np.clip(made.plan.pruning + step, 0, 0.7), 1.0)
        payload = np.where(active, asked.payload_bits(pruning), 0.0)
        fixed = np.where(active, asked.downlink_s + asked.compute_s(pruning), 0.0)
        latency, _ = bandwidth_block(asked, fixed, payload)
        objective = latency / (1 - asked.kappa * asked.pruning_loss(pruning))
        assert objective >= made.plan.objective_s * (1 - 1e-6)


def test_leaving_out_is_priced_at_its_own_cost() -> None:
    counts = []
    for cost in (0.05, 0.5, 1.0):
        asked = problem(1, kappa=0.95)
        made = decided(asked, "deadline", "exact", left_out_cost=cost)
        active = np.array([n is not None for n in made.steps])
        counts.append(int(active.sum()))
        inside = float(asked.weight[active] @ made.plan.pruning[active])
        loss = inside + cost * float(asked.weight[~active].sum())
        assert made.plan.pruning_loss == pytest.approx(loss)
        assert made.plan.objective_s == pytest.approx(made.plan.round_latency_s / (1 - 0.95 * loss))
        everyone = decided(asked, "all", "exact").plan.objective_s
        assert made.plan.objective_s <= everyone * (1 + 1e-9)
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_those_who_cannot_be_left_out_are_not() -> None:
    # With kappa above 1 nearly everyone has to stay: what is left cannot reach 1 either.
    curves = tuple(np.array([[0.0, 0.0], [0.7, 0.2]]) for _ in range(5))
    made = decided(problem(kappa=1.2, pruning_cost=curves), "deadline", "exact")
    assert any(made.steps)
    assert made.plan.objective_s > 0
    # A bound that those who stay cannot keep, because memory has them pruned.
    least = problem(min_pruning=np.full(5, 0.2), max_pruning_loss=0.4)
    for cost in (0.5, 1.0):
        plan = decided(least, "deadline", left_out_cost=cost).plan
        assert plan.pruning_loss <= 0.4 * (1 + 1e-9)


def test_leaving_out_that_costs_nothing_leaves_only_the_fastest() -> None:
    assert sum(count is not None for count in decided(problem(kappa=0.0), "deadline").steps) == 1
    assert decided(problem(kappa=0.0), "partial").plan.round_latency_s < (
        decided(problem(kappa=0.0), "all").plan.round_latency_s
    )


def test_a_bound_on_the_loss_keeps_everyone_in() -> None:
    asked = problem(max_pruning_loss=0.0)
    for rule in ("deadline", "partial"):
        assert decided(asked, rule).steps == (STEPS,) * asked.clients


def test_in_turn_the_slow_ones_come_back() -> None:
    asked = problem()
    steps = [decided(asked, "in-turn", round=round).steps for round in (1, 2, 3)]
    assert None in steps[0]
    assert steps[0] == steps[1] == decided(asked, "deadline").steps
    assert None not in steps[2]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (["aggregation.rule=flora", "training.keep_optimizer=true"], "training.keep_optimizer"),
        (["aggregation.rule=ffa-lora", "devices.0.lora_rank=2"], "devices.lora_rank"),
        (["aggregation.rule=flora", "participation.rule=partial-fednova"], "partial-fednova"),
        (["aggregation.rule=sum"], "flexlora"),
        (["participation.rule=deadline"], "participation.rule"),
        (["devices.0.lora_rank=2"], "devices.lora_rank"),
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
        if not (rule.restarts or rule.freezes_a):
            check_deployable(load_scenario("tiny", [f"aggregation.rule={name}"]))
