"""The split over clients: every example at most once, sizes kept, skew as α says."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.data import partition
from airtune.data.partition import _draw_counts, _uneven_sizes, holders_of
from airtune.errors import InputError
from airtune.scenario import PartitionSection, load_scenario

KINDS = ("iid", "dirichlet", "quantity")


def split(labels: Any, clients: int, seed: int = 0, held_out: int = 0, **values: Any) -> Any:
    section = PartitionSection(**({"min_examples": 1} | values))
    return partition(labels, clients, section, np.random.default_rng(seed), held_out=held_out)


@given(
    st.sampled_from(KINDS),
    st.lists(st.integers(0, 4), min_size=1, max_size=120),
    st.integers(1, 8),
    st.sampled_from([1e-3, 0.1, 1.0, 100.0]),
    st.integers(0, 3),
    st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_every_example_is_used_exactly_once(
    kind: str, labels: list[int], clients: int, alpha: float, held_out: int, seed: int
) -> None:
    if len(labels) < clients * (1 + held_out):
        return
    shares = split(labels, clients, seed, held_out, kind=kind, alpha=alpha)
    assert len(shares) == clients
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(labels)))
    sizes = [len(share) for share in shares]
    assert min(sizes) >= 1 + held_out
    if kind != "quantity":
        assert max(sizes) - min(sizes) <= 1
    again = split(labels, clients, seed, held_out, kind=kind, alpha=alpha)
    assert all(np.array_equal(a, b) for a, b in zip(shares, again, strict=True))


def largest_label_share(alpha: float) -> float:
    labels = np.repeat(np.arange(5), 200)
    shares = split(labels, 10, kind="dirichlet", alpha=alpha)
    return float(np.mean([np.bincount(labels[s]).max() / len(s) for s in shares]))


def test_a_smaller_alpha_gives_each_client_fewer_labels() -> None:
    concentrated, middling, even = (largest_label_share(alpha) for alpha in (0.01, 1.0, 1000.0))
    assert concentrated > 0.65  # not 1: those who draw late share what is left
    assert even < 0.3
    assert concentrated > middling > even


def test_the_small_example_of_the_docstring() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    for seed in range(20):
        shares = split(labels, 2, seed, kind="dirichlet", alpha=0.001)
        assert sorted(labels[share].tolist() for share in shares) == [[0, 0, 0], [1, 1, 1]]


def test_dirichlet_label_shares_have_the_variance_of_the_distribution() -> None:
    """Two clients, two labels, n each: nothing runs out, so a client's share of a label is
    q ~ Beta(α/2, α/2) seen through n draws: mean ½, variance v + (¼ − v)/n, v = ¼/(α + 1).
    """
    n, alpha, seeds = 50, 2.0, 1500
    labels = np.repeat([0, 1], n)
    shares = [
        labels[split(labels, 2, seed, kind="dirichlet", alpha=alpha)[0]].mean()
        for seed in range(seeds)
    ]
    v = 0.25 / (alpha + 1)
    assert np.mean(shares) == pytest.approx(0.5, abs=4 * np.sqrt(v / seeds))
    assert np.var(shares) == pytest.approx(v + (0.25 - v) / n, rel=0.15)


def test_drawing_at_once_has_the_distribution_of_drawing_one_by_one() -> None:
    left, mixture, need = np.array([2, 1, 3]), np.array([0.5, 0.3, 0.2]), 3

    def one_by_one(taken: tuple[int, ...], probability: float) -> None:
        if sum(taken) == need:
            exact[taken] += probability
            return
        weights = np.where(left > taken, mixture, 0)
        for c in np.flatnonzero(weights):
            more = tuple(t + (i == c) for i, t in enumerate(taken))
            one_by_one(more, probability * weights[c] / weights.sum())

    exact: Counter[tuple[int, ...]] = Counter()
    one_by_one((0, 0, 0), 1.0)
    rng = np.random.default_rng(0)
    draws = 20_000
    seen = Counter(tuple(_draw_counts(need, mixture, left, rng).tolist()) for _ in range(draws))
    assert set(seen) == set(exact)
    for taken, probability in exact.items():
        sigma = np.sqrt(probability * (1 - probability) / draws)
        assert seen[taken] / draws == pytest.approx(probability, abs=4.5 * sigma)


def test_quantity_sizes_follow_alpha_and_the_smallest_size() -> None:
    labels = np.zeros(1000, dtype=int)
    spread = {
        alpha: np.std([len(s) for s in split(labels, 10, kind="quantity", alpha=alpha)])
        for alpha in (0.1, 1000.0)
    }
    assert spread[0.1] > 100 > 10 > spread[1000.0]
    shares = split(labels, 10, kind="quantity", alpha=0.01, min_examples=5, held_out=2)
    assert min(len(share) for share in shares) == 7


@given(st.integers(1, 40), st.integers(0, 200), st.sampled_from([0.05, 1.0, 50.0]))
def test_quantity_sizes_are_rounded_without_losing_an_example(
    clients: int, spare: int, alpha: float
) -> None:
    sizes = _uneven_sizes(3 * clients + spare, clients, alpha, 3, np.random.default_rng(0))
    weights = np.random.default_rng(0).dirichlet(np.full(clients, alpha))
    assert sizes.sum() == 3 * clients + spare
    assert np.all(np.abs(sizes - 3 - spare * weights) < 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_clients(kind: str) -> None:
    labels = np.random.default_rng(0).integers(0, 10, size=10_000)
    shares = split(labels, 1000, kind=kind, alpha=0.1, min_examples=5)
    assert sorted(np.concatenate(shares).tolist()) == list(range(10_000))
    assert min(len(share) for share in shares) >= 5


def test_the_first_of_a_share_are_a_fair_sample_of_it() -> None:
    labels = np.repeat([0, 1], 500)
    hits = [
        labels[split(labels, 2, seed, kind="dirichlet", alpha=5.0)[0]][:50].mean()
        - labels[split(labels, 2, seed, kind="dirichlet", alpha=5.0)[0]].mean()
        for seed in range(100)
    ]
    assert abs(np.mean(hits)) < 0.025


def test_leftovers_do_not_always_fall_to_the_last_client() -> None:
    """Clients that draw late get what is left: over seeds, each position gets it as often."""
    labels = np.repeat(np.arange(4), 25)
    spread = np.zeros(4)
    for seed, client in itertools.product(range(150), range(4)):
        share = split(labels, 4, seed, kind="dirichlet", alpha=0.05)[client]
        spread[client] += len(set(labels[share].tolist())) / 150
    assert spread.max() - spread.min() < 0.35


def test_too_few_examples_are_refused() -> None:
    message = r"10 training examples are too few for 4 clients with at least 3 each"
    with pytest.raises(InputError, match=message):
        split([0] * 10, 4, min_examples=2, held_out=1)


def test_a_reserved_label_is_held_by_its_clients_alone_and_equally() -> None:
    labels = np.repeat(np.arange(10), 100)
    section = PartitionSection(kind="dirichlet", alpha=0.3, min_examples=1)
    shares = partition(
        labels, 8, section, np.random.default_rng(3), reserved={4: {6, 7}, 9: {6, 7}}
    )
    counts = np.array([np.bincount(labels[share], minlength=10) for share in shares])
    assert counts.sum(axis=1).tolist() == [125] * 8
    assert counts[:6, [4, 9]].sum() == 0
    assert counts[6:, [4, 9]].tolist() == [[50, 50], [50, 50]]
    used = np.concatenate(shares)
    assert len(np.unique(used)) == len(used)


def test_more_of_reserved_labels_than_a_client_holds_is_scaled_down() -> None:
    labels = np.repeat(np.arange(4), 100)
    section = PartitionSection(kind="dirichlet", alpha=0.3, min_examples=1)
    shares = partition(labels, 4, section, np.random.default_rng(3), reserved={0: {1}, 2: {1, 3}})
    counts = np.array([np.bincount(labels[share], minlength=4) for share in shares])
    assert counts[1, [0, 2]].tolist() == [66, 33]
    assert counts[3, 2] == 50
    assert counts[[0, 2]][:, [0, 2]].sum() == 0


def test_reserved_labels_that_leave_a_client_too_little_are_refused() -> None:
    labels = np.repeat(np.arange(4), 100)
    section = PartitionSection(kind="dirichlet", alpha=0.3, min_examples=8)
    for reserved in ({0: {0}, 1: {0}}, {0: {0}, 1: {0}, 2: {0}}):
        with pytest.raises(InputError, match="only_labels leaves a client 0 training examples, of"):
            partition(labels, 4, section, np.random.default_rng(3), reserved=reserved)


def test_without_reserved_labels_the_split_is_as_before() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 400)
    section = PartitionSection(kind="dirichlet", alpha=0.3, min_examples=1)
    plain = partition(labels, 8, section, np.random.default_rng(1))
    empty = partition(labels, 8, section, np.random.default_rng(1), reserved={})
    assert all(np.array_equal(a, b) for a, b in zip(plain, empty, strict=True))


def test_a_label_that_no_example_has_is_refused() -> None:
    scenario = load_scenario("tiny", ['devices.0.only_labels=["2 digits", "9 digits"]'])
    with pytest.raises(InputError, match=r"no training example has the label '9 digits'; there"):
        holders_of(scenario, {1: "1 digit", 2: "2 digits"})
    known = load_scenario("tiny", ['devices.2.only_labels=["2 digits"]'])
    assert holders_of(known, {1: "1 digit", 2: "2 digits"}) == {2: {3}}


def test_only_labels_need_a_split_by_label() -> None:
    with pytest.raises(InputError, match=r"only_labels is allowed with partition\.kind"):
        load_scenario("tiny", ['devices.0.only_labels=["1"]', "partition.kind=iid"])
