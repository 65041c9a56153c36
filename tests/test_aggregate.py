"""Merging: exact where clients hold everything, careful where they do not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.aggregate import Contribution, fault_of, fedit

SHAPES = {"block.a.lora_A.weight": (2, 5), "block.a.lora_B.weight": (4, 2)}


def adapter(seed: int) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=source) for name, shape in SHAPES.items()}


def contribution(seed: int, weight: float, share: float = 1.0) -> Contribution:
    source = torch.Generator().manual_seed(seed + 1000)
    held = {n: torch.rand(s, generator=source) < share for n, s in SHAPES.items()}
    values = {n: v * held[n] for n, v in adapter(seed).items()}
    return Contribution(values, held, weight)


def slow_average(
    server: dict[str, torch.Tensor], parts: list[Contribution]
) -> dict[str, torch.Tensor]:
    """Entry by entry, in plain Python: the definition, not the implementation."""
    out = {}
    for name, old in server.items():
        flat = []
        for i, kept in enumerate(old.flatten().tolist()):
            holders = [p for p in parts if bool(p.held[name].flatten()[i])]
            total = sum(p.weight for p in holders)
            value = sum(p.weight * float(p.values[name].flatten()[i]) for p in holders)
            flat.append(value / total if holders else kept)
        out[name] = torch.tensor(flat).reshape(old.shape)
    return out


@settings(max_examples=50, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 1e4), min_size=1, max_size=5),
    share=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
)
def test_average_is_over_the_holders_of_each_entry(weights: list[float], share: float) -> None:
    server = adapter(0)
    parts = [contribution(k + 1, w, share) for k, w in enumerate(weights)]
    merged = fedit(server, parts)
    for name, value in slow_average(server, parts).items():
        torch.testing.assert_close(merged[name], value, rtol=1e-5, atol=1e-6)


def test_full_coverage_is_fedavg_whatever_the_server_had() -> None:
    parts = [contribution(k, w) for k, w in ((1, 1.0), (2, 3.0))]
    for server in (adapter(0), adapter(9)):
        merged = fedit(server, parts)
        for name, value in merged.items():
            expected = 0.25 * parts[0].values[name] + 0.75 * parts[1].values[name]
            torch.testing.assert_close(value, expected)


def test_entries_that_nobody_holds_keep_the_servers_value() -> None:
    server = adapter(0)
    merged = fedit(server, [contribution(1, 1.0, share=0.0)])
    assert all(torch.equal(merged[name], server[name]) for name in server)


def test_a_legitimate_zero_counts_as_held() -> None:
    # FedSpaLLM-style code reads zeros as pruned; here only the mask says what is held.
    held = {name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()}
    zero = Contribution({n: torch.zeros(s) for n, s in SHAPES.items()}, held, 1.0)
    merged = fedit(adapter(0), [zero, contribution(1, 1.0)])
    for name, value in merged.items():
        torch.testing.assert_close(value, adapter(1)[name] / 2)


def test_client_order_is_irrelevant() -> None:
    parts = [contribution(k, 1.0 + k, share=0.6) for k in range(6)]
    forward, backward = fedit(adapter(9), parts), fedit(adapter(9), parts[::-1])
    for name in SHAPES:
        torch.testing.assert_close(forward[name], backward[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda a: {**a, "block.a.lora_A.weight": torch.full((2, 5), math.nan)}, "not finite"),
        (lambda a: {**a, "block.a.lora_B.weight": torch.full((4, 2), math.inf)}, "not finite"),
        (lambda a: {**a, "block.a.lora_B.weight": torch.zeros(4, 3)}, "wrong shape"),
        (lambda a: {"block.a.lora_A.weight": a["block.a.lora_A.weight"]}, "1 missing"),
        (lambda a: {**a, "block.b.lora_A.weight": torch.zeros(1)}, "1 unknown"),
    ],
)
def test_a_spoilt_update_is_named(spoil, expected: str) -> None:  # type: ignore[no-untyped-def]
    fault = fault_of(spoil(adapter(0)), SHAPES, train_loss=1.0)
    assert fault is not None
    assert fault.startswith("rejected: ")
    assert expected in fault


def test_a_sound_update_has_no_fault_and_a_loss_that_is_not_a_number_is_one() -> None:
    assert fault_of(adapter(0), SHAPES, train_loss=1.0) is None
    assert "loss" in str(fault_of(adapter(0), SHAPES, train_loss=math.nan))
