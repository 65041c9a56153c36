"""Flower's SuperNode with a shorter wait between two looks at the server.

`flower-supernode` 1.41 sleeps 3 s after each look that found nothing and 0.5 s between two
looks at its own finished work, and a second before it asks again for a part of a message that the
server has not finished storing; none can be configured. Over a round that is up to 4.5 s a device
in which nothing happens. This runs the same program with those waits capped. What it
costs is one small request (about 1 kB) a look while the device has nothing to do.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from types import SimpleNamespace


def main() -> None:
    """Run `flower-supernode`; the first argument is the cap on its sleeps, in seconds."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    cap_s = float(sys.argv.pop(1))
    # Only two names of this one module: its clock's sleep, and the patience of its pulls.
    capped = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, cap_s)))
    vars(start_client_internal)["time"] = capped
    vars(start_client_internal)["pull_objects"] = partial(
        start_client_internal.pull_objects, initial_backoff=min(cap_s, 0.1), backoff_cap=cap_s
    )
    flower_supernode()


if __name__ == "__main__":
    main()
