"""`airtune deploy`: keys, the server, devices, and runs on them, through Flower."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airtune.cli import deploy_runs

if TYPE_CHECKING:
    from airtune.deploy.server import ServerFolder

app = typer.Typer(
    help="Run on real devices through Flower: keys, server, devices, runs.",
    epilog="Example: airtune deploy keys server --address 192.0.2.10",
    no_args_is_help=True,
)
keys = typer.Typer(help="Make the keys of a deployment.", no_args_is_help=True)
app.add_typer(keys, name="keys")
for command in (deploy_runs.run, deploy_runs.status, deploy_runs.stop, deploy_runs.attach):
    app.command()(command)
app.command("try")(deploy_runs.try_here)

State = Annotated[Path, typer.Option("--state", help="Folder of the server's state.")]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="No TLS, no device keys: for trying out on one machine only."),
]
LogLevel = Annotated[
    str, typer.Option("--log-level", help="How much goes into the logs: debug to error.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the scenario."),
]


@keys.command("server")
def server_keys(
    address: Annotated[
        list[str],
        typer.Option("--address", help="Name or IP by which devices reach the server; repeatable."),
    ],
    folder: Annotated[Path, typer.Option("--dir", help="Where the keys go.")] = Path("keys"),
    renew: Annotated[
        bool, typer.Option("--renew", help="A new certificate; the old one moves to .old.")
    ] = False,
) -> None:
    """Make a certificate authority (once) and the server's certificate.

    Give ca.crt to every device; keep everything else in the folder to yourself.
    """
    from airtune.deploy.keys import make_server_keys

    made = make_server_keys(folder, address, renew=renew)
    typer.echo(f"for the server:     {made.certificate}, {made.private_key}")
    typer.echo(f"for every device:   {made.authority}")


@keys.command("device", epilog="Example: airtune deploy keys device --scenario demo")
def device_key(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of devices, e.g. their clients'.")
    ] = None,
    scenario: Annotated[
        str | None, typer.Option("--scenario", help="One key for each client of this scenario.")
    ] = None,
    folder: Annotated[Path, typer.Option("--dir", help="Where the keys go.")] = Path("keys"),
    renew: Annotated[
        bool, typer.Option("--renew", help="A new key; the old one moves to .old.")
    ] = False,
) -> None:
    """Make devices' key pairs: each best on the device itself.

    Give the .pub file to the server's operator; the other half stays on the device.
    """
    from airtune.deploy.keys import make_device_key
    from airtune.errors import InputError
    from airtune.scenario import load_scenario

    wanted = list(names or [])
    if scenario is not None:
        wanted += load_scenario(scenario, []).client_names
    if not wanted:
        raise InputError("no device: give names, or --scenario for all its clients")
    for name in wanted:
        made = make_device_key(folder, name, renew=renew)
        typer.echo(f"stays on the device: {made.private_key}")
        typer.echo(f"for the server:      {made.public_key}")


@app.command(
    "register",
    epilog="Example: airtune deploy register keys/*.pub registers each as the client it is named "
    "after; --replace rotates a key.",
)
def register(
    public_keys: Annotated[list[Path], typer.Argument(help="The devices' .pub files.")],
    client: Annotated[
        str | None,
        typer.Option(
            "--client", help="The scenario's client that it plays. Default: the file's name."
        ),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            "--scenario",
            help=(
                "Refuse clients that this scenario does not have. Default: the scenario of "
                "`deploy server`, or of the run in progress."
            ),
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Revoke the client's other keys.")
    ] = False,
    state: State = Path("deployment"),
) -> None:
    """Admit devices to a started server: their keys, and which client each plays."""
    from airtune.deploy import admission, server
    from airtune.errors import InputError

    if client is not None and len(public_keys) > 1:
        raise InputError(f"--client '{client}': one client for {len(public_keys)} keys; leave it")
    plays = {path: client or path.stem for path in public_keys}
    folder = server.ServerFolder(state.resolve())
    where, known = _expected(folder, scenario)
    for name in plays.values():
        if known and name not in known:
            raise InputError(f"client '{name}' is not in {where}: {', '.join(known)}")
    for line in admission.register(folder, plays, replace=replace):
        typer.echo(line)


def _expected(folder: ServerFolder, scenario: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the clients that may be registered, and where they are from; none: any."""
    from airtune.deploy import runs, server
    from airtune.scenario import load_scenario

    if scenario is not None:
        return f"'{scenario}'", load_scenario(scenario, []).client_names
    if own := server.about(folder).get("clients"):
        return "the server's scenario", tuple(own)
    going = runs.current(folder)
    if going is None:
        return "", ()
    where = f"'{going.about['scenario']}', of run {going.id}"
    return f"{where} (`--scenario` names another)", runs.clients_of(going)


