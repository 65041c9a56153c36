"""Whole resource blocks: the optimum over integers, and other methods' plans in blocks.

At a fixed deadline the loss is separable and convex in the number of blocks, so handing out one
block at a time to the largest marginal gain is optimal (Fox, Operations Research 14(2), 1966). Over
the deadline: for given blocks the loss is piecewise linear in T with its corners where some client
reaches a corner of its cost curve, and T·N of an affine loss is monotone. So the best deadline is
one of these corners. They are finitely many, and an interval of them is dropped when
T1·N(Q*(T2)) is no better than the best plan known, because Q* falls as T grows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from airtune.errors import InputError
from airtune.planning.bcd import pruning_at
from airtune.planning.gaps import relative_excess
from airtune.planning.mode_plans import chosen_of
from airtune.planning.optimum.reduced import Reduced, reduced
from airtune.planning.optimum.search import exact
from airtune.planning.problem import Array, Plan, PlanningProblem, priced

# K·N doubles stand in each of several arrays: 160 MB an array at most.
_MAX_CELLS = 20_000_000
# 53 halvings part doubles of one size; the rest allow for ends that are 2^47 = 1e14 apart.
_BISECTIONS = 100


@dataclass(frozen=True, eq=False)
class _Table:
    """What each client can do with n = 0..N blocks; K clients that need band, in Reduced's terms.

    Attributes:
        small: the reduced problem. ``count``: N.
        rate: (K, N + 1) rates, bit/s.
        start, compute, fixed_bits, bits, most: (K,) a, c, v, u and largest ξ; rigid clients, which
            Reduced writes otherwise, with v = payload and ξ = 0.
    """

    small: Reduced
    count: int
    rate: Array
    start: Array
    compute: Array
    fixed_bits: Array
    bits: Array
    most: Array


def check_blocks(problem: PlanningProblem, block_hz: float, blocks: int | None) -> int:
    """Return the number of blocks, by default as many as fit the band.

    Raises:
        InputError: a width or number that is none, or blocks that are wider than the band.
    """
    if not (np.isfinite(block_hz) and block_hz > 0):
        raise InputError(f"block_hz: {block_hz!r} is not allowed; allowed: a number above 0")
    fits = int(np.floor(problem.bandwidth_hz / block_hz * (1.0 + 1e-12)))
    if not fits:
        raise InputError(
            f"block_hz: {block_hz:g} Hz is wider than bandwidth_hz, {problem.bandwidth_hz:g}"
        )
    if blocks is None:
        blocks = fits
    if blocks < 1 or blocks > fits:
        raise InputError(
            f"blocks: {blocks!r} blocks of {block_hz:g} Hz are not allowed; allowed: 1 to {fits}, "
            f"what bandwidth_hz {problem.bandwidth_hz:g} holds"
        )
    if problem.clients * (blocks + 1) > _MAX_CELLS:
        raise InputError(
            f"blocks: {blocks} blocks for {problem.clients} clients are too many to plan; allowed: "
            f"clients × blocks up to {_MAX_CELLS}"
        )
    return blocks


def exact_in_blocks(
    problem: PlanningProblem, block_hz: float, blocks: int, *, tolerance: float = 1e-6
) -> Plan:
    """Return the optimal plan in whole blocks, its bound, and what whole blocks cost.

    ``block_loss`` compares with the best plan that splits the same band (blocks·block_hz) freely.

    Raises:
        InputError: fewer blocks than clients that have to send.
    """
    band = replace(problem, bandwidth_hz=blocks * block_hz)
    table = _table(band, block_hz, blocks)
    needed = int((table.fixed_bits > 0).sum())
    if needed > blocks:
        raise InputError(
            f"blocks: {blocks} blocks are fewer than the {needed} clients that have to send; "
            "allowed: at least one block each"
        )
    free = exact(band, tolerance=tolerance)
    corner = _corners(table)
    first = _first_feasible(table, corner)
    if problem.max_pruning_loss is None:
        deadline, lower = _best_corner(problem, table, corner[first:], free, tolerance)
    else:
        deadline = _tightest(
            table, float(corner[first]), float(corner[-1]), problem.max_pruning_loss
        )
        lower = deadline * (1.0 - 1e-12)
    given = _hand_out(table, deadline)[1]
    assert given is not None
    shares = np.zeros(problem.clients, dtype=np.int64)
    shares[table.small.clients] = given
    return _in_blocks(problem, "exact", shares, block_hz, deadline, lower, free)


def in_blocks(
    problem: PlanningProblem, made: Plan, block_hz: float, blocks: int, *, keeps_shares: bool
) -> Plan:
    """Return another method's plan in whole blocks, at the pruning rates that it chose.

    Where `keeps_shares`, its shares are rounded to blocks, with at least one for each that sends.
    Otherwise (a method of the best bands) each block goes to the client that is slowest so far.
    """
    if made.modes is None:
        payload = problem.payload_bits(made.pruning)
        fixed = problem.downlink_s + problem.compute_s(made.pruning)
    else:
        payload, fixed = made.upload_s * made.rate_bps, made.downlink_s + made.compute_s
    sends = payload > 0
    if int(sends.sum()) > blocks:
        raise InputError(
            f"blocks: {blocks} blocks are fewer than the {int(sends.sum())} clients that send; "
            "allowed: at least one block each"
        )
    if keeps_shares or problem.equal_bands:
        shares = _rounded(made.bandwidth_hz, sends, blocks)
    else:
        shares = _to_the_slowest(problem, fixed, payload, block_hz, blocks)
    plan = priced(problem, made.method, made.pruning, _bands(shares, block_hz), made.solve_s,
                  chosen_of(problem, made))  # fmt: skip
    loss = relative_excess(plan.objective_s, made.objective_s)
    return replace(plan, blocks=shares, block_loss=loss)


def _in_blocks(
    problem: PlanningProblem,
    method: str,
    shares: NDArray[np.int64],
    block_hz: float,
    deadline: float,
    lower: float,
    free: Plan,
) -> Plan:
    band = _bands(shares, block_hz)
    plan = priced(problem, method, pruning_at(problem, band, deadline), band)
    lower = min(lower, plan.objective_s)
    return replace(
        plan,
        blocks=shares,
        lower_bound_s=lower,
        gap=relative_excess(plan.objective_s, lower),
        block_loss=relative_excess(plan.objective_s, free.objective_s),
        deadlines=free.deadlines,
    )


def _bands(shares: NDArray[np.int64], block_hz: float) -> Array:
    return shares.astype(np.float64) * block_hz


def _table(problem: PlanningProblem, block_hz: float, blocks: int) -> _Table:
    small = reduced(problem)
    who = small.clients
    band = np.arange(blocks + 1) * block_hz
    rate = np.zeros((len(who), blocks + 1))
    for column, hertz in enumerate(band):
        rate[:, column] = problem.rate_bps(np.full(problem.clients, hertz))[who]
    return _Table(
        small=small,
        count=blocks,
        rate=rate,
        start=small.base - small.slack + np.where(small.rigid, small.compute, 0.0),
        compute=np.where(small.rigid, 0.0, small.compute),
        fixed_bits=np.where(small.rigid, small.bits, small.fixed_bits),
        bits=np.where(small.rigid, 0.0, small.bits),
        most=np.where(small.rigid, 0.0, small.most),
    )


def _corners(table: _Table) -> Array:
    """Return, sorted, every deadline at which some client with some blocks is at a corner."""
    small = table.small
    owner = np.concatenate([np.arange(len(small.clients)), small.owner])
    kept = np.concatenate([np.zeros(len(small.clients)), small.end])
    with np.errstate(divide="ignore", invalid="ignore"):
        need = (table.fixed_bits[owner] + table.bits[owner] * kept)[:, None]
        upload = np.where(need > 0, need / table.rate[owner], 0.0)
    times = (table.start[owner] + table.compute[owner] * kept)[:, None] + upload
    idle = np.concatenate(
        [
            (small.base - small.idle_slack),
            (small.base - small.idle_slack)[small.idle_owner]
            + small.idle_compute[small.idle_owner] * small.idle_end,
        ]
    )
    corner = np.unique(np.concatenate([times[np.isfinite(times)], idle]))
    # Nothing is feasible before the last idle client is ready; that is a corner itself.
    return corner[corner >= (small.base - small.idle_slack).max(initial=0.0)]


def _hand_out(table: _Table, deadline_s: float) -> tuple[float, NDArray[np.int64] | None]:
    """Return Q and the blocks (K,) that minimise it at a deadline; infinity if none are enough."""
    small = table.small
    # A corner's own deadline must count as met, whatever rounding made of it.
    left = (deadline_s - table.start) * (1.0 + 1e-14) + 1e-14 * deadline_s
    room = left[:, None] * table.rate - table.fixed_bits[:, None]
    meets = room >= -1e-13 * table.fixed_bits[:, None]
    if not meets[:, -1].all():
        return np.inf, None
    least = np.argmax(meets, axis=1)
    spare = table.count - int(least.sum())
    if spare < 0:
        return np.inf, None
    weight = table.compute[:, None] * table.rate + table.bits[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.where(weight > 0, np.maximum(room, 0.0) / weight, 0.0)
    saved = _saved(table, np.minimum(kept, table.most[:, None]))
    columns = np.arange(1, table.count + 1)
    gain = np.where(columns > least[:, None], np.diff(saved, axis=1), np.inf)
    # Concave up to rounding: a later block never beats an earlier one of the same client.
    gain = np.minimum.accumulate(gain, axis=1)
    gain = np.where(columns > least[:, None], np.maximum(gain, 0.0), 0.0)
    given = least.astype(np.int64)
    if spare and gain.size:
        flat = np.sort(gain, axis=None)[::-1]
        price = flat[min(spare, flat.size) - 1]
        given = given + (gain > price).sum(axis=1)
        if price > 0:
            ties = (gain == price).sum(axis=1)
            before = np.concatenate([[0], np.cumsum(ties)[:-1]])
            over = table.count - int(given.sum())
            given = given + np.clip(over - before, 0, ties)
    taken = saved[np.arange(len(given)), given]
    return small.loss - float(taken.sum()) + _idle_loss(small, deadline_s), given


def _saved(table: _Table, kept: Array) -> Array:
    """Return by how much keeping ξ lowers each client's loss, (K, N + 1)."""
    small = table.small
    if small.simple:
        return small.gain[:, None] * kept
    saved = np.zeros_like(kept)
    for piece in range(len(small.owner)):
        owner = small.owner[piece]
        length = small.end[piece] - small.begin[piece]
        saved[owner] += small.gain[piece] * np.clip(kept[owner] - small.begin[piece], 0.0, length)
    return saved


