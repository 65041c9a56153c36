"""Many nodes of the search over modes at once: prices, bands, and the bound over an interval.

A node is an interval of deadlines and the choices that are left to each client in it. At a deadline
T0 inside and a price μ on bandwidth each client takes the choice and the band of least loss + μ·b
alone, and

    D(μ, T0) = Σ_k min_i min_b (loss_ki(b, T0) + μ·b) − μ·B  <=  Q*(T0).

**From T0 to the interval.** At T0 each choice's loss is replaced by L0 − S·(ξ − ξ0), which lies
below it, with the slope S that makes the band found at T0 the best one. For a fixed band and choice
that is affine in T, because ξ is, so its least over bands and choices, summed over the clients, is
concave in T at this μ. Above its chord between two deadlines it stays, so where it is above an
affine function of T at both ends of an interval it is above it everywhere between.

A budget's limit on ξ does not depend on T. Where both limits hold at once, min(ξ1, ξ2) is replaced
by λ·ξ1 + (1 − λ)·ξ2, which lies above it, with the λ that fits the price.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from airtune.channel.rate import LN2, slope_of_snr, snr_of_share
from airtune.planning.optimum.batch import Batch, part_of
from airtune.planning.optimum.choices import Choices
from airtune.planning.optimum.shares import MAX_LOG_SNR
from airtune.planning.problem import Array

# Stands for 0 where a logarithm or a quotient is taken.
TINY = 1e-300
_LOG_LN2 = float(np.log(LN2))


def rate_at(rows: Choices, y: Array) -> Array:
    """Return the rates, bit/s, at log-SNRs y = ln(s/b)."""
    z = np.exp(y)
    share = np.log1p(z) / z
    if rows.capped:
        share = np.minimum(share, rows.cap / z)
    return rows.snr_hz * (share / LN2)


def log_snr_for(rows: Choices, left: Array, kept: Array) -> Array:
    """Return ln(s/b) for the smallest band that keeps ξ within deadline and budget.

    −infinity where no band does, MAX_LOG_SNR where hardly any band is needed.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        need, room = rows.fixed + rows.full * kept, left - rows.compute * kept
        # A deadline that was taken from this very choice must count as met.
        room = np.where(room < 0, np.where(room > -1e-14 * np.abs(left), 0.0, room), room)
        rate = np.where(need > 0, np.where(room > 0, need / room, np.inf), 0.0)
        rate = np.where((room < 0) & (need <= 0), np.inf, rate)
        spent, purse = (
            rows.energy_fixed + rows.energy_full * kept,
            (rows.energy - rows.energy_compute * kept),
        )
        dear = np.where(spent > 0, np.where(purse > 0, spent / purse, np.inf), 0.0)
        rate = np.where(rows.budgeted, np.maximum(rate, dear), rate)
        share = rate * (LN2 / rows.snr_hz)
        y = np.log(snr_of_share(share))
        if rows.capped:
            y = np.fmin(y, np.log(rows.cap / share))
    return np.minimum(y, MAX_LOG_SNR)


