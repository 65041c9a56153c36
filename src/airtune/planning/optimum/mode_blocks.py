"""Whole resource blocks with a choice of modes.

Over modes a client's loss is not convex in its number of blocks, so handing out one block after
another is not optimal. At a deadline the blocks are shared by dynamic programming over the clients:
V_k(n) = min_j V_{k−1}(n − j) + loss_k(j), exact in K·N² steps. Over the deadline the optimum is at
a corner: fixed_bands.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from airtune.errors import InputError
from airtune.planning.gaps import relative_excess
from airtune.planning.optimum.choices import Choices, choices_of
from airtune.planning.optimum.fixed_bands import Timed, best_corner, levels_of, timed
from airtune.planning.optimum.polish import modes_of, pruning_for
from airtune.planning.problem import Array, Plan, PlanningProblem, priced

# Choices × blocks are held at a time, in some arrays of doubles: 1 to 2 GB.
_MAX_CELLS = 20_000_000


# Choices that cannot be met have infinite times.
@np.errstate(all="ignore")
def modes_in_blocks(
    problem: PlanningProblem, block_hz: float, blocks: int, free: Plan, *, tolerance: float = 1e-6
) -> Plan:
    """Return the optimal plan in whole blocks, its bound, and what whole blocks cost.

    Args:
        problem: the problem.
        block_hz: width of a block.
        blocks: how many there are.
        free: the best plan that splits the same band freely.
        tolerance: relative gap at which the search over deadlines stops.

    Raises:
        InputError: too many choices and blocks to plan, or no plan fits the blocks.
    """
    choices = choices_of(problem)
    if len(choices.owner) * (blocks + 1) > _MAX_CELLS:
        raise InputError(
            f"blocks: {blocks} blocks for {len(choices.owner)} modes of all clients are too many "
            f"to plan; allowed: modes × blocks up to {_MAX_CELLS}"
        )
    rate = np.stack(
        [
            problem.rate_bps(np.full(problem.clients, count * block_hz))[choices.owner]
            for count in range(blocks + 1)
        ],
        axis=1,
    )
    best: Plan | None = None
    lower = np.inf
    for level in levels_of(choices):
        table = timed(choices, rate, float(level))
        present = ~choices.absent
        corners = np.unique(np.concatenate([table.start_s[present], table.end_s[present]]))
        known = np.inf if best is None else best.objective_s

        def loss_at(deadline: float, table: Timed = table) -> float:
            return _shared(choices, table, deadline, blocks)[0]

        found = best_corner(problem, corners, loss_at, tolerance, known)
        lower = min(lower, found.lower)
        if not np.isfinite(found.value) or found.value >= known:
            continue
        _, rows, shares = _shared(choices, table, found.deadline_s, blocks)
        modes = modes_of(choices, rows)
        band = shares.astype(np.float64) * block_hz
        left = (found.deadline_s - float(level)) * (1.0 + 1e-15)
        made = priced(problem, "exact", pruning_for(problem, modes, band, left), band, chosen=modes)
        if best is None or made.objective_s < best.objective_s:
            best = replace(made, blocks=shares)
    if best is None:
        raise InputError(
            f"blocks: {blocks} blocks are fewer than the clients that have to send need; allowed: "
            "more blocks, or an absent_cost for more clients"
        )
    lower = min(lower, best.objective_s)
    return replace(
        best,
        lower_bound_s=lower,
        gap=relative_excess(best.objective_s, lower),
        block_loss=relative_excess(best.objective_s, free.objective_s),
        deadlines=free.deadlines,
    )


def _shared(
    choices: Choices, table: Timed, deadline_s: float, blocks: int
) -> tuple[float, NDArray[np.intp], NDArray[np.int64]]:
    """Return Q, the choices (K,) and the blocks (K,) that minimise it at a deadline.

    The second plane of states says whether someone takes part so far.
    """
    losses = table.losses(deadline_s)
    heads = np.flatnonzero(np.diff(choices.owner, prepend=-1))
    here = np.minimum.reduceat(np.where(choices.absent[:, None], np.inf, losses), heads)
    out = np.minimum.reduceat(np.where(choices.absent[:, None], losses, np.inf), heads)[:, 0]
    clients = len(heads)
    state = np.full((2, blocks + 1), np.inf)
    state[0] = 0.0
    takes = np.zeros((clients, 2, blocks + 1), dtype=bool)
    given = np.zeros((clients, 2, blocks + 1), dtype=np.int64)
    index = np.arange(blocks + 1)[:, None] - np.arange(blocks + 1)
    for k in range(clients):
        before = np.minimum(state[0], state[1])
        joined = np.where(index >= 0, before[np.maximum(index, 0)] + here[k], np.inf)
        given[k, 1] = np.argmin(joined, axis=1)
        present = joined[np.arange(blocks + 1), given[k, 1]]
        absent = state[1] + out[k]
        takes[k, 1] = present <= absent
        new = np.where(takes[k, 1], present, absent)
        state = np.stack([state[0] + out[k], new])
    total = float(state[1, -1])
    rows = np.zeros(clients, dtype=np.intp)
    shares = np.zeros(clients, dtype=np.int64)
    if not np.isfinite(total):
        return np.inf, rows, shares
    _walk_back(choices, losses, heads, (here, out), (takes, given), rows, shares)
    return total, rows, shares


def _walk_back(
    choices: Choices,
    losses: Array,
    heads: NDArray[np.intp],
    least: tuple[Array, Array],
    tables: tuple[NDArray[np.bool_], NDArray[np.int64]],
    rows: NDArray[np.intp],
    shares: NDArray[np.int64],
) -> None:
    """Fill in who takes part and with how many blocks; values of earlier states are redone."""
    here, out = least
    takes, given = tables
    clients, left = len(heads), takes.shape[2] - 1
    ends = np.append(heads[1:], len(losses))
    # The value of "someone takes part" and "no one does" before each client, from the front.
    no_one = np.concatenate([[0.0], np.cumsum(out)])
    someone = _values(here, out, takes, given)
    present = True
    for k in range(clients - 1, -1, -1):
        mine = np.arange(heads[k], ends[k])
        if present and takes[k, 1, left]:
            count = int(given[k, 1, left])
            column = np.where(choices.absent[mine], np.inf, losses[mine, count])
            rows[k], shares[k] = mine[int(np.argmin(column))], count
            left -= count
            present = bool(someone[k][left] < no_one[k])
        else:
            rows[k] = mine[choices.absent[mine]][0]


def _values(
    here: Array, out: Array, takes: NDArray[np.bool_], given: NDArray[np.int64]
) -> list[Array]:
    size = takes.shape[2]
    value, no_one = np.full(size, np.inf), 0.0
    values = [value]
    for k in range(len(out)):
        count = given[k, 1]
        before = np.minimum(value, no_one)[np.arange(size) - count]
        value = np.where(takes[k, 1], before + here[k][count], value + out[k])
        no_one = no_one + out[k]
        values.append(value)
    return values
