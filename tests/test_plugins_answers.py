"""What a plugin's part answers is checked before it is used, and refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import airtune as at
from airtune import planning
from airtune.channel import draw, place, rate_of_band
from airtune.data import Example, load_task
from airtune.errors import InputError, RunError
from airtune.merging.functions import Contribution, merge
from airtune.planning import METHODS
from airtune.randomness import generator
from airtune.scenario import TASKS, load_scenario

ROOT = Path(__file__).resolve().parents[1]
PROBLEM = planning.problem_from_json((ROOT / "examples" / "cell.json").read_text())
pytestmark = pytest.mark.usefixtures("no_plugins_left")


# Planning methods


def planned_by(answer: Callable[[Any], Any], problem: Any = PROBLEM, **options: Any) -> Any:
    def solve(problem: Any, tolerance: float, rng: np.random.Generator) -> Any:
        return answer(problem)

    at.planning_method("mine", description="mine")(solve)
    return at.plan(problem, method="mine", **options)


def equal(problem: Any) -> Any:
    return np.full(problem.clients, problem.bandwidth_hz / problem.clients)


def test_a_method_of_ones_own_is_priced_and_bounded_like_any_other() -> None:
    made = planned_by(lambda p: (list(p.min_pruning), list(equal(p))))
    none = at.plan(PROBLEM, method="none")
    assert made.method == "mine"
    assert made.objective_s == none.objective_s
    assert (made.gap, made.lower_bound_s) == (none.gap, none.lower_bound_s)
    assert made.gap is not None
    assert made.gap > 0


def test_a_plan_is_taken_for_its_rates_and_bands_alone() -> None:
    def flattering(problem: Any) -> Any:
        plan = at.plan(problem, method="none")
        return replace(plan, objective_s=1e-9, lower_bound_s=1e-9, gap=0.0, round_latency_s=1e-9)

    made = planned_by(flattering)
    assert made.objective_s == at.plan(PROBLEM, method="none").objective_s
    assert made.gap > 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda p: None, "it returned NoneType; allowed: "),
        (lambda p: (p.min_pruning,), "it returned tuple; allowed: "),
        (lambda p: (0.0, equal(p)), r"pruning has shape \(\); allowed: \(\d+,\)"),
        (lambda p: (p.min_pruning, equal(p)[1:]), r"bandwidth_hz has shape"),
        (lambda p: (p.min_pruning, "wide"), "bandwidth_hz is str"),
        (lambda p: (p.min_pruning, equal(p) * np.nan), "bandwidth_hz nan of client '"),
        (lambda p: (p.max_pruning + 0.01, equal(p)), r"pruning .* of client '.*'; allowed: 0 to"),
        (lambda p: (p.min_pruning - 0.01, equal(p)), r"pruning -0.01 of client"),
        (lambda p: (p.min_pruning, equal(p) * 1.001), r"the bands sum to .* Hz; allowed: at most"),
        (
            lambda p: (p.min_pruning, equal(p) * 0),
            "bandwidth_hz 0 of client .*: above 0",
        ),
        (lambda p: (p.min_pruning, -equal(p)), "bandwidth_hz -.* allowed: 0 or more"),
        (lambda p: 1 / 0, r"test_plugins_answers.py, line \d+: ZeroDivisionError"),
    ],
)
def test_what_cannot_be_a_plan_is_refused_in_one_line(
    answer: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"^planning method 'mine': {message}") as raised:
        planned_by(answer)
    assert "\n" not in str(raised.value)


def test_a_plan_with_modes_keeps_them_and_who_sits_out() -> None:
    asked = replace(PROBLEM, absent_cost=np.full(PROBLEM.clients, 0.05), kappa=0.9)
    with np.errstate(invalid="ignore"):
        best = at.plan(asked)
        made = planned_by(lambda problem: best, asked)
    assert best.modes is not None
    assert None in best.modes
    assert made.modes == best.modes
    assert made.objective_s == pytest.approx(best.objective_s, rel=1e-9)
    at.planning_method("all", description="everyone")(lambda p, t, r: (p.min_pruning, equal(p)))
    everyone = at.plan(asked, method="all", bound=False)
    assert None not in (everyone.modes or (None,))


def test_a_method_has_to_keep_the_bound_on_the_pruning_loss() -> None:
    bounded = replace(PROBLEM, max_pruning_loss=0.1)
    with pytest.raises(
        InputError, match=r"pruning loss .* passes the problem's max_pruning_loss 0.1"
    ):
        planned_by(lambda p: (p.max_pruning, equal(p)), bounded)


def test_whole_blocks_keep_the_shares_of_a_method_of_ones_own() -> None:
    def lopsided(problem: Any) -> Any:
        share = np.arange(1.0, problem.clients + 1)
        return problem.min_pruning, problem.bandwidth_hz * share / share.sum()

    made = planned_by(lopsided, block_hz=PROBLEM.bandwidth_hz / 200)
    assert made.blocks is not None
    assert made.blocks.sum() == 200
    exact = 200 * np.arange(1.0, PROBLEM.clients + 1) / np.arange(1, PROBLEM.clients + 1).sum()
    assert np.abs(made.blocks - exact).max() <= 1


def test_built_in_methods_say_whether_they_plan_bands_and_prune() -> None:
    said = {name: (method.bands, method.prunes) for name, method in METHODS.items()}
    assert said == {
        "exact": ("best", True),
        "bcd": ("best", True),
        "bcd-bandwidth-first": ("best", True),
        "bcd-knobs": ("best", True),
        "none": ("equal", False),
        "bandwidth-only": ("best", False),
        "pruning-only": ("equal", True),
        "uniform": ("best", True),
        "random": ("own", True),
    }
    for name, (bands, prunes) in said.items():
        made = at.plan(PROBLEM, method=name)
        assert np.allclose(made.bandwidth_hz, made.bandwidth_hz[0]) == (bands == "equal")
        assert np.allclose(made.pruning, PROBLEM.min_pruning) == (not prunes)


# Merging rules


def merged_by(answer: Callable[[Any], Any], **options: Any) -> Any:
    at.merging_rule("mine", description="mine", **options)(lambda server, parts: answer(server))
    server = {"x.lora_A.weight": torch.zeros(2, 3), "x.lora_B.weight": torch.zeros(4, 2)}
    held = {name: torch.ones_like(value, dtype=torch.bool) for name, value in server.items()}
    return merge("mine", server, [Contribution(server, held, weight=1.0)])


def with_a(value: Any) -> Callable[[Any], Any]:
    return lambda server: {**server, "x.lora_A.weight": value}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda server: None, "it returned NoneType"),
        (lambda server: {}, r"wrong names \(2 missing, 0 unknown\)"),
        (with_a(None), "x.lora_A.weight is not a matrix"),
        (with_a(torch.zeros(3)), "x.lora_A.weight is not a matrix"),
        (with_a(torch.zeros(2, 4)), r"wrong shape of x.lora_A.weight: \(2, 4\), not \(2, 3\)"),
        (with_a(torch.zeros(1, 3)), r"wrong shape of x.lora_A.weight: \(1, 3\), not \(2, 3\)"),
        (with_a(torch.full((2, 3), torch.nan)), "not finite: x.lora_A.weight"),
        (lambda server: server["y"], r"test_plugins_answers.py, line \d+: KeyError: 'y'"),
    ],
)
def test_what_cannot_be_the_next_adapter_is_refused(
    answer: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"^merging rule 'mine': {message}"):
        merged_by(answer)


def test_a_rule_that_restarts_may_change_the_rank_of_both_factors_alike() -> None:
    grown = {"x.lora_A.weight": torch.ones(5, 3), "x.lora_B.weight": torch.ones(4, 5)}
    assert merged_by(lambda server: grown, restarts=True)["x.lora_B.weight"].shape == (4, 5)


def test_factors_of_different_ranks_are_refused() -> None:
    uneven = {"x.lora_A.weight": torch.ones(5, 3), "x.lora_B.weight": torch.ones(4, 4)}
    with pytest.raises(InputError, match=r"wrong shape of x.lora_B.weight: \(4, 4\), not \(4, 5\)"):
        merged_by(lambda server: uneven, restarts=True)


# Channel models


def heard(answer: Callable[[Any], Any]) -> at.ChannelState:
    at.channel_model("mine", description="mine")(lambda *given: answer(given))
    scenario = load_scenario("tiny", ["cell.channel=mine"])
    devices = scenario.client_devices
    placement = place(scenario.cell, devices, generator(0, "placement"))
    return draw(scenario.cell, devices, placement, generator(0, "fading", round=3), round=3)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda given: None, "snr_hz has shape|snr_hz is not numbers"),
        (lambda given: np.ones(3), r"snr_hz has shape \(3,\); allowed: \(4,\)"),
        (lambda given: [1.0, 2.0, np.nan, 4.0], "snr_hz of client 3 is nan"),
        (lambda given: [1.0, 0.0, 1.0, 1.0], "snr_hz of client 2 is 0; allowed: a finite number"),
        (lambda given: (np.ones(4), -np.ones(4)), "downlink_rate_bps of client 1 is -1"),
        (lambda given: (np.ones(4),) * 3, "it returned 3 values"),
        (lambda given: at.ChannelState(np.ones(4), np.zeros(4), np.ones(4)), "max_spectral_eff"),
    ],
)
def test_what_cannot_be_a_channel_is_refused(answer: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^channel model 'mine', round 3: (?:{message})"):
        heard(answer)


def test_a_model_is_given_the_round_and_the_downlink_follows_by_reciprocity() -> None:
    seen: list[Any] = []

    def model(given: Any) -> Any:
        seen.extend(given)
        return np.full(4, 1e7)

    state = heard(model)
    cell, devices, placement, rng, round = seen
    assert round == 3
    assert len(devices) == len(placement.distance_m) == 4
    assert isinstance(rng, np.random.Generator)
    # 70 dB Hz up at 23 dBm and noise figure 5: 44 dBm and 9 dB down make 70 + 21 - 4.
    expected = rate_of_band(cell.downlink_bandwidth_hz, 10**8.7)
    assert state.downlink_rate_bps == pytest.approx([float(expected)] * 4)
    assert state.received_snr_hz(0) == 1e7


def test_an_unknown_model_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    scenario = load_scenario("tiny", ["cell.channel=wave"])
    with pytest.raises(InputError, match=r"cell.channel = 'wave': allowed are statistical, table"):
        at.run(scenario, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Tasks


def examples_by(items: Callable[[Any], Any], **settings: Any) -> Any:
    at.task("mine", description="mine", choices=("a", "b"))(lambda section, rng: items(rng))
    section = load_scenario("tiny").task
    few = {"name": "mine", "train_examples": 4, "eval_examples": 2, **settings}
    return load_task(section.model_copy(update=few), seed=3)


def test_a_task_of_ones_own_is_framed_labelled_and_split() -> None:
    labels = ["x", 7, "x", 7, "x", 7]
    task = examples_by(lambda rng: [(f"{k}?", "a", label) for k, label in enumerate(labels)])
    assert [example.prompt for example in task.test + task.train] == [
        f"Question: {k}?\nAnswer:" for k in range(6)
    ]
    assert [example.label for example in task.test + task.train] == [0, 1] * 3
    assert task.choices == ("a", "b")
    kept = Example("as it is", "a", 5)
    TASKS.pop("mine")
    assert kept in examples_by(lambda rng: [kept, *((f"{k}", "b") for k in range(5))]).test


def test_a_tasks_generator_is_its_own_and_repeats() -> None:
    drawn = lambda rng: [(f"{number}", "a") for number in rng.integers(10**9, size=9)]  # noqa: E731
    first = examples_by(drawn)
    TASKS.pop("mine")
    assert examples_by(drawn) == first


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (lambda rng: None, ": it returned NoneType"),
        (lambda rng: ["text"], ", example 1: 'text' is not"),
        (lambda rng: [("p", "a"), ("p", " ")], ", example 2: the answer ' ' is not a text"),
        (lambda rng: [(5, "a")], ", example 1: the prompt 5 is not a text"),
        (lambda rng: [("p", "a", [])], ", example 1: the label"),
        (
            lambda rng: (1 / 0 for _ in "x"),
            r", example 1: test_plugins_answers.py, line \d+: ZeroDiv",
        ),
    ],
)
def test_what_cannot_be_an_example_is_refused(items: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^task 'mine'{message}"):
        examples_by(items)


def test_a_failed_run_stays_a_failed_run() -> None:
    def failing(problem: Any) -> Any:
        raise RunError("no machine")

    with pytest.raises(RunError, match="no machine"):
        planned_by(failing)
