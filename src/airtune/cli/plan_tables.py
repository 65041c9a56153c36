"""What `airtune plan` prints: a plan client by client, and the plans of a sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airtune.assignment import Mode
    from airtune.planning import Plan, PlanningProblem
    from airtune.planning.sweep import SweepAxis, SweepPoint

# Who finishes this close to the round's end, relatively, counts as last.
_LAST = 1e-6
_AT_BOUND = 1e-5


def print_sweep(axes: list[SweepAxis], points: list[SweepPoint]) -> None:
    """Print a plan a line."""
    from airtune.cli.output import console
    from airtune.report.tables import Column, Fitted

    plans = [point.plan for point in points]
    gaps = ["-" if made.gap is None else f"{made.gap:.1e}" for made in plans]
    columns = [
        *(
            Column(axis.key, [f"{point.at[k]:.4g}" for point in points])
            for k, axis in enumerate(axes)
        ),
        Column("N·T s", [f"{made.objective_s:.4g}" for made in plans]),
        Column("T s", [f"{made.round_latency_s:.4g}" for made in plans], rank=1),
        Column("Q", [f"{made.pruning_loss:.3f}" for made in plans], rank=2),
        Column("N", [f"{made.rounds_factor:.3f}" for made in plans], rank=4),
        Column("gap", gaps, rank=3),
    ]
    console().print(Fitted(columns, rows="plans"))


def print_plan(
    problem: PlanningProblem,
    made: Plan,
    modes: Sequence[Mode | None] | None = None,
    queues: Sequence[float] | None = None,
    least: float = 0.0,
) -> None:
    """Print a plan client by client, and in a few lines as a whole.

    Args:
        problem: what was planned.
        made: its plan.
        modes: of a scenario's round: what the plan's modes stand for.
        queues: what a floor owes each client.
        least: the scenario's `pruning.min_pruning`.
    """
    from airtune.cli.output import console
    from airtune.report.tables import MOST_ROWS, Column, Fitted

    order = list(range(len(made.names)))
    if len(order) > MOST_ROWS:
        # Its middle is cut out: at the two ends stand the slowest and the quickest.
        order.sort(key=lambda k: -made.total_s[k])

    def column(heading: str, cells: list[str], rank: int = 0) -> Column:
        return Column(heading, cells, rank=rank)

    columns = [
        Column("client", [made.names[k] for k in order], kind="name"),
        column("pruning", [f"{made.pruning[k]:.3f}" for k in order]),
        column("band\nkHz", [f"{made.bandwidth_hz[k] / 1e3:.1f}" for k in order]),
        column(
            "share",
            [f"{100 * made.bandwidth_hz[k] / problem.bandwidth_hz:.1f}%" for k in order],
            6,
        ),
        column("Mbit/s", [f"{made.rate_bps[k] / 1e6:.3g}" for k in order], 5),
        column("compute\ns", [f"{made.compute_s[k]:.4g}" for k in order], 3),
        column("upload\ns", [f"{made.upload_s[k]:.4g}" for k in order], 4),
        column("total\ns", [f"{made.total_s[k]:.4g}" for k in order]),
        Column(
            "what binds",
            [_bounds_of(problem, made, k, queues, least) for k in order],
            kind="text",
            rank=2,
        ),
    ]
    if made.blocks is not None:
        columns.insert(2, column("blocks", [str(int(made.blocks[k])) for k in order], 1))
    if made.energy_j is not None:
        columns.insert(-1, column("energy\nJ", [f"{made.energy_j[k]:.4g}" for k in order], 2))
    if made.modes is not None:
        names = [made.modes[k] or "sits out" for k in order]
        columns.insert(1, Column("mode", names, kind="name"))
        if modes is not None:
            columns[1] = Column("steps, rank,\nbits", [_short(modes[k]) for k in order])
    screen = console()
    screen.print(Fitted(columns, rows="clients"))
    screen.print("\n".join(_summary(problem, made)), markup=False, highlight=False)


def _short(mode: Mode | None) -> str:
    """Return a mode in few columns."""
    if mode is None:
        return "sits out"
    return f"{mode.local_steps}, {mode.rank}, {mode.bits_per_value}"


def _bounds_of(
    problem: PlanningProblem, made: Plan, k: int, queues: Sequence[float] | None, least: float
) -> str:
    """Say what binds a client's plan, the floor included: it weighs a client that it owes more."""
    found = _binds(problem, made, k, least)
    owed = queues is not None and queues[k] > 0 and found != "sits out"
    return f"{found}, floor" if owed else found


