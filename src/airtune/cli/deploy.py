"""`airtune deploy`: keys, the server, devices, and runs on them, through Flower."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Run on real devices through Flower: keys, server, devices, runs.",
    epilog="Example: airtune deploy keys server --address 192.0.2.10",
    no_args_is_help=True,
)
keys = typer.Typer(help="Make the keys of a deployment.", no_args_is_help=True)
app.add_typer(keys, name="keys")

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
) -> None:
    """Make a certificate authority (once) and the server's certificate.

    Give ca.crt to every device; keep everything else in the folder to yourself.
    """
    from airtune.deploy.keys import make_server_keys

    made = make_server_keys(folder, address)
    typer.echo(f"for the server:     {made.certificate}, {made.private_key}")
    typer.echo(f"for every device:   {made.authority}")


@keys.command("device")
def device_key(
    name: Annotated[str, typer.Argument(help="The device's name, e.g. its client's.")],
    folder: Annotated[Path, typer.Option("--dir", help="Where the key goes.")] = Path("keys"),
) -> None:
    """Make a device's key pair, on the device itself.

    Give the .pub file to the server's operator; the other half stays here.
    """
    from airtune.deploy.keys import make_device_key

    made = make_device_key(folder, name)
    typer.echo(f"stays on the device: {made.private_key}")
    typer.echo(f"for the server:      {made.public_key}")


@app.command("register")
def register(
    public_key: Annotated[Path, typer.Argument(help="The device's .pub file.")],
    client: Annotated[str, typer.Option("--client", help="The scenario's client that it plays.")],
    state: State = Path("deployment"),
) -> None:
    """Admit a device to a started server: its key, and which client it plays."""
    from airtune.deploy import server

    server.register(server.State(state.resolve()), public_key, client)
    typer.echo(f"registered {public_key} as {client}")


@app.command("server")
def serve(
    host: Annotated[
        str | None,
        typer.Option("--host", help="Address to listen on [0.0.0.0; with --insecure 127.0.0.1]."),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 9443,
    keys_folder: Annotated[Path, typer.Option("--keys", help="Folder of the keys.")] = Path("keys"),
    state: State = Path("deployment"),
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics", min=1, max=65535, help="Port of 127.0.0.1 for Prometheus [no metrics]."
        ),
    ] = None,
    log_level: LogLevel = "info",
    insecure: Insecure = False,
) -> None:
    """Start the server that devices connect to; ends with Ctrl-C."""
    from airtune.deploy import loglevel, server

    loglevel.set_level(log_level)

    def ready() -> None:
        how = "without TLS and without device keys" if insecure else "TLS, registered keys only"
        typer.echo(f"ready on {host}:{port} ({how}); state in {state}")

    folder = None if insecure else keys_folder.resolve()
    host = host or ("127.0.0.1" if insecure else "0.0.0.0")
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        where = server.State(state.resolve())
        server.serve(where, host, port, folder, ready, metrics_port=metrics_port)


@app.command("device")
def device(
    server: Annotated[str, typer.Option("--server", help="host:port of the server.")],
    client: Annotated[str, typer.Option("--client", help="The scenario's client it plays.")],
    scenario: Annotated[str, typer.Option("--scenario", help="This device's copy.")] = "demo",
    authority: Annotated[Path, typer.Option("--ca", help="The deployment's ca.crt.")] = Path(
        "keys/ca.crt"
    ),
    key: Annotated[
        Path | None, typer.Option("--key", help="This device's private key [keys/CLIENT].")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Working folder [device-CLIENT].")
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
            ready=lambda: typer.echo(f"{client} is ready"),
        )


@app.command("run")
def run(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or a built-in one.")] = "demo",
    out: Annotated[Path | None, typer.Option("--out", help="Where the run is recorded.")] = None,
    devices: Annotated[
        int, typer.Option("--devices", min=0, help="Fewest devices to start with; 0: all.")
    ] = 0,
    wait_s: Annotated[float, typer.Option("--wait", min=0, help="How long to wait, s.")] = 60.0,
    slack: Annotated[
        float, typer.Option("--slack", min=1, help="Deadline: the plan's round latency times this.")
    ] = 3.0,
    engine_s: Annotated[
        float, typer.Option("--grace", min=0, help="…plus this, for Flower's own time, s.")
    ] = 30.0,
    longest_s: Annotated[
        float, typer.Option("--longest", min=1, help="…and no round waits longer than this, s.")
    ] = 3600.0,
    allow_privacy: Annotated[
        str | None,
        typer.Option(
            "--allow-privacy",
            metavar="clip=C,noise=Z",
            help="Let devices clip and noise their updates, at most so; without it none may.",
        ),
    ] = None,
    bands: Annotated[
        Path | None, typer.Option("--bands", help="Unix socket of what enforces the band shares.")
    ] = None,
    app_folder: Annotated[Path, typer.Option("--app", help="The Flower app.")] = Path("flower"),
    state: State = Path("deployment"),
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = (
        False
    ),
    replace: Annotated[bool, typer.Option("--replace", help="Throw away what --out holds.")] = (
        False
    ),
) -> None:
    """Run a scenario on the connected devices and wait for its end."""
    from airtune.deploy import server
    from airtune.deploy.privacy import parse_privacy
    from airtune.scenario import load_scenario

    if allow_privacy is not None:
        parse_privacy(allow_privacy, "--allow-privacy")
    loaded = load_scenario(scenario, overrides or [])
    where = server.State(state.resolve())
    folder = (out or Path("runs") / f"{loaded.name}-devices").resolve()
    source = Path(scenario).resolve() if Path(scenario).is_file() else scenario
    settings: dict[str, str | int | float | bool] = {
        "scenario": str(source),
        "overrides": server.as_json(overrides or []),
        "out": str(folder),
        "resume": resume,
        "replace": replace,
        "devices": devices,
        "wait-s": float(wait_s),
        "slack": float(slack),
        "engine-s": float(engine_s),
        "longest-s": float(longest_s),
        "allow-privacy": allow_privacy or "",
        "wire": str(where.wire_log),
        "bands": "" if bands is None else str(bands.resolve()),
        "outcome": str(where.outcome),
        "progress": str(where.progress),
    }
    _await(server.submit(where, app_folder, settings), where.progress, folder)


def _await(submitted: Any, progress: Path, folder: Path) -> None:
    import time

    from airtune.errors import InputError, RunError

    printed = 0
    try:
        while (ended := submitted.outcome()) is None:
            printed = _print_new(progress, printed)
            time.sleep(0.5)
    except KeyboardInterrupt:
        submitted.stop()
        raise
    _print_new(progress, printed)
    if not ended["ok"]:
        raise (InputError if ended["exit"] == 2 else RunError)(ended["error"])
    typer.echo(f"record: {folder}")


def _print_new(path: Path, printed: int) -> int:
    if not path.exists():
        return printed
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines[printed:]:
        typer.echo(line)
    return len(lines)
