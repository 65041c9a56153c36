"""The problem at a fixed deadline T, and the bound that one solved deadline gives for others.

At a deadline T client k with band b can keep the share x_k = g_k(b) = ((T−d−c0)·r − u0)/(c1·r + u1)
of its prunable parameters, clipped to its range; g is increasing and concave in b. So

    Q*(T) = min Σ w_k·e_k(1 − g_k(b_k))  subject to  Σ b_k <= B

is convex: a price on bandwidth solves it (shares.py), and its tangents bound it from below.

**From one T to an interval.** Replace each convex e_k by an affine minorant. At fixed b the relaxed
loss is affine in T, because g_k is, so its minimum over b, Q̂(T), is *concave* in T. On an interval
it lies above its chord, T/(1 − κ·chord) is monotone, and hence

    J(T) = T·N(Q*(T)) >= min(T1·N(Q̂(T1)), T2·N(Q̂(T2)))   for all T in [T1, T2].

With the minorants that touch at a solved deadline T0 this is exact at T0, and elsewhere off by
the square of the distance from T0 only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.channel.rate import LN2
from airtune.planning.optimum.reduced import Reduced
from airtune.planning.optimum.shares import (
    MAX_LOG_SNR,
    bisect,
    log_f_at,
    log_snr_of_share,
    marginals,
    settle,
)
from airtune.planning.problem import Array

# What rounding may do to a bound, relative to the terms that it adds up.
_ROUNDING = 1e-14
# A plan's times are sums in doubles: the deadline is known to so much, relatively.
_CLOCK = 1e-15
# Stands for 0 where a logarithm is taken.
_TINY = 1e-300
# A slope that stands for infinity; its products with times and bits stay finite.
_STEEPEST = 1e100
# ln of a price that is 0 for a double: the band is not scarce.
_FREE = -700.0
# In ln(s/b): how near to a corner of its loss a client counts as on it.
_CORNER = 1e-10
_LOG_LN2 = float(np.log(LN2))


@dataclass(frozen=True, eq=False)
class Solved:
    """A solved deadline, in the notation of :class:`Reduced` (K clients, M pieces).

    Attributes:
        offset_s: T − base, s. ``deadline_s``: T.
        loss: Q at the bands found. ``bound``: no bands give a smaller Q at this T.
        slope: dQ*/dT, 1/s. ``log_price``: ln μ, μ in 1/Hz.
        band_hz: (K,) bands. ``kept``: (K,) ξ. ``steep``: (K,) slopes of the touching minorants.
        y: (K,) ln(s/b). ``piece_y``, ``piece_low``, ``piece_high``: (M,) the pieces' and bounds.
        idle_loss: the idle clients' part of Q, less their loss at ξ = 0. ``idle_slope``: its d/dT.
    """

    offset_s: float
    deadline_s: float
    loss: float
    bound: float
    slope: float
    log_price: float
    band_hz: Array
    kept: Array
    steep: Array
    y: Array
    piece_y: Array
    piece_low: Array
    piece_high: Array
    idle_loss: float
    idle_slope: float


def solve(reduced: Reduced, offset_s: float, warm: Solved | None = None) -> Solved:
    """Return the bands that minimise Q at a deadline, with a lower bound on Q.

    argmin Σ w_k·e_k(1 − g_k(b_k)) subject to Σ b_k <= B.

    Args:
        reduced: the problem.
        offset_s: T − base, at least the smallest that the band allows.
        warm: a neighbouring solved deadline to start from.
    """
    left = offset_s + reduced.slack
    low, high = _limits(reduced, left, warm)
    y = _rigid_y(reduced, left)
    piece_y, log_price = _piece_shares(reduced, left, low, high, y, warm)
    # At a corner of its loss a client must stand on it exactly: both slopes hold only there.
    # What would take the whole band or more is never reached in full.
    widest = np.log(reduced.pieces.snr_hz / reduced.bandwidth_hz) + _CORNER
    full = (low > widest) & (piece_y <= low + _CORNER)
    begun = full | ((high > widest) & (piece_y < high - _CORNER))
    piece_y = np.where(full, low, np.where(begun, piece_y, high))
    if reduced.simple:
        y = piece_y
        floor = np.where(full, 0.0, reduced.gain)
        roof = np.where(begun, reduced.gain, np.inf)
        corner = np.where(full, reduced.end, np.where(begun, np.nan, 0.0))
        at = (y, floor, roof, corner)
    else:
        at = _gathered(reduced, piece_y, begun, full, y)
    return _touched(reduced, offset_s, left, at, log_price, (piece_y, low, high))


def bound_at(
    reduced: Reduced, solved: Solved, offset_s: float, warm: tuple[Array, float] | None = None
) -> tuple[float, tuple[Array, float]]:
    """Return a lower bound on Q̂(T), the loss relaxed to the minorants that touch at ``solved``.

    Returns:
        the bound, and log-SNRs (K,) and log-price to start a neighbouring deadline from.
    """
    left = offset_s + reduced.slack
    moved = offset_s - solved.offset_s
    rest = solved.idle_loss + solved.idle_slope * moved
    items = reduced.items
    y, log_price = warm or (solved.y, solved.log_price)
    if not len(left):
        return reduced.loss + rest, (y, log_price)
    spread = _spread(reduced.fixed_bits, reduced.compute, reduced.bits, left)
    log_gain = np.log(np.maximum(solved.steep, _TINY)) + np.log(spread) - _LOG_LN2
    total = reduced.bandwidth_hz
    widest = np.log(items.snr_hz / total)
    narrowest = np.maximum(widest, MAX_LOG_SNR)
    y, log_price, fine = settle(items, log_gain, widest, narrowest, total, y, log_price)
    if not fine:
        band, log_price = bisect(items, log_gain, widest, narrowest, total)
        y = np.log(items.snr_hz) - np.log(np.maximum(band, _TINY))
    at = marginals(items, y)
    band = items.snr_hz * np.exp(-y)
    rate = at.share * (items.snr_hz / LN2)
    need = reduced.fixed_bits + reduced.bits * solved.kept
    have = (left - reduced.compute * solved.kept) * rate
    lost = solved.steep * ((need - have) / at.weight)
    pace = solved.steep * (spread / (at.weight * at.weight) / LN2)
    tangent = np.clip(np.exp(log_price), pace * at.flat, pace * at.steep)
    size = float((solved.steep * ((need + np.abs(have)) / at.weight)).sum())
    base = solved.loss - solved.idle_loss
    value = base + float(lost.sum()) + rest
    bound = _under(reduced, value, band, tangent, size + abs(base))
    slope = solved.idle_slope - float((solved.steep * (rate / at.weight)).sum())
    return bound + _CLOCK * (reduced.base + offset_s) * slope, (y, log_price)


def _under(reduced: Reduced, loss: float, band: Array, tangent: Array, size: float) -> float:
    """Return what the tangents at the bands prove: no Σ b <= B gives less.

    Each loss_k is convex in b: loss_k(b') >= loss_k(b) − G_k·(b' − b) with G_k its marginal gain;
    over all b' >= 0 with Σ b' <= B the sum is at least loss + Σ G_k·b_k − B·max G. This needs no
    optimality of the bands. Rounding is allowed for.
    """
    total = reduced.bandwidth_hz
    price = float(tangent.max(initial=0.0))
    held = float(tangent @ band)
    return loss + held - total * price - _ROUNDING * (size + held + total * price)


def _spread(fixed_bits: Array, compute: Array, bits: Array, left: Array) -> Array:
    """Return (T − a)·u + c·v, the numerator of dg/dr = spread/(c·r + u)²."""
    return np.maximum(left * bits + compute * fixed_bits, _TINY)


def _log_snr_for(
    reduced: Reduced,
    left: Array,
    kept: Array | float,
    who: NDArray[np.intp] | None,
    guess: Array | None,
) -> Array:
    """Return ln(s/b) for the band b in which the kept ξ just meets the deadline."""
    pick = slice(None) if who is None else who
    items = reduced.items if who is None else reduced.items.part(pick)
    room = left - reduced.compute[pick] * kept
    need = reduced.fixed_bits[pick] + reduced.bits[pick] * kept
    with np.errstate(divide="ignore", over="ignore"):
        share = need / np.maximum(room, _TINY) * (LN2 / items.snr_hz)
        share = np.where(need > 0, np.where(room > 0, share, np.inf), 0.0)
    return log_snr_of_share(items, share, reduced.bandwidth_hz, guess)


def _limits(reduced: Reduced, left: Array, warm: Solved | None) -> tuple[Array, Array]:
    """Return the log-SNRs (M,) at which each piece is fully kept, and at which it is begun."""
    known = (None, None) if warm is None else (warm.piece_low, warm.piece_high)
    if reduced.simple:
        low = _log_snr_for(reduced, left, reduced.end, None, known[0])
        high = _log_snr_for(reduced, left, 0.0, None, known[1])
        return low, np.maximum(low, high)
    owner = reduced.owner
    low = _log_snr_for(reduced, left[owner], reduced.end, owner, known[0])
    high = np.empty_like(low)
    high[1:] = low[:-1]
    heads = reduced.heads
    guess = None if known[1] is None else known[1][heads]
    high[heads] = _log_snr_for(reduced, left[owner[heads]], 0.0, owner[heads], guess)
    return low, np.maximum(low, high)


def _rigid_y(reduced: Reduced, left: Array) -> Array:
    """Return (K,) log-SNRs with the rigid clients' bands, and no band for the others."""
    y = np.full(len(left), MAX_LOG_SNR)
    rigid = np.flatnonzero(reduced.rigid)
    if len(rigid):
        y[rigid] = _log_snr_for(reduced, left[rigid], 1.0, rigid, None)
    return y