def _binds(problem: PlanningProblem, made: Plan, k: int, least: float) -> str:
    if made.total_s[k] < made.round_latency_s * (1.0 - _LAST):
        if made.modes is not None and made.modes[k] is None:
            return "sits out"
        return f"waits {made.round_latency_s - made.total_s[k]:.3g} s"
    part = "compute" if made.compute_s[k] >= made.upload_s[k] else "air"
    if made.energy_j is not None and made.energy_j[k] >= problem.energy_budgets[k] * (1 - _LAST):
        return f"{part}, energy"
    low, high = _bounds(problem, made)
    # A lower end above 0 is what the scenario asks for, or more than that: the device's memory.
    lowest = f"{part}, memory" if low[k] > least else f"{part}, least"
    if low[k] == high[k] and made.modes is not None:
        # Nothing to choose but what is asked for, if anything.
        return lowest if low[k] > 0 else part
    if made.pruning[k] >= high[k] - _AT_BOUND:
        return f"{part}, at max"
    if made.pruning[k] <= low[k] + _AT_BOUND:
        return lowest if made.modes is not None and low[k] > 0 else f"{part}, at min"
    return part


def _bounds(problem: PlanningProblem, made: Plan) -> tuple[Any, Any]:
    """Return the ends of each client's pruning in the mode that it was given."""
    from airtune.planning.mode_plans import chosen_of

    low, high = problem.min_pruning.copy(), problem.max_pruning.copy()
    for k, mode in enumerate(chosen_of(problem, made) or ()):
        if mode is not None:
            low[k], high[k] = problem.table.min_pruning[mode], problem.table.max_pruning[mode]
    return low, high


def _summary(problem: PlanningProblem, made: Plan) -> list[str]:
    last = made.total_s >= made.round_latency_s * (1.0 - _LAST)
    low, high = _bounds(problem, made)
    here = [made.modes is None or made.modes[k] is not None for k in range(len(last))]
    top = here & (high > low) & (made.pruning >= high - _AT_BOUND)
    bottom = here & ~top & (made.pruning <= low + _AT_BOUND)
    used = float(made.bandwidth_hz.sum()) / problem.bandwidth_hz
    air = int((last & (made.upload_s > made.compute_s)).sum())
    lines = [
        f"T {made.round_latency_s:.6g} s a round × N {made.rounds_factor:.4f} = "
        f"{made.round_latency_s * made.rounds_factor:.6g} s   "
        f"(pruning loss Q {made.pruning_loss:.4f}, kappa {problem.kappa:g})",
        f"last: {int(last.sum())} of {len(last)} clients together, "
        f"{int(last.sum()) - air} mostly computing, {air} mostly on the air",
        f"band: {100 * used:.4g}% of the band in use",
        f"pruning: {int(bottom.sum())} clients at min_pruning, {int(top.sum())} at max_pruning, "
        f"{int((here & ~top & ~bottom).sum())} between",
    ]
    if not all(here):
        lines.append(f"absence: {len(here) - sum(here)} of {len(here)} clients sit the round out")
    if made.lower_bound_s is not None and made.gap is not None:
        lines.append(
            f"{made.method}: {made.objective_s:.6g} s, and no plan is below "
            f"{made.lower_bound_s:.6g} s: gap {made.gap:.1e}   ({1e3 * made.solve_s:.1f} ms)"
        )
    if made.block_loss is not None:
        lines.append(f"whole blocks cost {100 * made.block_loss:.3f}% over any split of their band")
    return lines
