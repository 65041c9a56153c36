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
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from airtune.scenario import builtin_scenarios, load_scenario

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("name", "clients", "rounds", "model", "task", "what it is"):
        table.add_column(heading, justify="right" if heading in ("clients", "rounds") else "left")
    for name in builtin_scenarios():
        scenario = load_scenario(name)
        table.add_row(
            name,
            str(len(scenario.client_devices)),
            str(scenario.rounds),
            scenario.model.id,
            scenario.task.name,
            scenario.description,
        )
    Console().print(table)


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
