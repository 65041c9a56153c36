"""The broadcast that opens a round, by hand: what each client needs of it, and when it has it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from airtune.assignment import Mode
from airtune.channel import ChannelState
from airtune.models.workload import full_sizes, payload_bits
from airtune.planning.broadcast import (
    Broadcast,
    Link,
    Offer,
    broadcasts,
    heard_modes,
    link_of,
    needed_bits,
    offer_of,
    waits_s,
)
from airtune.planning.inputs import situation_of_scenario
from airtune.planning.modes import ClientMode
from airtune.scenario import Scenario, load_scenario
from oracles import random_problem


def tiny(*settings: str) -> Scenario:
    return load_scenario("tiny", list(settings))


def link(needed: list[float], whole: list[bool], rates: list[float]) -> Link:
    clients = len(needed)
    air = ChannelState(np.full(clients, 1e8), np.full(clients, 5.0), np.array(rates))
    return Link(air, np.array(needed), np.array(whole), np.arange(clients))


def test_what_is_sent_comes_change_first_and_at_the_slowest_listeners_rate() -> None:
    sent = link([40.0, 100.0, 60.0, 30.0], [False, True, False, False], [10.0, 5.0, 4.0, 1.0])
    everyone = np.ones(4, dtype=bool)
    assert sent.everyone.tolist() == [True] * 4
    assert sent.rate_bps(everyone) == 1.0
    assert sent.received_bits(everyone).tolist() == [40.0, 160.0, 60.0, 30.0]
    assert sent.bits(everyone) == 160.0
    assert sent.needed_s(everyone).tolist() == [40.0, 160.0, 60.0, 30.0]
    some = np.array([True, True, False, False])
    assert sent.rate_bps(some) == 5.0
    assert sent.received_bits(some).tolist() == [40.0, 140.0, 0.0, 0.0]
    assert sent.bits(some) == 140.0
    assert sent.needed_s(some).tolist() == [8.0, 28.0, 0.0, 0.0]
    alone = np.array([False, True, False, False])
    assert sent.received_bits(alone).tolist() == [0.0, 100.0, 0.0, 0.0]


def test_what_a_client_needs_follows_from_its_rank_and_what_it_holds() -> None:
    scenario = tiny("aggregation.downlink_change_bits=4", "aggregation.payload_bits_per_value=32",
                    "aggregation.uplink_change_bits=2")  # fmt: skip
    at = situation_of_scenario(scenario)
    sizes = full_sizes(at.shape)
    modes = tuple(replace(at.modes[0], rank=rank) for rank in (4, 2, 1))
    bits, whole = needed_bits(scenario, at.shape, modes, 7.0, 2)
    assert whole.tolist() == [True, False, False]
    plain = replace(modes[0], bits_per_value=32, bits_per_scale=0)
    few = [replace(mode, bits_per_value=4, bits_per_scale=32) for mode in modes]
    expected = [payload_bits(at.shape, sizes, one) for one in (plain, few[1], few[2])]
    assert bits.tolist() == expected
    found = link_of(scenario, at.shape, modes, at.link.air, held_ranks=(4, 1, 0))
    assert found.held_ranks.tolist() == [4, 1, 0]
    assert found.needs_whole.tolist() == [False, True, True]
    assert found.needed_bits[0] == payload_bits(at.shape, sizes, few[0])
    offer = offer_of(scenario, at.shape, modes, found, 1)
    assert offer.modes is modes
    assert offer.needs_whole.tolist() == [True, True, False]
    assert offer.needed_bits.tolist() == needed_bits(scenario, at.shape, modes, 7.0, 1)[0].tolist()
    # Without changes everyone needs the adapter, at any rank that it holds.
    full = tiny("aggregation.payload_bits_per_value=32")
    bits, whole = needed_bits(full, at.shape, modes, 7.0, 0)
    assert not whole.any()
    assert bits[2] == payload_bits(at.shape, sizes, replace(plain, rank=1))
    assert link_of(full, at.shape, modes, at.link.air).held_ranks.tolist() == [0, 0, 0]


def test_where_clients_restart_all_need_what_was_stacked() -> None:
    scenario = tiny("aggregation.rule=flora")
    at = situation_of_scenario(scenario)
    first = link_of(scenario, at.shape, at.modes, at.link.air)
    assert first.needed_bits.tolist() == [1024.0] * 4
    later = link_of(scenario, at.shape, at.modes, at.link.air, [5e4, 0.0, 6e4, 7e4])
    assert later.needed_bits.tolist() == [5e4, 1024.0, 6e4, 7e4]
    assert not later.needs_whole.any()
    assert offer_of(scenario, at.shape, at.modes[:2], later, 3).needed_bits.tolist() == [7e4] * 2


def offer(*ranks: tuple[int, float, bool]) -> Offer:
    return Offer(
        tuple(Mode(local_steps=1, rank=rank, bits_per_value=16) for rank, _, _ in ranks),
        np.array([bits for _, bits, _ in ranks]),
        np.array([whole for _, _, whole in ranks]),
    )


def test_a_broadcast_is_at_the_rate_of_anyone_who_may_be_the_slowest() -> None:
    air = link([1.0] * 4, [False] * 4, [3.0, 2.0, 9.0, 1.0])
    plain = [offer((4, 40.0, False), (1, 10.0, False))] * 4
    may = np.array([0.5, np.inf, 0.5, 0.5])
    # The second cannot sit out: no broadcast is faster than what it can receive.
    assert broadcasts(air, may, plain) == [Broadcast(1.0, 4, 0.0), Broadcast(2.0, 4, 0.0)]
    must = np.full(4, np.inf)
    assert broadcasts(air, must, plain) == [Broadcast(1.0, 4, 0.0)]
    free = np.full(4, 0.5)
    assert [one.rate_bps for one in broadcasts(air, free, plain)] == [1.0, 2.0, 3.0, 9.0]


def test_before_the_whole_adapter_comes_a_change_of_any_rank_or_none() -> None:
    air = link([1.0] * 2, [False] * 2, [3.0, 2.0])
    offers = [offer((4, 12.0, False), (1, 3.0, False)), offer((4, 40.0, True), (2, 6.0, False))]
    assert broadcasts(air, np.full(2, np.inf), offers) == [
        Broadcast(2.0, 4, 12.0), Broadcast(2.0, 2, 6.0), Broadcast(2.0, 1, 3.0),
        Broadcast(2.0, 0, 0.0),
    ]  # fmt: skip


def test_at_a_broadcast_the_slower_sit_out_and_the_others_wait() -> None:
    base = random_problem(np.random.default_rng(3), 3)
    mode = ClientMode("m", 0.0, 5.0, 0.0, 1e3, 0.0, 0.0, 0.5)
    own = (mode, replace(mode, name="n", compute_fixed_s=1.0))
    asked = replace(base, modes=(own, own, own), absent_cost=np.full(3, 0.5))
    air = link([1.0] * 3, [False] * 3, [2.0, 4.0, 8.0])
    offers = [offer((4, 12.0, False), (1, 4.0, False)), offer((4, 40.0, True), (2, 8.0, False)),
              offer((4, 40.0, True), (1, 4.0, False))]  # fmt: skip
    sent = Broadcast(4.0, 1, 6.0)
    assert waits_s(offers[1], sent).tolist() == [(40.0 + 6.0) / 4.0, 2.0]
    heard = heard_modes(asked, offers, air, sent).modes
    assert heard is not None
    found = [[(m.name, m.compute_fixed_s, m.min_pruning) for m in one or ()] for one in heard]
    assert found == [
        [("m", 5.0, np.inf), ("n", 1.0, np.inf)],  # cannot hear it
        [("m", 5.0 + 11.5, 0.0), ("n", 1.0, np.inf)],  # its rank 2 of the change is not sent
        [("m", 5.0 + 11.5, 0.0), ("n", 1.0 + 1.0, 0.0)],
    ]
