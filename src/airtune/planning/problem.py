"""What is planned (PlanningProblem), what comes out (Plan), and the one way a plan is priced.

The symbols, and why the costs are affine, are in docs/planning.md. SI units throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airtune.channel.rate import band_of_rate, rate_of_band
from airtune.errors import InputError
from airtune.planning.curves import Pieces, checked_curve, pieces_of

Array = NDArray[np.float64]

# A client that needs longer than this with the whole band for itself counts as unreachable
# (thirty million years; it also keeps every later product finite).
MAX_LATENCY_S = 1e15
# κ·Q must stay below 1 by more than rounding, or N = 1/(1 − κQ) means nothing.
MIN_PROGRESS = 1e-9
# A bound on Q may lie so much below the least Q, relatively, by rounding.
_LOSS_SLACK = 1e-9

PER_CLIENT = (
    "weight",
    "snr_hz",
    "downlink_s",
    "compute_fixed_s",
    "compute_full_s",
    "payload_fixed_bits",
    "payload_full_bits",
    "min_pruning",
    "max_pruning",
)
"""Fields that every client must have, a number each."""


@dataclass(frozen=True, eq=False)
class PlanningProblem:
    """One round's joint pruning and bandwidth problem over K clients, checked on construction.

    Attributes:
        bandwidth_hz: B, the uplink band to share, Hz.
        kappa: κ, how much pruning slows learning; N(Q) = 1/(1 − κQ).
        names: K distinct client names.
        weight: (K,) w, normalised to sum 1.
        snr_hz: (K,) s, received power over noise density, Hz; the SNR in a band b is s/b.
        downlink_s: (K,) time to receive the round's adapter.
        compute_fixed_s: (K,) compute time that pruning does not touch.
        compute_full_s: (K,) compute time that scales with 1 − pruning.
        payload_fixed_bits: (K,) uplink bits that pruning does not touch.
        payload_full_bits: (K,) uplink bits that scale with 1 − pruning.
        min_pruning: (K,) least pruning, in [0, 1] (memory sets it).
        max_pruning: (K,) most pruning, in [min_pruning, 1].
        max_spectral_efficiency: (K,) η in bit/s/Hz, infinity where the link has no cap.
        pruning_cost: per client the breakpoints (J, 2) of the convex cost e(ρ), or None for
            e(ρ) = ρ; None for all linear.
        max_pruning_loss: Q_max; if given, T is minimised subject to Q <= Q_max instead of N·T.

    Raises:
        InputError: naming the client and the field that cannot be used.
    """

    bandwidth_hz: float
    kappa: float
    names: tuple[str, ...]
    weight: Array
    snr_hz: Array
    downlink_s: Array
    compute_fixed_s: Array
    compute_full_s: Array
    payload_fixed_bits: Array
    payload_full_bits: Array
    min_pruning: Array
    max_pruning: Array
    max_spectral_efficiency: Array | None = None
    pruning_cost: tuple[Array | None, ...] | None = None
    max_pruning_loss: float | None = None

    def __post_init__(self) -> None:
        _set(self, "names", tuple(self.names))
        _check_names(self.names)
        _check_number("bandwidth_hz", self.bandwidth_hz, positive=True)
        _check_number("kappa", self.kappa)
        if self.max_pruning_loss is not None:
            _check_number("max_pruning_loss", self.max_pruning_loss)
        for field in PER_CLIENT:
            _set(self, field, _client_array(self.names, field, getattr(self, field)))
        efficiency = self.max_spectral_efficiency
        if efficiency is None:
            efficiency = np.full(self.clients, np.inf)
        _set(self, "max_spectral_efficiency", _efficiencies(self.names, efficiency))
        total = float(self.weight.sum())
        if not 0 < total < np.inf:
            raise InputError(f"weight: the weights sum to {total!r}; allowed: a positive sum")
        _set(self, "weight", _frozen(self.weight / total))
        _check_pruning(self)
        _set(self, "pruning_cost", _curves(self))
        _check_progress(self)
        _check_reach(self)

    @property
    def clients(self) -> int:
        """K, the number of clients."""
        return len(self.names)

    def of_clients(
        self, index: NDArray[np.intp], names: Sequence[str] | None = None, **changes: Any
    ) -> PlanningProblem:
        """Return the problem of some of the clients, in the order of `index`, weights normalised.

        Args:
            index: which clients; one that is there twice needs `names`.
            names: theirs; default: as they are called here.
            changes: further fields that are different.
        """
        curves = self.pruning_cost
        return replace(
            self,
            names=tuple(names or (self.names[k] for k in index)),
            pruning_cost=None if curves is None else tuple(curves[k] for k in index),
            **{
                field: getattr(self, field)[index]
                for field in (*PER_CLIENT, "max_spectral_efficiency")
            },
            **changes,
        )

    @cached_property
    def pieces(self) -> Pieces:
        """The linear pieces of all cost curves, client after client."""
        return pieces_of(self.clients, self.pruning_cost)

    @property
    def efficiency(self) -> Array:
        """(K,) η, infinity where the link has no cap."""
        assert self.max_spectral_efficiency is not None
        return self.max_spectral_efficiency

    def compute_s(self, pruning: Array) -> Array:
        """(K,) c(ρ) = compute_fixed_s + compute_full_s·(1 − ρ), s."""
        return self.compute_fixed_s + self.compute_full_s * (1.0 - pruning)

    def payload_bits(self, pruning: Array) -> Array:
        """(K,) u(ρ) = payload_fixed_bits + payload_full_bits·(1 − ρ), bit."""
        return self.payload_fixed_bits + self.payload_full_bits * (1.0 - pruning)

    def rate_bps(self, bandwidth_hz: Array) -> Array:
        """(K,) r(b) = b·min(η, log2(1 + s/b)), bit/s."""
        return rate_of_band(bandwidth_hz, self.snr_hz, self.efficiency)

    def band_hz(self, rate_bps: Array) -> Array:
        """(K,) the smallest band with the wanted rate, Hz; infinity where none has it."""
        return band_of_rate(rate_bps, self.snr_hz, self.efficiency)

    def cost(self, pruning: Array) -> Array:
        """(K,) e(ρ), what each client's pruning costs in learning."""
        if self.pruning_cost is None:
            return pruning
        pieces = self.pieces
        rate = pruning[pieces.client]
        share = pieces.slope * (np.clip(rate, pieces.left, pieces.right) - pieces.left)
        return np.add.reduceat(share, pieces.first)

    def pruning_loss(self, pruning: Array) -> float:
        """Q = Σ w·e(ρ)."""
        return float(self.weight @ self.cost(pruning))


