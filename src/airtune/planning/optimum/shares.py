"""Sharing the band at a price: the inner problem of ``exact``, solved for all clients at once.

    minimise Σ_i loss_i(b_i)  subject to  Σ_i b_i <= B,  b_i between two bounds,

where −loss_i is concave. In y = ln(s/b), the log of the SNR, the marginal gain F of a hertz is

    ln F = ln gain + ln h(z) − 2·ln(C·L(z) + U),   z = e^y,  L = ln(1+z)/z,  h = ln(1+z) − z/(1+z),

increasing in y. At the optimum ln F = ln μ for every item between its bounds. Newton's method on
all y and ln μ together needs five or six passes over the items, each a handful of vector
operations; where it does not settle, a bisection on ln μ does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.channel.rate import LN2, slope_of_snr, snr_of_share
from airtune.planning.problem import Array

# A band s·e^−300 is nothing, and squares of e^−300 are still doubles.
MAX_LOG_SNR = 300.0
# Doubles of one array that stay in a core's cache: 256 kB.
_CHUNK = 1 << 15
# Newton with bisection needs below twenty; a problem that does not settle is bisected.
_MAX_PASSES = 40
_SETTLED = 1e-7
# Relative excess of the bands over B that is rounding.
_EXACT = 1e-12
# Relative excess above which the band jumps at the price, and bisection has to split it.
_NO_JUMP = 1e-9


@dataclass(frozen=True, eq=False)
class Items:
    """What competes for the band; every array is (M,).

    Attributes:
        snr_hz: s. ``bits``: C = c·s/ln 2. ``payload``: U. All in the notation of the module.
        cap: η·ln 2, infinity where the link has no cap. ``log_cap_snr``: ln(2^η − 1).
        capped: whether any cap is finite.
    """

    snr_hz: Array
    bits: Array
    payload: Array
    cap: Array
    log_cap_snr: Array
    capped: bool

    @staticmethod
    def of(snr_hz: Array, compute_s: Array, payload: Array, efficiency: Array) -> Items:
        """Return the items with rate r(b), where C·L + U = compute_s·r + payload."""
        cap = efficiency * LN2
        with np.errstate(over="ignore"):
            log_cap_snr = np.where(cap < 30, np.log(np.expm1(np.minimum(cap, 30))), cap)
        capped = bool(np.isfinite(cap).any())
        return Items(snr_hz, compute_s * (snr_hz / LN2), payload, cap, log_cap_snr, capped)

    def part(self, rows: slice | NDArray[np.intp]) -> Items:
        """Return some of the items."""
        return Items(
            self.snr_hz[rows],
            self.bits[rows],
            self.payload[rows],
            self.cap[rows],
            self.log_cap_snr[rows],
            self.capped,
        )


@dataclass(frozen=True, eq=False)
class Marginals:
    """Per item, at a log-SNR y: the terms that everything else is made of.

    Attributes:
        share: Γ = r·ln 2/s, so that r = s·Γ/ln 2.
        weight: C·Γ + U, i.e. c·r + U.
        steep, flat: ln 2·r'(b) to the left and right; they differ only where the cap sets in.
    """

    share: Array
    weight: Array
    steep: Array
    flat: Array


def marginals(items: Items, y: Array) -> Marginals:
    """Return rate and slope of the items at log-SNR y."""
    z = np.exp(y)
    log1p = np.log1p(z)
    share = log1p / z
    slope = slope_of_snr(z, log1p)
    steep = flat = slope
    if items.capped:
        beyond = y >= items.log_cap_snr
        share = np.where(beyond, items.cap / z, share)
        steep = np.where(beyond, items.cap, slope)
        flat = np.where(y > items.log_cap_snr, items.cap, slope)
    return Marginals(share, items.bits * share + items.payload, steep, flat)


def settle(
    items: Items, log_gain: Array, low: Array, high: Array, total: float, y: Array, log_price: float
) -> tuple[Array, float, bool]:
    """Return the log-SNRs and the log-price at which the items use the band ``total``.

    Args:
        items: (M,) items.
        log_gain: (M,) ln(gain/ln 2) of the module's F.
        low: (M,) least y. ``high``: (M,) largest y.
        high: see low.
        total: the band to share among the items, Hz.
        y: where to start, with ``log_price``.
        log_price: see y.

    Returns:
        y, ln μ, and whether Newton's method settled (if not, call :func:`bisect`).
    """
    y = np.clip(y, low, high)
    log_f, inverse = np.empty_like(y), np.empty_like(y)
    left, right = -np.inf, np.inf
    for turn in range(_MAX_PASSES):
        used, spring, worst = 0.0, 0.0, 0.0
        price = log_price

        def pull(rows: slice, price: float = price) -> tuple[float, float, float]:
            part = items if rows == slice(None) else items.part(rows)
            return _pull(
                part, log_gain[rows], low[rows], high[rows], y[rows], price,
                log_f[rows], inverse[rows],
            )  # fmt: skip

        for one in _over_chunks(pull, len(y)):
            used, spring, worst = used + one[0], spring + one[1], max(worst, one[2])
        if not np.isfinite(used):
            return y, log_price, False
        excess = used / total - 1.0
        # The sign of the excess can be trusted once it is larger than Newton's own error.
        if abs(excess) > max(worst * worst, _EXACT):
            left, right = (log_price, right) if excess > 0 else (left, log_price)
        if worst > (0.5 if turn < 6 else 1e-3):
            step = 0.0  # far off: let the items follow this price first
        elif spring > 0:
            # ln Σb is nearer to straight in ln μ than Σb is.
            step = float(np.clip(np.log(used / total) * used / spring, -6.0, 6.0))
        elif abs(excess) > _EXACT:
            step = _to_next_corner(y, low, high, log_price - log_f, inverse, excess)
        else:
            step = 0.0
        log_price += step
        if not left < log_price < right:
            middle = 0.5 * (left + right) if np.isfinite(right - left) else log_price
            step, log_price = middle - price, middle
        price = log_price

        def move(rows: slice, price: float = price) -> None:
            part = items if rows == slice(None) else items.part(rows)
            _move(part, log_gain[rows], low[rows], high[rows], y[rows], price,
                  log_f[rows], inverse[rows])  # fmt: skip

        for _one in _over_chunks(move, len(y)):
            pass
        # Newton squares the error: what is below _SETTLED before the step is rounding after it.
        if abs(step) <= _SETTLED and worst <= _SETTLED and abs(excess) <= _SETTLED:
            # Unless the band jumps at this price: an item can be indifferent between two bands.
            jump = float((items.snr_hz * np.exp(-y)).sum()) / total - 1.0
            return y, log_price, abs(jump) <= _NO_JUMP
    return y, log_price, False


def bisect(
    items: Items, log_gain: Array, low: Array, high: Array, total: float
) -> tuple[Array, float]:
    """Return bands (M,) and log-price as :func:`settle` does, by bisection: slow, but sure.

    Where a price makes an item indifferent between two bands (a capped link without compute), the
    bands on both sides of the price are mixed so that the whole band is used.
    """
    top, bottom = log_f_at(items, log_gain, high), log_f_at(items, log_gain, low)
    right = float(np.max(top, initial=-700.0)) + 1.0
    left = float(np.min(bottom, initial=700.0)) - 1.0
    y = np.clip(np.zeros_like(low), low, high)
    for _ in range(200):
        middle = 0.5 * (left + right)
        if not left < middle < right:
            break
        y = _at_price(items, log_gain, low, high, middle, y)
        if float((items.snr_hz * np.exp(-y)).sum()) > total:
            left = middle
        else:
            right = middle
    rich = items.snr_hz * np.exp(-_at_price(items, log_gain, low, high, left, y))
    poor = items.snr_hz * np.exp(-_at_price(items, log_gain, low, high, right, y))
    spare = float(rich.sum() - poor.sum())
    share = 0.0 if spare <= 0 else min(max((total - float(poor.sum())) / spare, 0.0), 1.0)
    return poor + share * (rich - poor), right


def log_f_at(items: Items, log_gain: Array, y: Array) -> Array:
    """Return ln F, the log of the marginal gain of a hertz, at log-SNR y."""
    at = marginals(items, y)
    return log_gain + np.log(at.flat) - 2.0 * np.log(at.weight)


def log_snr_of_share(items: Items, share: Array, widest_hz: float, guess: Array | None) -> Array:
    """Return ln(s/b) for the band b that carries Γ = r·ln 2/s, within what ``widest_hz`` allows.

    With a guess, Newton's steps on ln L(e^y) = ln Γ; without, the closed form.
    """
    low = np.log(items.snr_hz / widest_hz)
    high = np.maximum(low, MAX_LOG_SNR)
    y = np.empty_like(low)

    def fill(rows: slice) -> None:
        near = None if guess is None else guess[rows]
        y[rows] = _log_snr(share[rows], low[rows], high[rows], near)

    _over_chunks(fill, len(y))
    if items.capped:
        with np.errstate(divide="ignore", invalid="ignore"):
            y = np.fmin(y, np.log(items.cap / share))
    return np.clip(y, low, high)


def _log_snr(share: Array, low: Array, high: Array, guess: Array | None) -> Array:
    if guess is not None:
        y = np.clip(guess, low, high)
        with np.errstate(divide="ignore"):
            target = np.log(np.minimum(share, 1.0))
        for _ in range(_MAX_PASSES):
            z = np.exp(y)
            log1p = np.log1p(z)
            step = (np.log(log1p / z) - target) * (log1p / slope_of_snr(z, log1p))
            y = np.clip(y + step, low, high)
            worst = np.abs(np.where((y > low) & (y < high), step, 0.0)).max(initial=0.0)
            if worst <= _SETTLED:
                return y
    with np.errstate(divide="ignore"):
        return np.log(snr_of_share(share))


def _pull(
    items: Items,
    log_gain: Array,
    low: Array,
    high: Array,
    y: Array,
    log_price: float,
    log_f: Array,
    inverse: Array,
) -> tuple[float, float, float]:
    """Write ln F and dy/d(ln F) at y; return predicted band, its fall with ln μ, worst residual."""
    at = np.minimum(y, items.log_cap_snr) if items.capped else y
    z = np.exp(at)
    log1p = np.log1p(z)
    slope = slope_of_snr(z, log1p)
    weight = items.bits * (log1p / z) + items.payload
    np.log(slope / (weight * weight), out=log_f)
    log_f += log_gain
    bend = z / (1.0 + z)
    np.divide(1.0, bend * bend / slope + 2.0 * items.bits * slope / (z * weight), out=inverse)
    moved, raw = _landed(items, log_gain, low, high, at, log_price, log_f, inverse)
    band = items.snr_hz * np.exp(-moved)
    free = moved == raw
    give = band * inverse
    residual = np.abs(raw - at)
    if items.capped:
        free &= moved != items.log_cap_snr
        linear = moved > items.log_cap_snr
        root = _linear_root(items, log_gain, log_price)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            per = root * items.snr_hz / (2.0 * items.bits * items.cap)
        give = np.where(linear, np.where(items.bits > 0, per, 0.0), give)
        residual = np.where(linear, 0.0, residual)
    used = float(band.sum())
    spring = float(give[free].sum()) if not free.all() else float(give.sum())
    worst = float(np.where(free, residual, 0.0).max(initial=0.0))
    return used, spring, worst


def _to_next_corner(
    y: Array, low: Array, high: Array, pull: Array, inverse: Array, excess: float
) -> float:
    """Return the step in ln μ that frees the next item when all are at their bounds.

    A higher price frees an item at its lower log-SNR (largest band), a lower one at its upper.
    """
    raw = y + pull * inverse
    if excess > 0:
        away = ((low - raw) / inverse)[(raw <= low) & (high > low)]
        return float(away.min(initial=1.0)) + 1e-3
    away = ((raw - high) / inverse)[(raw >= high) & (high > low)]
    return -float(away.min(initial=1.0)) - 1e-3


def _move(
    items: Items,
    log_gain: Array,
    low: Array,
    high: Array,
    y: Array,
    log_price: float,
    log_f: Array,
    inverse: Array,
) -> None:
    at = np.minimum(y, items.log_cap_snr) if items.capped else y
    y[:] = _landed(items, log_gain, low, high, at, log_price, log_f, inverse)[0]


def _landed(
    items: Items,
    log_gain: Array,
    low: Array,
    high: Array,
    y: Array,
    log_price: float,
    log_f: Array,
    inverse: Array,
) -> tuple[Array, Array]:
    """Return where Newton's step lands, with and without the bounds."""
    raw = y + (log_price - log_f) * inverse
    if items.capped:
        raw = np.minimum(raw, items.log_cap_snr)
        linear = _linear_log_snr(items, log_gain, log_price)
        raw = np.where(linear > items.log_cap_snr, linear, raw)
    return np.clip(raw, low, high), raw


