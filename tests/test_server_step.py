"""The server's optimisers: against the published recursions, and where they are no optimiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from airtune.errors import InputError
from airtune.merging.server import server_step
from airtune.scenario import AggregationSection, load_scenario

NAME = "block.a.lora_A.weight"


def section(**values: object) -> AggregationSection:
    return AggregationSection.model_validate(values)


def of(values: list[float]) -> dict[str, torch.Tensor]:
    return {NAME: torch.tensor([values])}


def test_momentum_0_at_rate_1_is_the_merge_itself_bit_for_bit() -> None:
    source = torch.Generator().manual_seed(3)
    server = {NAME: torch.randn(8, 50, generator=source)}
    merged = {NAME: server[NAME] + 1e-3 * torch.randn(8, 50, generator=source)}
    chosen = section(server_optimizer="momentum", server_momentum=0.0)
    adapter, moments = server_step(chosen, server, merged, {})
    assert torch.equal(adapter[NAME], merged[NAME])
    again, _ = server_step(chosen, server, merged, moments)
    assert torch.equal(again[NAME], merged[NAME])
    plain, kept = server_step(section(), server, merged, {})
    assert plain is merged
    assert kept == {}


def test_momentum_is_a_geometric_sum_of_the_changes() -> None:
    """m_n = D (1 - beta^n)/(1 - beta) under a constant change D; w moves by lr times it."""
    chosen = section(server_optimizer="momentum", server_momentum=0.5, server_learning_rate=0.1)
    adapter, moments = of([1.0, 0.0]), {}
    change = np.array([0.25, -0.5])
    expected = np.array([1.0, 0.0])
    for n in range(1, 6):
        merged = {NAME: adapter[NAME] + torch.tensor([change.tolist()])}
        adapter, moments = server_step(chosen, adapter, merged, moments)
        expected = expected + 0.1 * change * (1 - 0.5**n) / 0.5
        assert adapter[NAME].numpy()[0] == pytest.approx(expected, abs=1e-6)


def test_adam_is_algorithm_2_of_the_paper() -> None:
    chosen = section(
        server_optimizer="adam",
        server_learning_rate=0.1,
        server_momentum=0.8,
        server_second_momentum=0.9,
        server_adaptivity=0.01,
    )
    source = np.random.default_rng(0)
    adapter, moments = of([0.3, -2.0, 0.0]), {}
    x, m, v = np.array([0.3, -2.0, 0.0]), np.zeros(3), np.full(3, 0.01**2)
    for _ in range(4):
        change = source.normal(size=3)
        merged = {NAME: adapter[NAME] + torch.tensor([change.tolist()])}
        adapter, moments = server_step(chosen, adapter, merged, moments)
        m = 0.8 * m + 0.2 * change
        v = 0.9 * v + 0.1 * change**2
        x = x + 0.1 * m / (np.sqrt(v) + 0.01)
        assert adapter[NAME].numpy()[0] == pytest.approx(x, abs=1e-5)
    assert set(moments) == {"momentum", "second"}


def test_the_default_rates_are_those_of_the_optimisers() -> None:
    assert section(server_optimizer="momentum").server_rate == 1.0
    assert section(server_optimizer="adam").server_rate == 0.01


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (["aggregation.server_learning_rate=0.5"], "has no effect with server_optimizer = 'none'"),
        (["aggregation.server_optimizer=adagrad"], "aggregation.server_optimizer"),
        (
            ["training.optimizer=sgd", "training.keep_optimizer=true"],
            "plain SGD has no moments to keep",
        ),
        (["training.scaffold=true", "aggregation.uplink_change_bits=4"], "sent as values"),
        (["training.proximal_mu=-1"], "training.proximal_mu"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings: list[str], what: str) -> None:
    with pytest.raises(InputError, match=what) as refused:
        load_scenario("tiny", settings)
    assert "\n" not in str(refused.value)
