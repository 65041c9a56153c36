"""Block coordinate descent: the pruning block and the bandwidth block in turn.

This is our reading of the published method. Each block is solved exactly, and still the descent can
stop above the optimum: the objective has a maximum over clients in it, so once all clients finish
together neither block alone sees a way down. docs/planning.md shows by how much.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np

from airtune.channel.rate import LN2, slope_of_snr
from airtune.planning.problem import MIN_PROGRESS, Array, Plan, PlanningProblem, priced

# Newton's steps on the deadline roughly double the correct digits; this many is never reached.
_MAX_STEPS = 200
# Sweeps end by the tolerance, after some tens at most; this only ends a cycle of rounding.
_MAX_SWEEPS = 100


def bandwidth_block(
    problem: PlanningProblem, fixed_s: Array, payload_bits: Array
) -> tuple[float, Array]:
    """Return the smallest deadline that the band allows at given pruning, and the bands.

    argmin T subject to Σ b_k(T) <= B, where b_k(T) is the band in which client k just finishes:
    u_k/r(b_k) = T − fixed_k.

    Args:
        problem: bandwidth, SNR and efficiency are taken from it.
        fixed_s: (K,) download and compute time, s.
        payload_bits: (K,) what the client sends, bit. A client with 0 gets no band.

    Returns:
        T in s, and (K,) bands in Hz whose sum is at most B.
    """
    beyond, band = upload_time(problem, fixed_s, payload_bits)
    return float(fixed_s.max()) + beyond, band


def upload_time(
    problem: PlanningProblem, fixed_s: Array, payload_bits: Array
) -> tuple[float, Array]:
    """Return the bandwidth block's T less the largest fixed time, and the bands.

    As a difference it keeps its digits where uploads are short beside computing. Σ b_k(T) falls and
    is convex in T; Newton's steps on its logarithm, kept inside a bracket.
    """
    total = problem.bandwidth_hz
    sends = payload_bits > 0
    if not sends.any():
        return 0.0, np.zeros(problem.clients)
    slack = float(fixed_s.max()) - fixed_s
    alone = np.full(problem.clients, total)
    low = max(0.0, float((_upload_s(problem, payload_bits, alone) - slack)[sends].max()))
    equal = _upload_s(problem, payload_bits, alone / sends.sum())
    high = max(low, float((equal - slack)[sends].max()))
    beyond = low
    for _ in range(_MAX_STEPS):
        band, slope = _bands_at(problem, slack + beyond, payload_bits)
        asked = float(band.sum())
        if asked <= total:
            high = min(high, beyond)
        else:
            low = max(low, beyond)
        if high <= np.nextafter(low, np.inf) or slope == 0.0:
            break
        # ln Σb is nearer to straight in T than Σb is.
        step = np.log(asked / total) * asked / -slope if np.isfinite(asked + slope) else np.inf
        if abs(step) <= 4.0 * np.spacing(beyond):
            break
        beyond = beyond + step
        if not low < beyond < high:
            beyond = 0.5 * (low + high)
            if not low < beyond < high:
                beyond = high
    if not np.isfinite(asked):
        beyond, band = high, _bands_at(problem, slack + high, payload_bits)[0]
    # What rounding left over (or took too much) is shared in proportion.
    return beyond, band * (total / band.sum())


def pruning_block(problem: PlanningProblem, bandwidth_hz: Array) -> Array:
    """Return the best pruning rates (K,) at given bands.

    argmin over the deadline T of T·N(Q(ρ(T))), where ρ_k(T) is the smallest rate with which client
    k meets T. Q(ρ(T)) is convex and piecewise linear in T, so T·N is quasi-convex and, between two
    corners, the quotient of two affine functions: its smallest value lies at a corner. All corners
    are sorted and tried at once.

    With ``max_pruning_loss`` the smallest T with Q(ρ(T)) <= Q_max is taken instead.
    """
    start, per_kept = _pace(problem, bandwidth_hz)
    least_kept = 1.0 - problem.max_pruning
    with np.errstate(invalid="ignore"):
        earliest = float((start + np.where(least_kept > 0, per_kept * least_kept, 0.0)).max())
    corner, loss = _corners(problem, start, per_kept, earliest)
    if problem.max_pruning_loss is None:
        rest = 1.0 - problem.kappa * loss
        # Where κQ reaches 1 no progress is left.
        value = np.where(rest >= MIN_PROGRESS, corner / np.maximum(rest, MIN_PROGRESS), np.inf)
        deadline = corner[int(np.argmin(value))]
    else:
        deadline = _first_below(problem, bandwidth_hz, corner, problem.max_pruning_loss)
    return pruning_at(problem, bandwidth_hz, float(deadline))


def pruning_at(problem: PlanningProblem, bandwidth_hz: Array, deadline_s: float) -> Array:
    """Return the smallest pruning rates (K,) with which the clients meet a deadline at given bands.

    A client that cannot meet it is pruned as far as it may be.
    """
    start, per_kept = _pace(problem, bandwidth_hz)
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = (deadline_s - start) / per_kept
    # A client whose time does not depend on its pruning is not pruned.
    kept = np.where(per_kept > 0, kept, 1.0)
    return np.clip(1.0 - kept, problem.min_pruning, problem.max_pruning)


def bcd(
    problem: PlanningProblem, *, tolerance: float = 1e-6, bandwidth_first: bool = False
) -> Plan:
    """Return the plan of block coordinate descent.

    Starts from equal bandwidth and no pruning, and repeats pruning block and bandwidth block until
    a sweep improves the objective by less than ``tolerance``, relatively.

    Args:
        problem: the planning problem.
        tolerance: the stopping rule's relative improvement.
        bandwidth_first: take the bandwidth block first; from an unpruned start this stops far from
            the optimum, which is what it is kept to show.
    """
    start = perf_counter()
    pruning = np.array(problem.min_pruning)
    band = np.full(problem.clients, problem.bandwidth_hz / problem.clients)
    best = priced(problem, "bcd", pruning, band)
    if bandwidth_first:
        band = _rebanded(problem, pruning)
    for _ in range(_MAX_SWEEPS):
        pruning = pruning_block(problem, band)
        band = _rebanded(problem, pruning)
        plan = priced(problem, "bcd", pruning, band, perf_counter() - start)
        improved = plan.objective_s < best.objective_s * (1.0 - tolerance)
        if plan.objective_s <= best.objective_s:
            best = plan
        if not improved:
            break
    return best


def _rebanded(problem: PlanningProblem, pruning: Array) -> Array:
    fixed = problem.downlink_s + problem.compute_s(pruning)
    return bandwidth_block(problem, fixed, problem.payload_bits(pruning))[1]


def _upload_s(problem: PlanningProblem, payload_bits: Array, bandwidth_hz: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(payload_bits > 0, payload_bits / problem.rate_bps(bandwidth_hz), 0.0)


def _bands_at(problem: PlanningProblem, left_s: Array, payload_bits: Array) -> tuple[Array, float]:
    """Return the bands that send the payloads in the time left, and d(Σb)/dT."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rate = np.where(payload_bits > 0, payload_bits / left_s, 0.0)
        band = problem.band_hz(rate)
        marginal = slope_of_snr(problem.snr_hz / band)
        capped = band * problem.efficiency <= rate
        marginal = np.where(capped, problem.efficiency * LN2, marginal)
        slope = np.where(rate > 0, -rate / left_s * LN2 / marginal, 0.0)
        return band, float(slope.sum())