def _idle_loss(small: Reduced, deadline_s: float) -> float:
    if not len(small.idle_owner):
        return 0.0
    kept = (deadline_s - (small.base - small.idle_slack))[small.idle_owner] / small.idle_compute[
        small.idle_owner
    ]
    taken = np.clip(kept - small.idle_begin, 0.0, small.idle_end - small.idle_begin)
    return -float(small.idle_gain @ taken)


def _first_feasible(table: _Table, corner: Array) -> int:
    low, high = 0, len(corner) - 1
    while low < high:
        middle = (low + high) // 2
        if np.isfinite(_hand_out(table, float(corner[middle]))[0]):
            high = middle
        else:
            low = middle + 1
    return low


def _best_corner(
    problem: PlanningProblem, table: _Table, corner: Array, free: Plan, tolerance: float
) -> tuple[float, float]:
    """Return the best deadline among the corners, and a lower bound on J over all of them."""
    losses: dict[int, float] = {}

    def value(index: int, loss_at: int | None = None) -> float:
        """J at a corner, or its lower bound with the loss of a later corner."""
        where = index if loss_at is None else loss_at
        if where not in losses:
            losses[where] = _hand_out(table, float(corner[where]))[0]
        return float(corner[index]) / (1.0 - problem.kappa * losses[where])

    last = len(corner) - 1
    near = int(np.searchsorted(corner, free.round_latency_s).clip(0, last))
    best = min({0, near, last}, key=value)
    # Walk downhill from the continuous optimum first: a good plan drops more intervals.
    step = max(1, last // 64)
    while step:
        around = {max(best - step, 0), best, min(best + step, last)}
        better = min(around, key=value)
        best, step = better, step if better != best else step // 2
    lower = np.inf
    stack = [(0, last)]
    while stack:
        low, high = stack.pop()
        bound = value(low, high)
        if bound >= value(best) * (1.0 - 0.5 * tolerance):
            lower = min(lower, bound)
            continue
        if high - low <= 1:
            best = min((best, low, high), key=value)
            lower = min(lower, value(low), value(high))
            continue
        # In the middle of the deadlines, not of the corners: the bound depends on their ratio.
        middle = int(np.searchsorted(corner, np.sqrt(corner[low] * corner[high])))
        middle = min(max(middle, low + 1), high - 1)
        best = min(best, middle, key=value)
        stack += [(low, middle), (middle, high)]
    return float(corner[best]), min(float(lower), value(best))


def _tightest(table: _Table, earliest: float, latest: float, limit: float) -> float:
    """Return the smallest deadline whose loss is within the limit."""
    if _hand_out(table, earliest)[0] <= limit:
        return earliest
    low, high = earliest, latest
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if _hand_out(table, middle)[0] <= limit:
            high = middle
        else:
            low = middle
    return high


def _to_the_slowest(
    problem: PlanningProblem, fixed_s: Array, payload_bits: Array, block_hz: float, blocks: int
) -> NDArray[np.int64]:
    """Return the blocks that minimise the round's latency at given pruning rates.

    The smallest T whose needs Σ n_k(T) fit: found among the times that whole blocks give.
    """
    sends = np.flatnonzero(payload_bits > 0)
    shares = np.zeros(problem.clients, dtype=np.int64)
    if not len(sends):
        return shares
    times = np.full((len(sends), blocks + 1), np.inf)
    for count in range(1, blocks + 1):
        rate = problem.rate_bps(np.full(problem.clients, count * block_hz))[sends]
        times[:, count] = fixed_s[sends] + payload_bits[sends] / rate
    corner = np.unique(times[np.isfinite(times)])
    low, high = 0, len(corner) - 1
    while low < high:
        middle = (low + high) // 2
        need = np.argmax(times <= corner[middle], axis=1)
        enough = (times[:, -1] <= corner[middle]).all() and need.sum() <= blocks
        low, high = (low, middle) if enough else (middle + 1, high)
    shares[sends] = np.argmax(times <= corner[low], axis=1)
    return shares


def _rounded(band_hz: Array, sends: NDArray[np.bool_], blocks: int) -> NDArray[np.int64]:
    """Return shares rounded to blocks by largest remainder, at least one for each that sends."""
    least = sends.astype(np.int64)
    wanted = np.where(sends, band_hz, 0.0)
    total = float(wanted.sum())
    if total == 0.0:
        return least
    ideal = wanted * (blocks / total)
    shares = np.maximum(np.floor(ideal).astype(np.int64), least)
    while int(shares.sum()) > blocks:
        over = np.where(shares > least, shares - ideal, -np.inf)
        shares[int(np.argmax(over))] -= 1
    short = np.argsort(np.where(sends, shares - ideal, np.inf), kind="stable")
    shares[short[: blocks - int(shares.sum())]] += 1
    return shares
