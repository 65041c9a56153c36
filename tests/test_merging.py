"""Merging: exact where clients hold everything, careful where they do not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.adapters.names import leading, padded, rank_of
from airtune.merging import averages
from airtune.merging.functions import (
    Contribution,
    fault_of,
    fedit,
    fedmp,
    ffa_lora,
    flexlora,
    flora,
    heterofl,
    hetlora,
    merge,
    normalised,
)
from airtune.merging.rules import MERGING

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


def test_the_tensors_of_a_wrong_shape_are_named() -> None:
    names = list(SHAPES)
    one = {**adapter(0), names[0]: torch.zeros(5, 7)}
    assert fault_of(one, SHAPES, None) == (
        f"rejected: wrong shape of {names[0]}: (5, 7), not {SHAPES[names[0]]}"
    )
    every = {name: torch.zeros(5, 7) for name in SHAPES}
    fault = str(fault_of(every, SHAPES, None))
    assert f"and {len(SHAPES) - 1} more of {len(SHAPES)} tensors" in fault
    assert "; also " in fault
    assert sorted(names[1:])[0] in fault
    renamed = {f"other.{name}": value for name, value in adapter(0).items()}
    fault = str(fault_of(renamed, SHAPES, None))
    assert f"; missing {sorted(names)[0]}" in fault
    assert f"; unknown other.{sorted(names)[0]}" in fault


# Rules of the published methods, on layers with ranks that differ from client to client.

RANK = 3


def layers(seed: int, rank: int) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {
        f"{layer}.{factor}.weight": torch.randn(shape, generator=source)
        for layer, n, m in (("x", 5, 7), ("y", 6, 4))
        for factor, shape in (("lora_A", (rank, n)), ("lora_B", (m, rank)))
    }


def part(seed: int, weight: float, rank: int = RANK, to: int = RANK, drop: int = 0) -> Contribution:
    """An update of some rank, without the first `drop` inputs of layer x."""
    values = layers(seed, rank)
    held = {name: torch.ones_like(value, dtype=torch.bool) for name, value in values.items()}
    held["x.lora_A.weight"][:, :drop] = False
    values["x.lora_A.weight"][:, :drop] = 0
    return Contribution(padded(values, to), padded(held, to), weight)


def product(values: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    return values[f"{layer}.lora_B.weight"].double() @ values[f"{layer}.lora_A.weight"].double()


def weighted_sum(parts: list[Contribution], layer: str) -> torch.Tensor:
    total = sum(p.weight for p in parts)
    return sum((p.weight / total * product(p.values, layer) for p in parts), torch.zeros(()))


def merged_by(name: str, server: dict[str, torch.Tensor], parts: list[Contribution]):  # type: ignore[no-untyped-def]
    return merge(name, server, parts)


@pytest.mark.parametrize("name", list(MERGING))
def test_every_listed_rule_has_a_function_of_its_own_and_a_source(name: str) -> None:
    rule = MERGING[name]
    assert rule.description
    assert rule.source
    assert rule.function.__module__.startswith("airtune.merging.")
    assert rule.function.__name__ == name.replace("-", "_")
    others = [other.function for key, other in MERGING.items() if key != name]
    assert rule.function not in others


@pytest.mark.parametrize("name", [name for name, rule in MERGING.items() if rule.coincides])
def test_with_equal_ranks_everything_held_and_equal_weights_averages_coincide(name: str) -> None:
    server, parts = layers(0, RANK), [part(k, 2.0) for k in (1, 2, 3)]
    merged = merged_by(name, server, parts)
    for entry, expected in fedit(server, parts).items():
        torch.testing.assert_close(merged[entry], expected)


@pytest.mark.parametrize("name", list(MERGING))
def test_one_client_that_holds_everything_decides_the_product(name: str) -> None:
    server, only = layers(0, RANK), part(1, 3.0)
    only.values.update({e: v for e, v in server.items() if "lora_A" in e and name == "ffa-lora"})
    merged = merged_by(name, {e: v * ("lora_A" in e) for e, v in server.items()}, [only])
    for layer in "xy":
        torch.testing.assert_close(
            product(merged, layer), product(only.values, layer), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("name", list(MERGING))
def test_the_order_of_clients_does_not_matter_to_any_rule(name: str) -> None:
    ranks = (3, 3, 3) if name == "ffa-lora" else (1, 3, 2)
    parts = [part(k, 1.0 + k, rank, drop=k) for k, rank in enumerate(ranks)]
    server = layers(9, RANK)
    forward, backward = merged_by(name, server, parts), merged_by(name, server, parts[::-1])
    for layer in "xy":
        torch.testing.assert_close(
            product(forward, layer), product(backward, layer), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("name", ["fedit", "heterofl", "fedspallm", "fedmp", "hetlora", "flexlora"])
def test_units_and_ranks_that_nobody_holds_keep_the_servers_value(name: str) -> None:
    server = layers(9, RANK)
    merged = merged_by(name, server, [part(k, 1.0 + k, drop=2) for k in (1, 2)])
    rows = "x.lora_A.weight"
    if name == "flexlora":
        # Its factors are made anew: the clients' products use the server's values there.
        full = [
            p.values | {rows: torch.where(p.held[rows], p.values[rows], server[rows])}
            for p in (part(1, 2.0, drop=2), part(2, 3.0, drop=2))
        ]
        exact = 0.4 * product(full[0], "x") + 0.6 * product(full[1], "x")
        u, s, v = torch.linalg.svd(exact)
        best = u[:, :RANK] * s[:RANK] @ v[:RANK]
        torch.testing.assert_close(product(merged, "x"), best, rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(merged[rows][:, :2], server[rows][:, :2])
        assert not torch.allclose(merged[rows][:, 2:], server[rows][:, 2:])


def test_fedmp_pulls_what_few_hold_back_to_the_old_value_and_heterofl_does_not() -> None:
    server, parts = layers(9, RANK), [part(1, 1.0), part(2, 1.0, drop=2)]
    rows = "x.lora_A.weight"
    alone = parts[0].values[rows][:, :2]
    torch.testing.assert_close(heterofl(server, parts)[rows][:, :2], alone)
    torch.testing.assert_close(fedmp(server, parts)[rows][:, :2], (alone + server[rows][:, :2]) / 2)


def test_hetlora_weighs_zero_padded_factors_by_the_norm_of_the_product() -> None:
    parts = [part(1, 9.0, rank=1), part(2, 1.0, rank=3)]
    norms = [
        sum(float(product(p.values, layer).square().sum()) for layer in "xy") ** 0.5 for p in parts
    ]
    share = norms[0] / sum(norms)
    merged = hetlora(layers(9, RANK), parts)
    for entry, value in merged.items():
        expected = share * parts[0].values[entry] + (1 - share) * parts[1].values[entry]
        torch.testing.assert_close(value, expected)


def test_flora_adds_exactly_the_weighted_products_to_what_is_there() -> None:
    server = layers(9, RANK)
    parts = [part(1, 1.0, 1, to=1), part(2, 2.0, 3, drop=2), part(3, 5.0, 2, to=2)]
    for _ in range(3):  # the ranks of the stack pass what the layers can have
        merged = flora(server, parts)
        for layer in "xy":
            expected = product(server, layer) + weighted_sum(parts, layer)
            torch.testing.assert_close(product(merged, layer), expected, rtol=1e-5, atol=1e-4)
        server = merged
    assert rank_of(server) == 5  # min(5, 7) of x, min(6, 4) of y: enough for both


def test_flexlora_is_exact_at_full_rank_and_the_best_of_its_rank_below() -> None:
    parts = [part(1, 1.0, 1, to=5), part(2, 2.0, 3, to=5), part(3, 5.0, 2, to=5)]
    merged = flexlora(layers(9, 5), parts)
    for layer in "xy":
        torch.testing.assert_close(
            product(merged, layer), weighted_sum(parts, layer), rtol=1e-5, atol=1e-5
        )
        u, s, v = torch.linalg.svd(weighted_sum(parts, layer))
        for rank in (1, 2, 3):
            taken = product(leading(merged, rank), layer)
            torch.testing.assert_close(
                taken, u[:, :rank] * s[:rank] @ v[:rank], rtol=1e-5, atol=1e-5
            )


def test_flexlora_leaves_no_rank_that_cannot_train() -> None:
    merged = flexlora(layers(9, RANK), [part(1, 1.0, rank=1)])
    for layer in "xy":
        assert bool((merged[f"{layer}.lora_A.weight"].norm(dim=1) > 0.1).all())


def test_ffa_is_exact_while_averages_of_both_factors_are_not() -> None:
    server = layers(9, RANK)
    parts = [part(k, float(k)) for k in (1, 2)]
    for p in parts:
        p.values.update({e: v for e, v in server.items() if "lora_A" in e})
    merged = ffa_lora(server, parts)
    for layer in "xy":
        torch.testing.assert_close(
            product(merged, layer), weighted_sum(parts, layer), rtol=1e-5, atol=1e-5
        )
    free = [part(k, float(k)) for k in (1, 2)]
    assert torch.equal(ffa_lora(server, free)["x.lora_A.weight"], server["x.lora_A.weight"])
    assert not torch.allclose(product(fedit(server, free), "x"), weighted_sum(free, "x"), rtol=1e-2)


def test_fednova_undoes_unequal_numbers_of_steps() -> None:
    server = layers(9, RANK)
    parts = [replace(part(1, 1.0), steps=4), replace(part(2, 3.0), steps=1)]
    merged = fedit(server, normalised(server, parts))
    effective = 0.25 * 4 + 0.75 * 1
    for entry, old in server.items():
        paces = [(p.values[entry] - old) / p.steps for p in parts]
        expected = old + effective * (0.25 * paces[0] + 0.75 * paces[1])
        torch.testing.assert_close(merged[entry], expected, rtol=1e-5, atol=1e-5)
    same = [replace(p, steps=3) for p in parts]
    for entry, value in fedit(server, normalised(server, same)).items():
        torch.testing.assert_close(value, fedit(server, same)[entry], rtol=1e-5, atol=1e-6)


def test_a_lower_rank_is_the_first_ranks_and_padding_brings_it_back() -> None:
    whole = layers(1, RANK)
    back = padded(leading(whole, 2), RANK)
    for name, value in whole.items():
        cut = value.clone()
        (cut[2:] if "lora_A" in name else cut[:, 2:]).zero_()
        assert torch.equal(back[name], cut)


@pytest.mark.parametrize("together", [1, 20, 65_536])
def test_averaged_together_is_averaged_entry_by_entry(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(averages, "TOGETHER", together)
    rng = torch.Generator().manual_seed(5)
    shapes = {"a.lora_A.weight": (2, 7), "a.lora_B.weight": (5, 2), "b.lora_A.weight": (2, 3)}

    def drawn() -> dict[str, torch.Tensor]:
        return {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}

    server, contributions = drawn(), []
    for client, share in enumerate((1.0, 0.6, 1.0, 0.3)):
        held = {n: torch.rand(s, generator=rng) < share for n, s in shapes.items()}
        values = {n: torch.where(held[n], v, 0.0) for n, v in drawn().items()}
        contributions.append(Contribution(values, held, weight=3.7 + client))
    contributions[3].held["b.lora_A.weight"].fill_(True)
    merged = averages.fedit(server, contributions)
    nobody = averages.fedit(server, [])
    for name, old in server.items():
        total = torch.zeros(old.shape, dtype=torch.float64)
        weight = torch.zeros(old.shape, dtype=torch.float64)
        for one in contributions:
            held = one.held[name].double() * one.weight
            total += held * one.values[name].double()
            weight += held
        assert torch.equal(merged[name], (total / weight).float())
        assert torch.equal(nobody[name], old)
