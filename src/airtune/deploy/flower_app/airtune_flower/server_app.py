"""The server's end: the round loop, with Flower's grid as its mailbox."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario that the configuration names on the connected devices."""
    from airtune.deploy.app import run_on_devices
    from airtune.deploy.mailbox import GridMailbox

    run_on_devices(GridMailbox(grid), context.run_config, run_id=f"run-{context.run_id}")