def _pace(problem: PlanningProblem, bandwidth_hz: Array) -> tuple[Array, Array]:
    """Return the affine time of each client at its band: t(x) = start + per_kept·x, x = 1 − ρ."""
    rate = problem.rate_bps(bandwidth_hz)
    fixed_bits, full_bits = problem.payload_fixed_bits, problem.payload_full_bits
    with np.errstate(divide="ignore", invalid="ignore"):
        fixed_upload = np.where(fixed_bits > 0, fixed_bits / rate, 0.0)
        full_upload = np.where(full_bits > 0, full_bits / rate, 0.0)
    start = problem.downlink_s + problem.compute_fixed_s + fixed_upload
    return start, problem.compute_full_s + full_upload


def _corners(
    problem: PlanningProblem, start: Array, per_kept: Array, earliest: float
) -> tuple[Array, Array]:
    """Return the deadlines at which a client starts or ends a cost piece, and Q(ρ(T)) there."""
    pieces = problem.pieces
    who = pieces.client
    upper = np.minimum(pieces.right, problem.max_pruning[who])
    lower = np.maximum(pieces.left, problem.min_pruning[who])
    live = (upper > lower) & np.isfinite(per_kept[who])
    who, upper, lower, slope = who[live], upper[live], lower[live], pieces.slope[live]
    enter = start[who] + per_kept[who] * (1.0 - upper)
    leave = start[who] + per_kept[who] * (1.0 - lower)
    gain = problem.weight[who] * slope * (upper - lower)
    span = leave - enter
    with np.errstate(divide="ignore", invalid="ignore"):
        pace = np.where(span > 0, gain / span, 0.0)
    # Before `earliest` some client is late; what is gained by then is gained at `earliest` at once.
    begun = np.where(
        span > 0, pace * np.clip(earliest - enter, 0.0, span), gain * (earliest >= enter)
    )
    loss = problem.pruning_loss(problem.max_pruning) - float(begun.sum())
    enter, leave = np.maximum(enter, earliest), np.maximum(leave, earliest)
    corner = np.concatenate([[earliest], enter, leave])
    change = np.concatenate([[0.0], pace, -pace])
    order = np.argsort(corner)
    corner, speed = corner[order], np.cumsum(change[order])
    gained = np.concatenate([[0.0], np.cumsum(speed[:-1] * np.diff(corner))])
    return corner, np.maximum(loss - gained, 0.0)


def _first_below(
    problem: PlanningProblem, bandwidth_hz: Array, corner: Array, limit: float
) -> float:
    """Return the smallest deadline with Q(ρ(T)) <= the limit; Q is affine between corners."""

    def loss(deadline_s: float) -> float:
        return problem.pruning_loss(pruning_at(problem, bandwidth_hz, deadline_s))

    low, high = 0, len(corner) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if loss(corner[middle]) <= limit else (middle + 1, high)
    if high == 0 or loss(corner[high]) > limit:
        return float(corner[high])
    left, right = float(corner[high - 1]), float(corner[high])
    above, below = loss(left), loss(right)
    deadline = left + (above - limit) / (above - below) * (right - left) if above > limit else left
    # Rounding may leave the interpolated deadline a hair too early.
    return deadline if loss(deadline) <= limit else right