@dataclass(frozen=True, eq=False)
class Branch:
    """One limit on ξ: (room·r − fixed)/(compute·r + full), and the log of its spread over ln 2."""

    room: Array
    fixed: Array
    compute: Array
    full: Array
    log_spread: Array

    @staticmethod
    def of(room: Array, fixed: Array, compute: Array, full: Array) -> Branch:
        """Return a limit; a spread that is not positive counts as tiny."""
        spread = np.maximum(room * full + compute * fixed, TINY)
        return Branch(room, fixed, compute, full, np.log(spread) - _LOG_LN2)

    def part(self, rows: NDArray) -> Branch:
        """Return the limit of some rows."""
        return Branch(*(getattr(self, field.name)[rows] for field in fields(Branch)))

    def kept(self, rate: Array) -> Array:
        """Return the largest ξ at a rate."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return (self.room * rate - self.fixed) / (self.compute * rate + self.full)

    def slopes(self, rows: Choices, y: Array, rate: Array) -> tuple[Array, Array]:
        """Return dξ/db to the left and to the right; they differ where the cap sets in."""
        z = np.exp(y)
        steep = flat = slope_of_snr(z)
        if rows.capped:
            steep = np.where(y >= rows.log_cap_snr, rows.cap, steep)
            flat = np.where(y > rows.log_cap_snr, rows.cap, flat)
        weight = self.compute * rate + self.full
        with np.errstate(divide="ignore", over="ignore"):
            scale = np.exp(self.log_spread) / (weight * weight)
        return scale * steep, scale * flat


def deadline_limit(rows: Choices, left: Array) -> Branch:
    """Return what the deadline allows."""
    return Branch.of(left, rows.fixed, rows.compute, rows.full)


def budget_limit(rows: Choices) -> Branch:
    """Return what the energy budget allows."""
    return Branch.of(rows.energy, rows.energy_fixed, rows.energy_compute, rows.energy_full)


def stationary(
    rows: Choices, branch: Branch, log_weight: Array, low: Array, high: Array, y: Array, steps: int
) -> Array:
    """Return the log-SNRs at which weight·dξ/db = 1, after some steps of Newton's method.

    Args:
        rows: the choices.
        branch: their limit on ξ.
        log_weight: ln(S/μ).
        low: least y (the whole band). ``high``: largest y.
        high: see low.
        y: where to start.
        steps: how many.
    """
    bits = branch.compute * (rows.snr_hz / LN2)
    gain = log_weight + branch.log_spread
    linear = _capped_log_snr(rows, branch, bits, gain) if rows.capped else None
    for _ in range(steps):
        at = np.minimum(y, rows.log_cap_snr) if rows.capped else y
        z = np.exp(at)
        log1p = np.log1p(z)
        slope = slope_of_snr(z, log1p)
        weight = bits * (log1p / z) + branch.full
        bend = z / (1.0 + z)
        step = gain + np.log(slope / (weight * weight))
        inverse = 1.0 / (bend * bend / slope + 2.0 * bits * slope / (z * weight))
        # ln F is steep or flat by turns: a step of more than 3 in ln(s/b) is not to be trusted.
        y = at - np.clip(step * inverse, -3.0, 3.0)
        if linear is not None:
            y = np.minimum(y, rows.log_cap_snr)
            y = np.where(linear > rows.log_cap_snr, linear, y)
        y = np.clip(y, low, high)
    return y


def _capped_log_snr(rows: Choices, branch: Branch, bits: Array, gain: Array) -> Array:
    """Return the log-SNR where a link in its capped, linear range asks the price."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        root = np.exp(0.5 * np.minimum(gain + np.log(rows.cap), 1400.0))
        share = (root - branch.full) / bits
        y = np.where(root <= branch.full, MAX_LOG_SNR, np.log(rows.cap / share))
        y = np.where((bits <= 0) & (root > branch.full), -np.inf, y)
    return np.where(np.isfinite(rows.cap), y, -np.inf)


@dataclass(frozen=True, eq=False)
class Movers:
    """The rows (m,) with a band to choose: where they are, and what they can do.

    Attributes:
        index: (m,) in the batch. ``rows``: the choices. ``node``: theirs.
        deadline: their limit.
        low, high: range of ln(s/b). ``log_gain``: ln of w·G.
        costly: those with a budget, in the m. ``small``: their choices. ``first``, ``budget``:
            their two limits.
    """

    index: NDArray[np.intp]
    rows: Choices
    node: NDArray[np.intp]
    deadline: Branch
    low: Array
    high: Array
    log_gain: Array
    costly: NDArray[np.intp]
    small: Choices
    first: Branch
    budget: Branch

    @staticmethod
    def of(batch: Batch, index: NDArray[np.intp], deadline: Branch, most: Array, least: Array):  # type: ignore[no-untyped-def]
        """Return what some rows of a batch can do."""
        rows, limit = part_of(batch.rows, index), deadline.part(index)
        costly = np.flatnonzero(rows.bounded)
        small = part_of(rows, costly)
        with np.errstate(divide="ignore"):
            log_gain = np.log(rows.gain)
        return Movers(
            index=index,
            rows=rows,
            node=batch.node[index],
            deadline=limit,
            low=most[index],
            high=least[index],
            log_gain=log_gain,
            costly=costly,
            small=small,
            first=limit.part(costly),
            budget=budget_limit(small),
        )


@dataclass(frozen=True, eq=False)
class Limits:
    """What the rows can do at one deadline a node.

    Attributes:
        deadline: the deadline's limit on ξ. ``budget``: the budget's, for ``costly`` rows.
        costly: the rows whose budget bounds ξ.
        widest: ln(s/B). ``most``: ln(s/b) at ξ = high. ``least``: at ξ = low.
        alive: it can be chosen at this deadline. ``sends``: it needs band.
        quiet_kept: ξ of the silent rows.
        move: the rows that have a band to choose, with their own choices, limits and bounds.
    """

    deadline: Branch
    budget: Branch
    costly: NDArray[np.intp]
    widest: Array
    most: Array
    least: Array
    alive: NDArray[np.bool_]
    sends: NDArray[np.bool_]
    quiet_kept: Array
    move: Movers