@dataclass(frozen=True, eq=False)
class Plan:
    """Each client's pruning and band, what they take, and how far from the optimum they can be.

    Attributes:
        method: the name of the method that made the plan.
        names: K client names; every array below is (K,) in this order.
        round_latency_s: T, the largest ``total_s``.
        pruning_loss: Q. ``rounds_factor``: N(Q) = 1/(1 − κQ).
        objective_s: J = N·T, or T where the problem bounds Q by ``max_pruning_loss``.
        lower_bound_s: no plan has a smaller objective; None where it was not asked for.
        gap: objective_s / lower_bound_s − 1; None with it.
        solve_s: wall time of the solution, without the bound where another method needs one.
        deadlines: how many deadlines ``exact`` solved for plan and bound; 0 for the others.
        blocks: (K,) whole resource blocks, where the plan was asked for in blocks.
        block_loss: objective_s over the best plan without whole blocks, less 1; None without.
    """

    method: str
    names: tuple[str, ...]
    pruning: Array
    bandwidth_hz: Array
    rate_bps: Array
    downlink_s: Array
    compute_s: Array
    upload_s: Array
    total_s: Array
    round_latency_s: float
    pruning_loss: float
    rounds_factor: float
    objective_s: float
    lower_bound_s: float | None
    gap: float | None
    solve_s: float
    deadlines: int = 0
    blocks: NDArray[np.int64] | None = None
    block_loss: float | None = None


def priced(
    problem: PlanningProblem, method: str, pruning: Array, bandwidth_hz: Array, solve_s: float = 0.0
) -> Plan:
    """Return the Plan of given pruning rates and bands: every method's numbers come from here.

    t = d + c(ρ) + u(ρ)/r(b), T = max t, J = N(Q)·T. A client without payload uploads in 0 s.
    """
    payload = problem.payload_bits(pruning)
    rate = problem.rate_bps(bandwidth_hz)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        upload = np.where(payload > 0, payload / rate, 0.0)
    compute = problem.compute_s(pruning)
    total = problem.downlink_s + compute + upload
    latency = float(total.max())
    loss = problem.pruning_loss(pruning)
    factor = 1.0 / (1.0 - problem.kappa * loss)
    return Plan(
        method=method,
        names=problem.names,
        pruning=pruning,
        bandwidth_hz=bandwidth_hz,
        rate_bps=rate,
        downlink_s=problem.downlink_s,
        compute_s=compute,
        upload_s=upload,
        total_s=total,
        round_latency_s=latency,
        pruning_loss=loss,
        rounds_factor=factor,
        objective_s=latency * factor if problem.max_pruning_loss is None else latency,
        lower_bound_s=None,
        gap=None,
        solve_s=solve_s,
    )


def _set(problem: PlanningProblem, field: str, value: object) -> None:
    object.__setattr__(problem, field, value)


def _frozen(values: Array) -> Array:
    values.flags.writeable = False
    return values


