"""`airtune scenarios`: what ships with the package, and a copy to start from."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    help="List the built-in scenarios, or print one to start from.",
    epilog="Example: airtune scenarios show demo > mine.toml && airtune run mine.toml",
    invoke_without_command=True,
)


@app.callback()
def scenarios(context: typer.Context) -> None:
    """List the built-in scenarios."""
    if context.invoked_subcommand is not None:
        return
    from airtune.cli.output import console
    from airtune.report.tables import Column, Fitted
    from airtune.scenario import builtin_scenarios, load_scenario

    loaded = {name: load_scenario(name) for name in builtin_scenarios()}
    each = loaded.values()
    columns = [
        Column("name", list(loaded), kind="word"),
        Column("clients", [str(len(scenario.client_devices)) for scenario in each], rank=1),
        Column("rounds", [str(scenario.rounds) for scenario in each], rank=2),
        Column("model", [scenario.model.id for scenario in each], kind="word", rank=4),
        Column("task", [scenario.task.name for scenario in each], kind="word", rank=3),
        Column("what it is", [scenario.description for scenario in each], kind="text"),
    ]
    console().print(Fitted(columns, all_in="a wider window"))


@app.command("show", epilog="Example: airtune scenarios show demo > mine.toml")
def show(
    name: Annotated[str, typer.Argument(help="A name that `airtune scenarios` lists.")],
    clients: Annotated[
        bool,
        typer.Option("--clients", help="Its clients' names and devices; also of a file of yours."),
    ] = False,
) -> None:
    """Print a built-in scenario's TOML file."""
    from airtune.errors import InputError
    from airtune.scenario import builtin_scenarios, load_scenario

    if clients:
        scenario = load_scenario(name)
        for client, device in zip(scenario.client_names, scenario.client_devices, strict=True):
            typer.echo(f"{client}\t{device.profile}")
        return
    builtin = builtin_scenarios()
    if name not in builtin:
        raise InputError(f"no built-in scenario '{name}'; there are: {', '.join(builtin)}")
    typer.echo(builtin[name], nl=False)