def _piece_shares(
    reduced: Reduced, left: Array, low: Array, high: Array, rigid_y: Array, warm: Solved | None
) -> tuple[Array, float]:
    """Return the pieces' log-SNRs (M,) and the log-price that shares the band among them."""
    items, who = reduced.pieces, slice(None) if reduced.simple else reduced.owner
    spread = _spread(reduced.fixed_bits, reduced.compute, reduced.bits, left)[who]
    log_gain = np.log(reduced.gain) + np.log(spread) - _LOG_LN2
    total = reduced.bandwidth_hz
    if not reduced.simple:
        # A client's band is its last piece's; what its earlier pieces take is counted once.
        rigid = reduced.items.snr_hz * np.exp(-rigid_y)
        total -= float(rigid[reduced.rigid].sum())
        total += float((items.snr_hz * np.exp(-high))[~reduced.head].sum())
    if not len(high):
        return high, _FREE
    most = float((items.snr_hz * np.exp(-low)).sum())
    if most <= total:
        return low, _FREE
    least = float((items.snr_hz * np.exp(-high)).sum())
    if least >= total * (1.0 - 1e-14):
        return high, float(log_f_at(items, log_gain, high).max())
    if warm is not None and warm.log_price > _FREE:
        y, log_price = warm.piece_y, warm.log_price
    else:
        y = np.clip(np.log(items.snr_hz * (len(high) / total)), low, high)
        log_price = float(np.median(log_f_at(items, log_gain, y)))
    y, log_price, fine = settle(items, log_gain, low, high, total, y, log_price)
    if fine:
        return y, log_price
    band, log_price = bisect(items, log_gain, low, high, total)
    return np.clip(np.log(items.snr_hz) - np.log(np.maximum(band, _TINY)), low, high), log_price


