"""`airtune plan`: one round's pruning rates and bands, without torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from airtune.planning import Plan, PlanningProblem
    from airtune.planning.sweep import SweepAxis, SweepPoint

# Who finishes this close to the round's end, relatively, counts as last.
_LAST = 1e-6
_AT_BOUND = 1e-5


def plan(
    file: Annotated[
        str,
        typer.Argument(
            help="A planning problem (.json), a scenario (.toml), or a built-in scenario's name."
        ),
    ],
    method: Annotated[
        str | None, typer.Option("--method", help="Planning method. Default: exact.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change one key, e.g. clients.c0.snr_hz=1e9."
        ),
    ] = None,
    plugins: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin", metavar="FILE.py", help="A file or module of parts of your own; repeatable."
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="KEY=LO:HI:N",
            help="Plan over a range of bandwidth_hz, clients, kappa or power_db; twice: a grid.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="With --sweep: the figure, .svg or .png.")
    ] = None,
    round_number: Annotated[
        int | None,
        typer.Option("--round", min=1, help="Of a scenario: which round's channel. Default: 1."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Relative gap at which exact stops.")
    ] = 1e-6,
    block_hz: Annotated[
        float | None, typer.Option("--block-hz", help="Whole resource blocks of this width.")
    ] = None,
    blocks: Annotated[
        int | None, typer.Option("--blocks", help="How many blocks. Default: what fits the band.")
    ] = None,
    channel_mhz: Annotated[
        float | None, typer.Option("--channel-mhz", help="A 5G channel, in whole resource blocks.")
    ] = None,
    scs_khz: Annotated[
        int | None,
        typer.Option("--scs-khz", help="Its subcarrier spacing: 15, 30 or 60. Default: 30."),
    ] = None,
) -> None:
    """Plan one round: each client's pruning rate and uplink band, with a proof of optimality.

    **Examples**

      airtune plan examples/cell.json

      airtune plan examples/cell.json --method bcd --json

      airtune plan demo --set planning.kappa=0.4

      airtune plan examples/cell.json --channel-mhz 20 --scs-khz 30

      airtune plan examples/cell.json --sweep bandwidth_hz=1e6:1e8:20 --out latency.svg
    """
    from airtune.errors import InputError

    problem = _problem(file, overrides or [], round_number, plugins or [])
    width, count = _blocks(block_hz, blocks, channel_mhz, scs_khz)
    if out is not None and not sweep:
        raise InputError(f"--out {str(out)!r} is for the figure of a --sweep; none was asked for")
    if sweep:
        if width is not None:
            raise InputError("--sweep plans without whole blocks; leave the block options out")
        _sweep(problem, sweep, method or "exact", tolerance, out, as_json)
        return
    from airtune import planning
    from airtune.planning.plausible import doubts

    if width is None:
        made = planning.plan(problem, method or "exact", tolerance=tolerance)
    else:
        if method not in (None, "exact"):
            raise InputError(f"--method {method!r} does not plan in whole blocks; allowed: exact")
        made = planning.plan(problem, tolerance=tolerance, block_hz=width, blocks=count)
    for doubt in doubts(problem, made):
        typer.echo(f"airtune: {doubt}", err=True)
    if as_json:
        _print_json(planning.plan_to_json(made))
    else:
        _print_plan(problem, made)


def _problem(
    file: str, overrides: list[str], round_number: int | None, plugins: list[str]
) -> PlanningProblem:
    from airtune.errors import InputError

    if not file.lower().endswith(".json"):
        from airtune.planning.inputs import problem_of_scenario
        from airtune.scenario import load_scenario

        scenario = load_scenario(file, overrides, plugins=plugins)
        if (rule := scenario.participation.rule) != "all":
            typer.echo(
                f"airtune: participation.rule = '{rule}' is left to `airtune run`; here every "
                "client takes part with all of its steps",
                err=True,
            )
        if scenario.pruning.cost == "measured":
            typer.echo(
                "airtune: pruning.cost = 'measured' needs the model; here pruning costs its rate",
                err=True,
            )
        return problem_of_scenario(scenario, round=round_number or 1)
    if round_number is not None:
        raise InputError(
            f"--round {round_number}: {file} is one round's problem; only a scenario has rounds"
        )
    from airtune.encoding import read_text
    from airtune.planning import problem_from_json
    from airtune.planning.files import parsed
    from airtune.plugins import load_plugins

    load_plugins(plugins)
    try:
        document = parsed(read_text(file))
        for override in overrides:
            _override(document, override)
        return problem_from_json(document)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _override(document: Any, override: str) -> None:
    """Change one key of a planning problem: ``kappa=0.4``, ``clients.NAME.snr_hz=1e9``."""
    import json

    from airtune.errors import InputError

    path, equals, text = override.partition("=")
    try:
        value = json.loads(text) if equals else None
    except (ValueError, RecursionError):  # no JSON; too many digits; too deep
        value = None
    if value is None:
        raise InputError(f"--set {override!r} is not allowed; allowed: KEY=VALUE with a number")
    parts = path.split(".")
    if parts[0] != "clients":
        if len(parts) != 1 or not isinstance(document, dict):
            raise InputError(f"--set {override!r}: unknown key {path!r}")
        document[path] = value
        return
    name, field = ".".join(parts[1:-1]), parts[-1]
    clients = document.get("clients") if isinstance(document, dict) else None
    found = [
        client
        for client in (clients if isinstance(clients, list) else [])
        if isinstance(client, dict) and name in ("*", client.get("name"))
    ]
    if not found:
        raise InputError(
            f"--set {override!r}: no client {name!r}; allowed: clients.NAME.FIELD, or * for all"
        )
    for client in found:
        client[field] = value


def _blocks(
    block_hz: float | None, blocks: int | None, channel_mhz: float | None, scs_khz: int | None
) -> tuple[float | None, int | None]:
    from airtune.errors import InputError

    if channel_mhz is not None:
        if block_hz is not None or blocks is not None:
            raise InputError("--channel-mhz sets the blocks; leave --block-hz and --blocks out")
        from airtune.channel import numerology

        spacing = (30 if scs_khz is None else scs_khz) * 1000
        count = numerology.resource_blocks(channel_mhz * 1e6, spacing)
        return numerology.block_hz(spacing), count
    if scs_khz is not None:
        raise InputError(f"--scs-khz {scs_khz} is of a --channel-mhz; none was given")
    if blocks is not None and block_hz is None:
        raise InputError("--blocks needs --block-hz, the width of one block")
    return block_hz, blocks


def _sweep(
    problem: PlanningProblem,
    texts: list[str],
    method: str,
    tolerance: float,
    out: Path | None,
    as_json: bool,
) -> None:
    from airtune.errors import InputError
    from airtune.planning.sweep import axis_from_text, draw, sweep

    if len(texts) > 2:
        raise InputError(f"--sweep was given {len(texts)} times; allowed: once, or twice (a grid)")
    axes = [axis_from_text(text) for text in texts]
    points = sweep(problem, axes, method, tolerance)
    if out is not None:
        draw(axes, points, out)
    if as_json:
        _print_json([_point_as_json(axes, point) for point in points])
    else:
        _print_sweep(axes, points)
        if out is not None:
            print(f"figure: {out}")


def _point_as_json(axes: list[SweepAxis], point: SweepPoint) -> dict[str, Any]:
    made = point.plan
    return {
        **{axis.key: value for axis, value in zip(axes, point.at, strict=True)},
        "method": made.method,
        "objective_s": made.objective_s,
        "lower_bound_s": made.lower_bound_s,
        "gap": made.gap,
        "round_latency_s": made.round_latency_s,
        "pruning_loss": made.pruning_loss,
        "rounds_factor": made.rounds_factor,
    }


def _print_json(document: Any) -> None:
    import json

    sys.stdout.write(json.dumps(document) + "\n")


def _print_sweep(axes: list[SweepAxis], points: list[SweepPoint]) -> None:
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


def _print_plan(problem: PlanningProblem, made: Plan) -> None:
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
        Column("what binds", [_binds(problem, made, k) for k in order], kind="text", rank=2),
    ]
    if made.blocks is not None:
        columns.insert(2, column("blocks", [str(int(made.blocks[k])) for k in order], 1))
    if made.energy_j is not None:
        columns.insert(-1, column("energy\nJ", [f"{made.energy_j[k]:.4g}" for k in order], 2))
    if made.modes is not None:
        names = [made.modes[k] or "sits out" for k in order]
        columns.insert(1, Column("mode", names, kind="name"))
    screen = console()
    screen.print(Fitted(columns, rows="clients"))
    screen.print("\n".join(_summary(problem, made)), markup=False, highlight=False)


def _binds(problem: PlanningProblem, made: Plan, k: int) -> str:
    if made.total_s[k] < made.round_latency_s * (1.0 - _LAST):
        if made.modes is not None and made.modes[k] is None:
            return "sits out"
        return f"waits {made.round_latency_s - made.total_s[k]:.3g} s"
    part = "compute" if made.compute_s[k] >= made.upload_s[k] else "air"
    if made.energy_j is not None and made.energy_j[k] >= problem.energy_budgets[k] * (1 - _LAST):
        return f"{part}, energy"
    low, high = _bounds(problem, made)
    if made.pruning[k] >= high[k] - _AT_BOUND:
        return f"{part}, at max"
    if made.pruning[k] <= low[k] + _AT_BOUND:
        # A lower end above 0 is what the device's memory asks for.
        return f"{part}, memory" if made.modes is not None and low[k] > 0 else f"{part}, at min"
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
    top = here & (made.pruning >= high - _AT_BOUND)
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
