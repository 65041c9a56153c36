"""A planning problem in the variables in which ``exact`` solves it.

ξ = x − (the least kept share) is what client k keeps beyond its least. It meets a deadline T when

    v + u·ξ <= (T − a − c·ξ)·r(b),   i.e.   ξ <= g(b) = ((T − a)·r − v)/(c·r + u).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.planning.optimum.shares import Items
from airtune.planning.problem import Array, PlanningProblem


@dataclass(frozen=True, eq=False)
class Reduced:
    """The clients that need band (K of them), and those that do not ("idle": they send nothing).

    A rigid client, one with nothing to choose, is given the same form: v = 0, u its payload, ξ = 1,
    and a c of our choice that is taken off a. (With c = 0 its gain from a hertz would be constant
    wherever its rate is linear, and the price would leave its band undetermined.) Cost pieces of
    slope 0 are left out: they are pruned away for nothing.

    Attributes:
        bandwidth_hz: B.
        clients: (K,) their indices in the problem. ``idle``: those of the idle clients.
        most_pruned: (all clients,) the pruning rate at ξ = 0.
        base: the largest a of all clients, also the idle ones, s; deadlines are counted from it, so
            that what is left of them keeps its digits: T = base + offset.
        slack: (K,) base − a, s. ``fixed_bits``: (K,) v. ``compute``: (K,) c, s. ``bits``: (K,) u.
        items: (K,) their links.
        rigid: (K,) whether ξ is fixed at 1. ``most``: (K,) the largest ξ.
        owner: (M,) whose a piece is, as an index into the K. ``simple``: pieces are clients.
        begin, end: (M,) range of ξ of the piece. ``gain``: (M,) w·e' > 0, falling within a client.
        head: (M,) whether a piece is its owner's first. ``heads``: their indices.
        pieces: (M,) links of the pieces.
        loss: Q with every ξ = 0 (rigid clients as they are).
        idle_slack, idle_compute, idle_owner, idle_begin, idle_end, idle_gain: the same for idle
            clients, whose ξ = (T − a)/c; the owner is an index into ``idle_slack``.
    """

    bandwidth_hz: float
    clients: NDArray[np.intp]
    idle: NDArray[np.intp]
    most_pruned: Array
    base: float
    slack: Array
    fixed_bits: Array
    compute: Array
    bits: Array
    items: Items
    rigid: NDArray[np.bool_]
    most: Array
    owner: NDArray[np.intp]
    simple: bool
    begin: Array
    end: Array
    gain: Array
    head: NDArray[np.bool_]
    heads: NDArray[np.intp]
    pieces: Items
    loss: float
    idle_slack: Array
    idle_compute: Array
    idle_owner: NDArray[np.intp]
    idle_begin: Array
    idle_end: Array
    idle_gain: Array


def reduced(problem: PlanningProblem) -> Reduced:
    """Return the problem in the variables of this module."""
    least = 1.0 - problem.max_pruning
    pace = problem.compute_full_s + problem.payload_full_bits
    # Where pruning changes neither time nor payload there is no reason to prune.
    least = np.where(pace > 0, least, 1.0 - problem.min_pruning)
    owner, begin, end, gain, head = _pieces(problem, least)
    owned = np.zeros(problem.clients, dtype=bool)
    owned[owner] = True
    start = problem.downlink_s + problem.compute_fixed_s + problem.compute_full_s * least
    payload = problem.payload_fixed_bits + problem.payload_full_bits * least
    full = problem.payload_full_bits
    sends = (payload > 0) | (owned & (full > 0))
    rigid = ~owned
    clients = np.flatnonzero(sends)
    base = float(start.max())
    compute = np.where(rigid, _stand_in_s(problem, payload), problem.compute_full_s)[clients]
    items = Items.of(
        problem.snr_hz[clients],
        compute,
        np.where(rigid, payload, full)[clients],
        problem.efficiency[clients],
    )
    most = np.zeros(problem.clients)
    np.maximum.at(most, owner, end)
    place = np.full(problem.clients, -1)
    place[clients] = np.arange(len(clients))
    mine = sends[owner]
    idle = np.flatnonzero(~sends)
    idle_place = np.full(problem.clients, -1)
    idle_place[idle] = np.arange(len(idle))
    own = place[owner[mine]]
    simple = len(own) == len(clients) and bool(head[mine].all())
    return Reduced(
        bandwidth_hz=problem.bandwidth_hz,
        clients=clients,
        idle=idle,
        most_pruned=1.0 - least,
        base=base,
        slack=base - start[clients] + np.where(rigid[clients], compute, 0.0),
        fixed_bits=np.where(rigid, 0.0, payload)[clients],
        compute=compute,
        bits=np.where(rigid, payload, full)[clients],
        items=items,
        rigid=rigid[clients],
        most=np.where(rigid, 1.0, most)[clients],
        owner=own,
        simple=simple,
        begin=begin[mine],
        end=end[mine],
        gain=gain[mine],
        head=head[mine],
        heads=np.flatnonzero(head[mine]),
        pieces=items if simple else items.part(own),
        loss=problem.pruning_loss(1.0 - least),
        idle_slack=base - start[idle],
        idle_compute=problem.compute_full_s[idle],
        idle_owner=idle_place[owner[~mine]],
        idle_begin=begin[~mine],
        idle_end=end[~mine],
        idle_gain=gain[~mine],
    )


def _stand_in_s(problem: PlanningProblem, payload_bits: Array) -> Array:
    """Return the rigid clients' c: their upload time at an equal share of the band."""
    rate = problem.rate_bps(np.full(problem.clients, problem.bandwidth_hz / problem.clients))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(payload_bits > 0, payload_bits / rate, 0.0)


def _pieces(
    problem: PlanningProblem, least: Array
) -> tuple[NDArray[np.intp], Array, Array, Array, NDArray[np.bool_]]:
    """Return owner, range in ξ, gain and whether first, of all pieces with a positive gain."""
    pieces = problem.pieces
    who = pieces.client
    upper = np.minimum(pieces.right, 1.0 - least[who])
    lower = np.maximum(pieces.left, problem.min_pruning[who])
    gain = problem.weight[who] * pieces.slope
    # A range that is nothing but rounding is no piece.
    live = (upper - lower > 1e-12) & (gain > 0)
    # Growing ξ is falling ρ, so each client's pieces are taken in reverse.
    order = np.flatnonzero(live)
    if len(who) > problem.clients:
        order = order[np.lexsort((-upper[order], who[order]))]
    owner = who[order]
    top = (1.0 - least)[owner]
    head = np.ones(len(owner), dtype=bool)
    head[1:] = owner[1:] != owner[:-1]
    return owner, np.maximum(top - upper[order], 0.0), top - lower[order], gain[order], head