def _gathered(
    reduced: Reduced, piece_y: Array, begun: NDArray, full: NDArray, y: Array
) -> tuple[Array, Array, Array, Array]:
    """Return per client ln(s/b), the loss's slopes right and left of ξ, and ξ if at a corner."""
    floor = np.zeros(len(y))
    roof = np.full(len(y), np.inf)
    corner = np.ones(len(y))
    if len(piece_y):
        who = reduced.owner[reduced.heads]
        y = y.copy()
        y[who] = np.minimum.reduceat(np.where(begun | reduced.head, piece_y, np.inf), reduced.heads)
        floor[who] = np.maximum.reduceat(np.where(full, 0.0, reduced.gain), reduced.heads)
        roof[who] = np.minimum.reduceat(np.where(begun, reduced.gain, np.inf), reduced.heads)
        length = np.where(full, reduced.end - reduced.begin, 0.0)
        inside = np.where(begun & ~full, np.nan, 0.0)
        corner[who] = np.add.reduceat(length + inside, reduced.heads)
    return y, floor, roof, corner


def _touched(
    reduced: Reduced,
    offset_s: float,
    left: Array,
    at_bands: tuple[Array, Array, Array, Array],
    log_price: float,
    pieces: tuple[Array, Array, Array],
) -> Solved:
    """Return the solved deadline: Q, its bound, its slope, and the minorants that touch here."""
    items = reduced.items
    y, floor, roof, corner = at_bands
    idle_loss, idle_slope = _idle(reduced, offset_s)
    at = marginals(items, y)
    band = items.snr_hz * np.exp(-y)
    rate = at.share * (items.snr_hz / LN2)
    kept = np.clip((left * rate - reduced.fixed_bits) / at.weight, 0.0, reduced.most)
    kept = np.where(np.isnan(corner), kept, corner)
    if reduced.simple:
        taken = kept
    else:
        taken = np.clip(kept[reduced.owner] - reduced.begin, 0.0, reduced.end - reduced.begin)
    gained = float(reduced.gain @ taken)
    loss = reduced.loss - gained + idle_loss
    spread = _spread(reduced.fixed_bits, reduced.compute, reduced.bits, left)
    per_slope = spread / (at.weight * at.weight) / LN2
    price = float(np.exp(log_price))
    with np.errstate(over="ignore", divide="ignore"):
        steep = np.clip(
            np.minimum(price / np.maximum(per_slope * at.steep, _TINY), _STEEPEST), floor, roof
        )
    tangent = np.clip(price, floor * per_slope * at.flat, steep * per_slope * at.steep)
    slope = idle_slope - float((steep * (rate / at.weight)).sum())
    bound = _under(reduced, loss, band, tangent, reduced.loss + gained)
    bound += _CLOCK * (reduced.base + offset_s) * slope
    return Solved(
        offset_s=offset_s,
        deadline_s=reduced.base + offset_s,
        loss=loss,
        bound=bound,
        slope=slope,
        log_price=log_price,
        band_hz=band,
        kept=kept,
        steep=steep,
        y=y,
        piece_y=pieces[0],
        piece_low=pieces[1],
        piece_high=pieces[2],
        idle_loss=idle_loss,
        idle_slope=idle_slope,
    )


def _idle(reduced: Reduced, offset_s: float) -> tuple[float, float]:
    """Return what the idle clients' ξ = (T − a)/c changes in Q, and a subgradient of it in T."""
    if not len(reduced.idle_owner):
        return 0.0, 0.0
    who = reduced.idle_owner
    kept = (offset_s + reduced.idle_slack[who]) / reduced.idle_compute[who]
    taken = np.clip(kept - reduced.idle_begin, 0.0, reduced.idle_end - reduced.idle_begin)
    active = (kept >= reduced.idle_begin) & (kept < reduced.idle_end)
    slope = float((reduced.idle_gain / reduced.idle_compute[who])[active].sum())
    return -float(reduced.idle_gain @ taken), -slope
