"""`airtune costs`: measure what each knob costs in learning, by a short pilot."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from airtune.errors import InputError


def costs(
    scenario: Annotated[
        str, typer.Argument(help="A scenario file, or the name of a built-in scenario.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The costs file.")] = Path("costs.json"),
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Of each trial.")] = 4,
    seeds: Annotated[
        str, typer.Option("--seeds", help="E.g. 0,1 or 0-4; two or more give a spread.")
    ] = "0,1",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key, e.g. seed=3."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", help="CPU threads. Default: all cores.")
    ] = None,
) -> None:
    """Measure what rank, bits, steps, pruning and absence cost in learning, by a short pilot.

    Short federated runs on held-out training text, all from the same start. The file is for
    planning.costs. A pilot that was stopped goes on where it was.

    **Examples**

      airtune costs tiny --rounds 3 --out tiny-costs.json

      airtune run mine.toml --set planning.costs=costs.json --set planning.knobs=all
    """
    from airtune.engines.choice import engine_maker
    from airtune.rounds.pilot import run_pilot, trials_of
    from airtune.scenario import load_scenario
    from airtune.study.loading import seeds_of

    asked = load_scenario(scenario, overrides or [])
    if asked.participation.draws:
        raise InputError(
            "airtune costs measures with all clients in every round: leave out "
            "participation.cohort and participation.availability"
        )
    chosen = seeds_of(seeds, "--seeds")
    trials = trials_of(asked)
    work = len(trials) * len(chosen) * rounds * len(asked.client_devices)
    print(
        f"{len(trials)} trials × {len(chosen)} seeds × {rounds} rounds × "
        f"{len(asked.client_devices)} clients: {work} client-rounds at most",
        file=sys.stderr,
    )
    start = time.monotonic()

    def say(line: str) -> None:
        print(f"{line}  ({time.monotonic() - start:.0f} s)", file=sys.stderr, flush=True)

    made = run_pilot(
        asked,
        out=out,
        rounds=rounds,
        seeds=chosen,
        engine=engine_maker("local", threads=threads),
        say=say,
        command=shlex.join(
            [
                "airtune",
                "costs",
                scenario,
                "--rounds",
                str(rounds),
                "--seeds",
                seeds,
                *(part for text in overrides or [] for part in ("--set", text)),
            ]
        ),
    )
    for knob, values in (("rank", made.rank), ("bits", made.bits), ("steps", made.steps),
                         ("pruning", made.pruning)):  # fmt: skip
        for value, one in sorted(values.items()):
            print(f"{knob} {value:g}: {one.cost:.3f}" + _spread(one.spread))
    print(f"absent: {made.absent.cost:.3f}" + _spread(made.absent.spread))
    for pair in made.pairs:
        print(f"{' and '.join(pair.knobs)}: {pair.measured:.3f}, product rule {pair.product:.3f}")
    print(f"costs: {out}")


def _spread(spread: float | None) -> str:
    return "" if spread is None else f" ± {spread:.3f}"
