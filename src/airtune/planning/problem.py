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
from airtune.planning.checks import (
    MIN_PROGRESS,
    check_length,
    check_names,
    check_number,
    check_powers,
    check_progress,
    check_pruning,
    check_reach,
    client_array,
    curves,
    efficiencies,
    frozen,
    option_array,
)
from airtune.planning.curves import Pieces, pieces_of
from airtune.planning.modes import Modes, ModeTable, filled, mode_table

Array = NDArray[np.float64]

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
MODE_FIELDS = PER_CLIENT[3:]
"""Those of them that a client's modes give, each its own."""
OPTIONAL_PER_CLIENT = (
    "max_spectral_efficiency",
    "absent_cost",
    "energy_budget_j",
    "compute_power_w",
    "transmit_power_w",
    "listen_s",
)
"""Fields that all clients have or none; infinity stands for no limit in the first three."""


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
        modes: per client what it may be told to do, or None for a client without modes; None for
            none at all. The costs of a client with modes are overwritten by those of its first mode
            of least cost, which is what methods without a choice of mode plan.
        absent_cost: (K,) ℓ of a client that sits out, infinity where it must take part.
        energy_budget_j: (K,) E, infinity where there is no budget:
            compute_power_w·c(ρ) + transmit_power_w·u(ρ)/r(b) <= E.
        compute_power_w, transmit_power_w: (K,) what a device draws while it computes and sends, W.
        listen_s: (K,) when the broadcast would end if this client were the slowest that listens;
            the largest one of those who take part is added to everyone's downlink_s.
        equal_bands: everyone who takes part gets the same band, B over their number.

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
    modes: Modes | None = None
    absent_cost: Array | None = None
    energy_budget_j: Array | None = None
    compute_power_w: Array | None = None
    transmit_power_w: Array | None = None
    listen_s: Array | None = None
    equal_bands: bool = False

    def __post_init__(self) -> None:
        _set(self, "names", tuple(self.names))
        check_names(self.names)
        check_number("bandwidth_hz", self.bandwidth_hz, positive=True)
        check_number("kappa", self.kappa)
        if self.max_pruning_loss is not None:
            check_number("max_pruning_loss", self.max_pruning_loss)
        for field in PER_CLIENT:
            _set(self, field, client_array(self.names, field, getattr(self, field)))
        efficiency = efficiencies(self.names, self.max_spectral_efficiency)
        _set(self, "max_spectral_efficiency", efficiency)
        total = float(self.weight.sum())
        if not 0 < total < np.inf:
            raise InputError(f"weight: the weights sum to {total!r}; allowed: a positive sum")
        _set(self, "weight", frozen(self.weight / total))
        for field in OPTIONAL_PER_CLIENT[1:]:
            values = getattr(self, field)
            if values is not None:
                _set(self, field, option_array(self.names, field, values))
        if self.modes is None:
            check_pruning(self)
        else:
            check_length(self.names, "modes", len(self.modes))
            _set(self, "modes", filled(self))
        check_powers(self)
        if self.chooses:
            for field, values in self._default_costs().items():
                _set(self, field, frozen(values))
        _set(self, "pruning_cost", curves(self))
        check_progress(self)
        if not self.chooses:
            check_reach(self)

    def _default_costs(self) -> dict[str, Array]:
        """Return the costs of each client's first mode of least cost; 0 where it has none."""
        table, has = self.table, self.has_mode
        best = table.best[has]
        costs = {field: np.zeros(self.clients) for field in MODE_FIELDS}
        for field, values in costs.items():
            values[has] = getattr(table, field)[best]
        return costs

    @property
    def chooses(self) -> bool:
        """Whether there is more to plan than pruning and bandwidth, or more to keep to."""
        options = (self.modes, self.absent_cost, self.energy_budget_j, self.listen_s)
        return self.equal_bands or any(option is not None for option in options)

    def without_choice(self) -> PlanningProblem:
        """Return the problem in which all take part in their modes of least cost, by no budget."""
        downlink = self.downlink_s
        if self.listen_s is not None:
            downlink = downlink + self.listen_s.max()
        return replace(
            self, downlink_s=downlink, modes=None, absent_cost=None, energy_budget_j=None,
            compute_power_w=None, transmit_power_w=None, listen_s=None, equal_bands=False,
        )  # fmt: skip

    @property
    def can_stand_still(self) -> bool:
        """Whether κ·Q reaches 1 in some plans: those make no progress at all."""
        worst = self.kappa * self.pruning_loss(self.max_pruning)
        return self.max_pruning_loss is None and worst > 1.0 - MIN_PROGRESS

    @cached_property
    def table(self) -> ModeTable:
        """The modes that can be used, client after client."""
        return mode_table(self)

    @property
    def has_mode(self) -> NDArray[np.bool_]:
        """(K,) whether the client has a mode that can be used; if not, it sits out."""
        return np.isin(np.arange(self.clients), self.table.owner)

    @property
    def absent_costs(self) -> Array:
        """(K,) ℓ of sitting out, infinity where a client must take part."""
        return np.full(self.clients, np.inf) if self.absent_cost is None else self.absent_cost

    @property
    def energy_budgets(self) -> Array:
        """(K,) E in J, infinity where there is none."""
        budget = self.energy_budget_j
        return np.full(self.clients, np.inf) if budget is None else budget

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
        curves, modes = self.pruning_cost, self.modes
        return replace(
            self,
            names=tuple(names or (self.names[k] for k in index)),
            pruning_cost=None if curves is None else tuple(curves[k] for k in index),
            modes=None if modes is None else tuple(modes[k] for k in index),
            **{
                field: getattr(self, field)[index]
                for field in (*PER_CLIENT, *OPTIONAL_PER_CLIENT)
                if getattr(self, field) is not None
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

    def costs_of(self, client: NDArray[np.intp], pruning: Array) -> Array:
        """(M,) e(ρ) of the named clients at one pruning rate each."""
        if self.pruning_cost is None:
            return pruning
        cost = pruning.copy()
        for k in np.unique(client):
            curve = self.pruning_cost[k]
            if curve is not None:
                mine = client == k
                cost[mine] = np.interp(pruning[mine], curve[:, 0], curve[:, 1])
        return cost

    def least_losses(self) -> Array:
        """(K,) the least ℓ that each client can have in a round of any length."""
        table = self.table
        least = np.array(self.absent_costs)
        cost = self.costs_of(table.owner, table.min_pruning)
        np.minimum.at(least, table.owner, 1.0 - (1.0 - table.cost) * (1.0 - cost))
        return least

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
        modes: each client's mode, None for one that sits out (its pruning, band and times are 0);
            None for all where the problem has nothing to choose from.
        losses: (K,) ℓ, what each client loses in learning; its contribution is 1 − ℓ.
        energy_j: (K,) what each client draws in the round; None without powers.
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
    modes: tuple[str | None, ...] | None = None
    losses: Array | None = None
    energy_j: Array | None = None


Chosen = tuple[int | None, ...]
"""Per client its mode, an index into ``problem.table``; None: it sits out."""


def rounds_factor(kappa: float, loss: float) -> float:
    """Return N(Q) = 1/(1 − κQ), infinity where no progress is left."""
    rest = 1.0 - kappa * loss
    return 1.0 / rest if rest >= MIN_PROGRESS else float("inf")


def priced(
    problem: PlanningProblem,
    method: str,
    pruning: Array,
    bandwidth_hz: Array,
    solve_s: float = 0.0,
    chosen: Chosen | None = None,
) -> Plan:
    """Return the Plan of given pruning rates and bands: every method's numbers come from here.

    t = d + c(ρ) + u(ρ)/r(b), T = max t, J = N(Q)·T. A client without payload uploads in 0 s.
    ``chosen`` is each client's mode where the problem has a choice; left out, those of least cost.
    """
    if problem.chooses:
        from airtune.planning.mode_plans import priced_modes

        return priced_modes(problem, method, pruning, bandwidth_hz, solve_s, chosen)
    payload = problem.payload_bits(pruning)
    rate = problem.rate_bps(bandwidth_hz)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        upload = np.where(payload > 0, payload / rate, 0.0)
    compute = problem.compute_s(pruning)
    total = problem.downlink_s + compute + upload
    latency = float(total.max())
    loss = problem.pruning_loss(pruning)
    factor = rounds_factor(problem.kappa, loss)
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