@app.command("revoke", epilog="Example: airtune deploy revoke jetson-orin-nano-1")
def revoke(
    clients: Annotated[list[str], typer.Argument(help="Clients whose keys are taken away.")],
    state: State = Path("deployment"),
) -> None:
    """Take devices' keys off a started server; their next request is refused."""
    from airtune.deploy import admission, server

    for client in clients:
        for line in admission.revoke(server.ServerFolder(state.resolve()), client):
            typer.echo(line)


@app.command("server")
def serve(
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            help="Address to listen on. Default: 0.0.0.0; with --insecure 127.0.0.1.",
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 9443,
    keys_folder: Annotated[Path, typer.Option("--keys", help="Folder of the keys.")] = Path("keys"),
    state: State = Path("deployment"),
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics",
            min=1,
            max=65535,
            help="Port of 127.0.0.1 for Prometheus. Default: no metrics.",
        ),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option("--scenario", help="`register` refuses clients that it has not."),
    ] = None,
    overrides: Overrides = None,
    log_level: LogLevel = "info",
    insecure: Insecure = False,
) -> None:
    """Start the server that devices connect to; ends with Ctrl-C."""
    from airtune.deploy import loglevel, server
    from airtune.scenario import load_scenario

    loglevel.set_level(log_level)

    def ready() -> None:
        how = "without TLS and without device keys" if insecure else "TLS, registered keys only"
        typer.echo(f"ready on {host}:{port} ({how}); state in {state}")

    folder = None if insecure else keys_folder.resolve()
    host = host or ("127.0.0.1" if insecure else "0.0.0.0")
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        where = server.ServerFolder(state.resolve())
        clients = () if scenario is None else load_scenario(scenario, overrides or []).client_names
        server.serve(where, host, port, folder, ready, metrics_port=metrics_port, clients=clients)


@app.command("device")
def device(
    server: Annotated[str, typer.Option("--server", help="host:port of the server.")],
    client: Annotated[str, typer.Option("--client", help="The scenario's client it plays.")],
    scenario: Annotated[str, typer.Option("--scenario", help="This device's copy.")] = "demo",
    authority: Annotated[Path, typer.Option("--ca", help="The deployment's ca.crt.")] = Path(
        "keys/ca.crt"
    ),
    key: Annotated[
        Path | None,
        typer.Option("--key", help="This device's private key. Default: keys/CLIENT."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Working folder. Default: device-CLIENT.")
    ] = None,
    pace: Annotated[
        str, typer.Option("--pace", help="What paces the upload: relay, none, tc:INTERFACE.")
    ] = "relay",
    poll_s: Annotated[
        float, typer.Option("--poll", min=0.05, max=60, help="Longest wait between looks, s.")
    ] = 0.5,
    privacy: Annotated[
        str | None,
        typer.Option(
            "--privacy",
            metavar="clip=C,noise=Z",
            help="Clip and noise every update; also delta=1e-5, budget=EPSILON.",
        ),
    ] = None,
    emulate: Annotated[
        str | None,
        typer.Option(
            "--emulate",
            metavar="PROFILE",
            help="Take this device's time: a profile's name or file, or scenario for its own.",
        ),
    ] = None,
    secure_aggregation: Annotated[
        bool, typer.Option("--secure-aggregation", help="Refused, with the reason.", hidden=True)
    ] = False,
    overrides: Overrides = None,
    log_level: LogLevel = "info",
    insecure: Insecure = False,
) -> None:
    """Take part as one client, on this machine; ends with Ctrl-C."""
    from airtune.deploy.loglevel import set_level
    from airtune.deploy.node import Place, run_device
    from airtune.deploy.privacy import (
        LEAVES_WITHOUT_NOISE,
        SECURE_AGGREGATION_REFUSED,
        parse_privacy,
    )
    from airtune.deploy.processes import split_address
    from airtune.errors import InputError
    from airtune.scenario import load_scenario

    set_level(log_level)
    deploy_runs.check_number("--poll", poll_s, "from 0.05 to 60")
    if secure_aggregation:
        raise InputError(SECURE_AGGREGATION_REFUSED)
    if privacy is not None:
        typer.echo(LEAVES_WITHOUT_NOISE)
    place = Place(
        server=split_address(server),
        authority=None if insecure else authority.resolve(),
        key=None if insecure else (key or Path("keys") / client).resolve(),
        pace=pace,
        poll_s=poll_s,
    )
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        run_device(
            load_scenario(scenario, overrides or []),
            client,
            place,
            folder or Path(f"device-{client}"),
            privacy=None if privacy is None else parse_privacy(privacy),
            emulate=emulate,
            ready=lambda: typer.echo(f"{client} is ready"),
        )