def _check_names(names: tuple[str, ...]) -> None:
    if not names:
        raise InputError("clients: the list is empty; allowed: at least one client")
    if len(set(names)) < len(names):
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise InputError(f"clients: the name {name!r} appears twice; names must differ")
            seen.add(name)


def _check_number(field: str, value: float, *, positive: bool = False) -> None:
    if not np.isfinite(value) or value < 0 or (positive and value == 0):
        allowed = "a finite number above 0" if positive else "a finite number, 0 or more"
        raise InputError(f"{field}: {value!r} is not allowed; allowed: {allowed}")


def _client_array(names: tuple[str, ...], field: str, values: object) -> Array:
    array = np.array(values, dtype=np.float64)
    if array.shape != (len(names),):
        raise InputError(
            f"{field}: {array.shape} values for {len(names)} clients; allowed: one each"
        )
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        _refuse(names, bad, field, array, "a finite number, 0 or more")
    return _frozen(array)


def _efficiencies(names: tuple[str, ...], values: object) -> Array:
    array = np.array(values, dtype=np.float64)
    if array.shape != (len(names),):
        raise InputError(
            f"max_spectral_efficiency: {array.shape} values for {len(names)} clients; "
            "allowed: one each"
        )
    _refuse(names, ~(array > 0), "max_spectral_efficiency", array, "a number above 0")
    return _frozen(array)


def _refuse(
    names: tuple[str, ...], bad: NDArray[np.bool_], field: str, values: Array, allowed: str
) -> None:
    if bad.any():
        first = int(np.argmax(bad))
        raise InputError(
            f"client {names[first]!r}: {field} {float(values[first])!r} is not allowed; "
            f"allowed: {allowed}"
        )


def _check_pruning(problem: PlanningProblem) -> None:
    names = problem.names
    _refuse(names, problem.max_pruning > 1, "max_pruning", problem.max_pruning, "0 to 1")
    above = problem.min_pruning > problem.max_pruning
    if above.any():
        first = int(np.argmax(above))
        raise InputError(
            f"client {names[first]!r}: min_pruning {float(problem.min_pruning[first])!r} is above "
            f"max_pruning {float(problem.max_pruning[first])!r}; allowed: min <= max"
        )


def _curves(problem: PlanningProblem) -> tuple[Array | None, ...] | None:
    given = problem.pruning_cost
    if given is None or all(curve is None for curve in given):
        return None
    if len(given) != problem.clients:
        raise InputError(
            f"pruning_cost: {len(given)} curves for {problem.clients} clients; allowed: one each"
        )
    tops = problem.max_pruning
    return tuple(
        None if curve is None else _frozen(checked_curve(name, curve, float(top)))
        for name, curve, top in zip(problem.names, given, tops, strict=True)
    )


def _check_progress(problem: PlanningProblem) -> None:
    worst = problem.kappa * problem.pruning_loss(problem.max_pruning)
    if problem.max_pruning_loss is None and worst > 1 - MIN_PROGRESS:
        raise InputError(
            f"kappa: with kappa {problem.kappa!r} and every client at its max_pruning, kappa·Q is "
            f"{worst:.6g}; allowed: below 1"
        )
    limit = problem.max_pruning_loss
    if limit is not None:
        if problem.kappa * min(limit, worst / max(problem.kappa, 1e-300)) > 1 - MIN_PROGRESS:
            raise InputError(
                f"kappa: with max_pruning_loss {limit!r}, kappa·Q can reach 1; allowed: below 1"
            )
        least = problem.pruning_loss(problem.min_pruning)
        if least > limit * (1.0 + _LOSS_SLACK):
            raise InputError(
                f"max_pruning_loss: {limit!r} is below {least:.6g}, the loss with every client at "
                "its min_pruning; allowed: that or more"
            )


def _check_reach(problem: PlanningProblem) -> None:
    """Refuse a client whose smallest payload the whole band cannot carry in finite time."""
    payload = problem.payload_bits(problem.max_pruning)
    full = problem.payload_bits(problem.min_pruning)
    rate = problem.rate_bps(np.full(problem.clients, problem.bandwidth_hz))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        upload = np.where(np.maximum(payload, full) > 0, payload / rate, 0.0)
    # A client that can cut its payload to nothing is reachable, but never at rate 0.
    upload = np.where((full > 0) & (rate <= 0), np.inf, upload)
    _refuse(
        problem.names,
        ~(upload <= MAX_LATENCY_S),
        "snr_hz",
        problem.snr_hz,
        "a received power that carries the payload (it cannot be reached with the whole band)",
    )
    for field in ("downlink_s", "compute_fixed_s", "compute_full_s"):
        seconds = getattr(problem, field)
        _refuse(
            problem.names, seconds > MAX_LATENCY_S, field, seconds, f"at most {MAX_LATENCY_S:g} s"
        )
