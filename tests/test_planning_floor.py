"""The floor on being heard, and the name of a costs file, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from airtune.errors import InputError
from airtune.planning import PlanningProblem, plan
from airtune.planning.costs import costs_of, described, shipped_costs
from airtune.planning.floor import (
    check_floor,
    contributions,
    first_queues,
    most_contributed,
    required,
    weighed,
)
from airtune.planning.inputs import situation_of_scenario
from airtune.scenario import load_scenario


def problem() -> PlanningProblem:
    """The tiny scenario's first round, without modes: kappa 0.5, e(rho) = rho."""
    return situation_of_scenario(load_scenario("tiny")).problem


def test_a_client_contributes_what_its_pruning_leaves() -> None:
    least = np.array([0.0, 0.1, 0.2, 0.3])
    limited = replace(problem(), min_pruning=least)
    assert most_contributed(limited) == pytest.approx(1 - least)
    made = plan(limited, "uniform")
    assert contributions(limited, made) == pytest.approx(1 - made.pruning)


def test_a_floor_that_a_client_cannot_meet_is_refused_by_name() -> None:
    limited = replace(problem(), min_pruning=np.array([0.0, 0.0, 0.3, 0.4]))
    check_floor(limited, 0.6)
    check_floor(limited, 0.0)
    with pytest.raises(InputError) as refusal:
        check_floor(limited, 0.65)
    name = limited.names[3]
    assert str(refusal.value).startswith(f"client {name!r}: floor 0.65 cannot be met: in ")
    assert str(refusal.value).endswith("it contributes 0.6; allowed: that or less")
    for share in (-0.1, 1.1):
        with pytest.raises(InputError, match=rf"floor: {share} is not allowed; allowed: a share"):
            check_floor(limited, share)
    whole = replace(problem(), min_pruning=np.zeros(4))
    check_floor(whole, 1.0)


def test_who_is_owed_a_whole_round_must_take_part() -> None:
    free = problem()
    assert required(free, np.full(4, 5.0)) is free
    absent = replace(free, absent_cost=np.array([0.3, 0.4, 0.5, 0.6]))
    asked = required(absent, np.array([0.0, 0.999, 1.0, 2.0]))
    assert asked.absent_cost is not None
    assert asked.absent_cost.tolist() == [0.3, 0.4, np.inf, np.inf]


def test_queues_raise_a_clients_weight_and_the_sum_moves_into_kappa() -> None:
    free = replace(problem(), kappa=0.5, min_pruning=np.zeros(4))
    queues = np.array([0.0, 1.0, 0.0, 3.0])
    heavier = weighed(free, queues)
    raised = free.weight * (1 + queues)
    # The weights sum to 1 again; kappa carries their sum.
    assert heavier.weight == pytest.approx(raised / raised.sum())
    assert heavier.kappa == pytest.approx(0.5 * raised.sum())


def test_kappa_is_held_where_the_whole_work_already_loses() -> None:
    limited = replace(problem(), kappa=0.5, min_pruning=np.full(4, 0.5))
    heavier = weighed(limited, np.full(4, 9.0))  # 10 times kappa would be 5, and kappa Q 2.5
    assert heavier.kappa == pytest.approx(0.99 / 0.5)
    barely = weighed(limited, np.full(4, 1.0))
    assert barely.kappa == pytest.approx(1.0)


def test_with_a_bound_on_the_loss_kappa_stays() -> None:
    bounded = replace(problem(), kappa=0.5, max_pruning_loss=0.3)
    assert weighed(bounded, np.full(4, 1.0)).kappa == 0.5


def test_first_queues_are_equal_steps_below_the_floor() -> None:
    queues = first_queues(4, 0.4, np.random.default_rng(0))
    assert sorted(queues.tolist()) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert first_queues(0, 0.4, np.random.default_rng(0)).shape == (0,)


def test_which_costs_a_scenario_uses_and_how_they_are_named(tmp_path: Path) -> None:
    assert costs_of(load_scenario("tiny")) is None
    everything = load_scenario("tiny", ["planning.knobs=all"])
    assert costs_of(everything) == shipped_costs()
    own = tmp_path / "own.json"
    changed = shipped_costs().model_copy(update={"provenance": {"model": "mine", "rounds": 3}})
    own.write_text(changed.model_dump_json())
    read = costs_of(load_scenario("tiny", ["planning.knobs=all", f"planning.costs={own}"]))
    assert read == changed
    assert read is not None
    said = described(read, str(own)).split(", ")
    assert said[0] == str(own)
    assert len(said[1]) == 12
    assert said[2:] == ["model mine", "rounds 3"]
    shipped = described(shipped_costs(), None)
    assert shipped.startswith("smollm2-135m.json (shipped), ")
    assert shipped.endswith("task gsm8k, rounds 4, seeds [0, 1]")
    assert said[1] not in shipped
