"""Weights by inclusion probability: by hand, and unbiased over draws and losses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from airtune.errors import InputError
from airtune.merging.functions import Contribution
from airtune.merging.rules import MERGING, rule_of
from airtune.merging.unbiased import unbiased
from airtune.planning.availability import Availability
from airtune.planning.cohorts import DrawMemory, draw_cohort
from airtune.rounds import Cell, Situation
from airtune.rounds import cell as hooks
from airtune.rounds.cohort import weight_of
from airtune.scenario import load_scenario
from airtune.training.client import ClientUpdate

DRAWS = 4_000


def fake_cell(*settings: str, examples: list[int]) -> Cell:
    devices = f"devices=[{{profile='jetson-orin-nano',count={len(examples)},utilisation=1e-6}}]"
    clients = [SimpleNamespace(examples=count) for count in examples]
    return cast(
        Cell,
        SimpleNamespace(
            scenario=load_scenario("tiny", [devices, "participation.weights=inclusion", *settings]),
            federation=SimpleNamespace(clients=clients),
        ),
    )


EXAMPLES = [8, 8, 16, 24, 40, 64]


def update(client: int) -> ClientUpdate:
    return cast(ClientUpdate, SimpleNamespace(client=client, examples=EXAMPLES[client]))


def test_an_arrived_uploads_weight_by_hand() -> None:
    """n = 16 of the 56 examples that are there, drawn with 1/2, arriving with 0.8."""
    there = np.array([1, 1, 1, 1, 0, 0], dtype=bool)
    cell = fake_cell("participation.cohort=2", examples=EXAMPLES)
    drawn = SimpleNamespace(available=there, inclusion=np.array([0.5, 0.5]))
    situation = cast(Situation, SimpleNamespace(drawn=drawn, cohort=(2, 3)))
    assert weight_of(cell, situation, update(2), 0.8) == pytest.approx(16 / 56 / (0.5 * 0.8))
    everyone = cast(Situation, SimpleNamespace(drawn=None, cohort=tuple(range(6))))
    assert weight_of(cell, everyone, update(2), 0.5) == pytest.approx(16 / 160 / 0.5)
    by_examples = fake_cell("participation.weights=examples", examples=EXAMPLES)
    assert weight_of(by_examples, everyone, update(2), 0.5) == 16.0


def test_the_merged_change_is_scaled_by_the_sum_of_the_weights() -> None:
    server, merged = {"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([2.0, 0.0])}
    torch.testing.assert_close(unbiased(server, merged, 1.5)["x"], torch.tensor([2.5, -1.0]))
    assert unbiased(server, merged, 1.0)["x"].dtype == torch.float32


def test_rules_that_are_no_average_by_weights_are_refused() -> None:
    for name, rule in MERGING.items():
        scenario = load_scenario(
            "tiny", [f"aggregation.rule={name}", "participation.weights=inclusion"]
        )
        if rule.weighs:
            rule_of(scenario)
            continue
        with pytest.raises(InputError, match=f"'{name}', which is no average by weights; allowed"):
            rule_of(scenario)
    assert [name for name, rule in MERGING.items() if rule.weighs] == [
        "fedit", "ffa-lora", "heterofl",
    ]  # fmt: skip


@pytest.mark.parametrize("by", ["uniform", "data-size", "round-robin"])
@pytest.mark.parametrize("away", [False, True])
def test_the_merged_change_is_unbiased_over_draws_and_losses(by: str, away: bool) -> None:
    """The mean over many rounds is what all examples that are there would give."""
    if away and by == "round-robin":
        pytest.skip("refused: no probability is known")
    cell = fake_cell("participation.cohort=2", f"participation.cohort_by={by}", examples=EXAMPLES)
    there = None
    if away:
        span = np.arange(4)
        there = Availability("x", 6, span, np.zeros(4), np.full(4, 1e9))
    rng, counts = np.random.default_rng(5), np.array(EXAMPLES, dtype=float)
    success = np.array([0.5, 0.9, 0.6, 1.0, 0.8, 0.7])
    # Who arrives seldom, and who is drawn seldom, has another change than the others.
    changes = np.stack([1 / success - 1, np.array([3.0, 2.5, 1.0, 0.0, -1.0, -2.0])], axis=1)
    server = {"a.lora_A.weight": torch.tensor([[0.5, -0.5]])}
    held = {"a.lora_A.weight": torch.ones(1, 2, dtype=torch.bool)}
    merged_changes, by_examples = np.zeros((DRAWS, 2)), np.zeros((DRAWS, 2))
    for draw in range(DRAWS):
        # Turns are even over the random orders of many seeds, not over one run's rounds.
        drawn = draw_cohort(
            cell.scenario.model_copy(update={"seed": draw}),
            round=1,
            time_s=0.0,
            rate_bps=np.ones(6),
            examples=counts,
            availability=there,
            memory=DrawMemory(),
        )
        situation = cast(Situation, SimpleNamespace(drawn=drawn, cohort=drawn.clients))
        arrived = [k for k in drawn.clients if rng.random() < success[k]]
        if not arrived:
            continue  # the adapter stays: a change of nothing
        contributions = [
            Contribution(
                {"a.lora_A.weight": server["a.lora_A.weight"] + torch.from_numpy(changes[k])},
                held,
                weight_of(cell, situation, update(k), success[k]),
            )
            for k in arrived
        ]
        merged = hooks.merge(cell, server, contributions)["a.lora_A.weight"]
        merged_changes[draw] = (merged - server["a.lora_A.weight"]).numpy()[0]
        by_examples[draw] = counts[arrived] / counts[arrived].sum() @ changes[arrived]
    known = np.arange(6) < (4 if away else 6)
    wanted = (counts * known) @ changes / counts[known].sum()
    error = merged_changes.std(axis=0) / np.sqrt(DRAWS)
    assert (np.abs(merged_changes.mean(axis=0) - wanted) < 4 * error).all()
    # The average of those that happen to arrive is not: the test sees the difference.
    error = by_examples.std(axis=0) / np.sqrt(DRAWS)
    assert (np.abs(by_examples.mean(axis=0) - wanted) > 6 * error).any()