def limits_at(batch: Batch, deadline: Array) -> Limits:
    """Return the limits at one deadline a node."""
    rows = batch.rows
    left = batch.left_s(deadline)
    sends = ~rows.silent
    widest = np.log(rows.snr_hz / batch.total)
    least = log_snr_for(rows, left, rows.low)
    most = least.copy()
    move = np.flatnonzero(rows.high > rows.low)
    most[move] = log_snr_for(part_of(rows, move), left[move], rows.high[move])
    with np.errstate(divide="ignore", invalid="ignore"):
        quiet = np.where(rows.compute > 0, left / rows.compute, rows.high)
        slack = left + 1e-14 * np.abs(left)
        ready = np.where(rows.compute > 0, quiet >= rows.low, slack >= 0) | rows.absent
    alive = np.where(sends, least >= widest - 1e-13, ready)
    costly = np.flatnonzero(rows.bounded)
    deadlines = deadline_limit(rows, left)
    most = np.clip(most, widest, np.maximum(least, widest))
    least = np.maximum(least, widest)
    return Limits(
        deadline=deadlines,
        budget=budget_limit(part_of(rows, costly)),
        costly=costly,
        widest=widest,
        most=most,
        least=least,
        alive=alive,
        sends=sends,
        quiet_kept=np.clip(quiet, rows.low, rows.high),
        move=Movers.of(batch, np.flatnonzero((most < least) & alive), deadlines, most, least),
    )


@dataclass(frozen=True, eq=False)
class Taken:
    """What each row would take at a price: ln(s/b), ξ, band, loss, and loss + μ·band."""

    y: Array
    kept: Array
    band: Array
    loss: Array
    value: Array


def at_price(batch: Batch, limits: Limits, log_price: Array, y: Array, steps: int) -> Taken:
    """Return what each row takes at one price a node; one that is not alive has value infinity."""
    rows, move = batch.rows, limits.move
    price = log_price[batch.node]
    start, y = y, limits.least.copy()
    if len(move.index):
        y[move.index] = _between(move, log_price[move.node], start[move.index], steps)
    kept = kept_at(rows, limits, y)
    band = np.where(limits.sends, rows.snr_hz * np.exp(-y), 0.0)
    loss = rows.loss - rows.gain * (kept - rows.low)
    value = np.where(limits.alive, loss + np.exp(price) * band, np.inf)
    return Taken(y, kept, band, loss, value)


def _between(move: Movers, price: Array, y: Array, steps: int) -> Array:
    low, high, weight = move.low, move.high, move.log_gain - price
    best = stationary(move.rows, move.deadline, weight, low, high, np.clip(y, low, high), steps)
    costly = move.costly
    if len(costly):
        small, one, two = move.small, move.first, move.budget
        low, high = low[costly], high[costly]
        first_y = best[costly]
        second_y = stationary(
            small, two, weight[costly], low, high, np.clip(y[costly], low, high), steps + 2
        )
        rate = rate_at(small, first_y)
        by_first = one.kept(rate) <= two.kept(rate)
        rate = rate_at(small, second_y)
        by_second = two.kept(rate) <= one.kept(rate)
        cross = np.clip(_crossing(small, one, two), low, high)
        best[costly] = np.where(by_first, first_y, np.where(by_second, second_y, cross))
    return best


def _crossing(rows: Choices, one: Branch, two: Branch) -> Array:
    """Return ln(s/b) where both limits allow the same: their numerators meet at one rate."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        square = one.room * two.compute - two.room * one.compute
        linear = one.room * two.full - one.fixed * two.compute
        linear -= two.room * one.full - two.fixed * one.compute
        rate = -linear / square
        share = np.where(rate > 0, rate * (LN2 / rows.snr_hz), 0.0)
        y = np.log(snr_of_share(share))
        if rows.capped:
            y = np.fmin(y, np.log(rows.cap / share))
    return np.nan_to_num(y, nan=0.0, posinf=MAX_LOG_SNR, neginf=-MAX_LOG_SNR)


def kept_at(rows: Choices, limits: Limits, y: Array) -> Array:
    """Return ξ at log-SNRs y, within each row's range."""
    rate = rate_at(rows, y)
    kept = np.where(limits.sends, limits.deadline.kept(rate), limits.quiet_kept)
    if len(limits.costly):
        kept[limits.costly] = np.minimum(
            kept[limits.costly], limits.budget.kept(rate[limits.costly])
        )
    return np.clip(kept, rows.low, rows.high)
