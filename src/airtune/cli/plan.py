"""`airtune plan`: one round's pruning rates and bands, without torch."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airtune.assignment import Mode
    from airtune.planning import Plan, PlanningProblem
    from airtune.planning.sweep import SweepAxis, SweepPoint
    from airtune.scenario import Scenario


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
            "--set", metavar="KEY=VALUE", help="Change one key, e.g. clients.laptop.snr_hz=1e9."
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
        float | None,
        typer.Option(
            "--tolerance", help="Relative gap at which exact stops. Default: 1e-6, or a scenario's."
        ),
    ] = None,
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

    Where a scenario has planning.knobs or a participation.rule, each client's mode as well: its
    local steps, LoRA rank and uplink bits, and who sits the round out.

    **Examples**

      airtune plan examples/cell.json

      airtune plan examples/cell.json --method bcd --json

      airtune plan demo --set planning.kappa=0.4

      airtune plan examples/cell.json --channel-mhz 20 --scs-khz 30

      airtune plan examples/cell.json --sweep bandwidth_hz=1e6:1e8:20 --out latency.svg
    """
    from airtune.errors import InputError

    width, count = _blocks(block_hz, blocks, channel_mhz, scs_khz)
    if out is not None and not sweep:
        raise InputError(f"--out {str(out)!r} is for the figure of a --sweep; none was asked for")
    if sweep and width is not None:
        raise InputError("--sweep plans without whole blocks; leave the block options out")
    if file.lower().endswith(".json"):
        if round_number is not None:
            raise InputError(
                f"--round {round_number}: {file} is one round's problem; only a scenario has rounds"
            )
        problem = _read(file, overrides or [], plugins or [])
    else:
        scenario = _scenario(file, overrides or [], plugins or [], method, tolerance)
        knobs = _turns_knobs(scenario, round_number or 1)
        if not sweep and width is None:
            _plan_scenario(scenario, round_number or 1, as_json, knobs)
            return
        if knobs:
            raise InputError(
                "--sweep and whole blocks are for a plan of pruning and bandwidth alone; leave "
                "them out, or planning.knobs and participation.rule"
            )
        if sweep and scenario.cell.subcarrier_spacing_hz is not None:
            raise InputError(
                "--sweep plans without whole blocks; leave cell.subcarrier_spacing_hz out"
            )
        from airtune.planning.inputs import problem_of_scenario

        problem = problem_of_scenario(scenario, round=round_number or 1)
        method, tolerance = scenario.planning.method, scenario.planning.tolerance
    limit = 1e-6 if tolerance is None else tolerance
    if sweep:
        _sweep(problem, sweep, method or "exact", limit, out, as_json)
        return
    from airtune import planning

    if width is None:
        made = planning.plan(problem, method or "exact", tolerance=limit)
    else:
        if method not in (None, "exact"):
            raise InputError(f"--method {method!r} does not plan in whole blocks; allowed: exact")
        made = planning.plan(problem, tolerance=limit, block_hz=width, blocks=count)
    _show(problem, made, as_json)


def _show(
    problem: PlanningProblem,
    made: Plan,
    as_json: bool,
    modes: Sequence[Mode | None] | None = None,
    queues: Sequence[float] | None = None,
    least: float = 0.0,
) -> None:
    from airtune.cli.plan_tables import print_plan
    from airtune.planning import plan_to_json
    from airtune.planning.plausible import doubts

    for doubt in doubts(problem, made):
        typer.echo(f"airtune: {doubt}", err=True)
    if as_json:
        _print_json(plan_to_json(made))
    else:
        print_plan(problem, made, modes, queues, least)


def _scenario(
    file: str,
    overrides: list[str],
    plugins: list[str],
    method: str | None,
    tolerance: float | None,
) -> Scenario:
    from airtune.scenario import load_scenario

    # After the others: an option of this command counts before a key of the scenario.
    own = [] if method is None else [f"planning.method={method}"]
    own += [] if tolerance is None else [f"planning.tolerance={tolerance!r}"]
    scenario = load_scenario(file, [*overrides, *own], plugins=plugins)
    if scenario.participation.cohort_by == "data-size":
        typer.echo(
            "airtune: participation.cohort_by = 'data-size' needs the data; here clients count as "
            "equally large",
            err=True,
        )
    if scenario.participation.availability is not None:
        typer.echo("airtune: the cohort is drawn with the virtual clock at 0 s", err=True)
    if scenario.pruning.cost == "measured":
        typer.echo(
            "airtune: pruning.cost = 'measured' needs the model; here pruning costs "
            + ("its rate" if scenario.planning.knobs is None else "what planning.costs says"),
            err=True,
        )
    return scenario


def _turns_knobs(scenario: Scenario, round: int) -> bool:
    from airtune.planning.round_plan import knobs_of_round

    return knobs_of_round(scenario, round) is not None


def _plan_scenario(scenario: Scenario, round: int, as_json: bool, knobs: bool) -> None:
    """Plan a scenario's round as a run does; with knobs, show modes and what computing draws."""
    import numpy as np

    from airtune.planning.inputs import situation_of_scenario
    from airtune.planning.round_plan import plan_round

    situation = situation_of_scenario(scenario, round)
    found = plan_round(scenario, situation)
    least, queues = scenario.pruning.min_pruning, situation.queues.tolist()
    if not knobs:
        _show(found.problem, found.plan, as_json, least=least)
        return
    powers = [profile.power_w for profile in situation.profiles]
    made = found.plan
    if made.energy_j is None and None not in powers:
        made = replace(made, energy_j=np.array(powers, dtype=float) * made.compute_s)
    _show(found.problem, made, as_json, found.modes, queues, least)


def _read(file: str, overrides: list[str], plugins: list[str]) -> PlanningProblem:
    from airtune.encoding import read_text
    from airtune.errors import InputError
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
        rows = clients if isinstance(clients, list) else []
        known = [str(one["name"]) for one in rows if isinstance(one, dict) and "name" in one]
        more = ", …" if len(known) > 8 else ""
        raise InputError(
            f"--set {override!r}: no client {name!r}; allowed: clients.NAME.FIELD, NAME one of "
            f"{', '.join(known[:8])}{more}, or * for all"
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
    from airtune.cli.plan_tables import print_sweep
    from airtune.errors import InputError
    from airtune.pictures import check_picture
    from airtune.planning.sweep import axis_from_text, draw, sweep

    if len(texts) > 2:
        raise InputError(f"--sweep was given {len(texts)} times; allowed: once, or twice (a grid)")
    axes = [axis_from_text(text) for text in texts]
    if len({axis.key for axis in axes}) < len(axes):
        raise InputError(f"--sweep {axes[0].key} was given twice; a grid has two different keys")
    if out is not None:
        check_picture(out)  # said before the plans are made
    points = sweep(problem, axes, method, tolerance)
    if out is not None:
        draw(axes, points, out)
    if as_json:
        _print_json([_point_as_json(axes, point) for point in points])
    else:
        print_sweep(axes, points)
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