def _linear_root(items: Items, log_gain: Array, log_price: float) -> Array:
    """c·r + U at which a capped link's marginal gain is the price: sqrt(gain·η/μ)."""
    return np.exp(0.5 * np.minimum(log_gain + np.log(items.cap) - log_price, 1400.0))


def _linear_log_snr(items: Items, log_gain: Array, log_price: float) -> Array:
    """The log-SNR where a link in its capped (linear) range asks the price; −inf without a cap."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        root = _linear_root(items, log_gain, log_price)
        # Γ = (root − U)/C, and in the capped range Γ = η·ln 2/z.
        share = (root - items.payload) / items.bits
        y = np.log(items.cap / share)
        y = np.where(root <= items.payload, MAX_LOG_SNR, np.where(share > 0, y, MAX_LOG_SNR))
        y = np.where((items.bits <= 0) & (root > items.payload), -np.inf, y)
    return np.where(np.isfinite(items.cap), y, -np.inf)


def _at_price(
    items: Items, log_gain: Array, low: Array, high: Array, log_price: float, y: Array
) -> Array:
    """Return each item's y at a price, by Newton's steps inside a shrinking bracket."""
    left, right = np.minimum(low, items.log_cap_snr), np.minimum(high, items.log_cap_snr)
    y = np.clip(y, left, right)
    log_f, inverse = np.empty_like(y), np.empty_like(y)
    plain = Items(items.snr_hz, items.bits, items.payload, items.cap, items.log_cap_snr, False)
    for _ in range(80):
        _pull(plain, log_gain, left, right, y, log_price, log_f, inverse)
        left = np.where(log_f <= log_price, np.maximum(left, y), left)
        right = np.where(log_f >= log_price, np.minimum(right, y), right)
        new = y + (log_price - log_f) * inverse
        new = np.where((new > left) & (new < right), new, 0.5 * (left + right))
        done = np.abs(new - y).max(initial=0.0) <= 1e-14 * MAX_LOG_SNR
        y = new
        if done:
            break
    if items.capped:
        linear = _linear_log_snr(items, log_gain, log_price)
        y = np.where(linear > items.log_cap_snr, linear, y)
    return np.clip(y, low, high)


_POOL: list[ThreadPoolExecutor] = []
# Threads do not survive a fork: a child process starts its own.
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork either
    os.register_at_fork(after_in_child=_POOL.clear)


def _over_chunks(work: Callable[[slice], object], count: int) -> list:
    """Run ``work`` over slices of the items: in cache-sized chunks, on all cores, when many."""
    if count <= 2 * _CHUNK:
        return [work(slice(None))]
    if not _POOL:
        mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        _POOL.append(ThreadPoolExecutor(mine))
    return list(_POOL[0].map(work, [slice(i, i + _CHUNK) for i in range(0, count, _CHUNK)]))
