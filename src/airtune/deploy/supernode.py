"""Flower's SuperNode with a shorter wait between two looks at the server.

`flower-supernode` 1.41 sleeps 3 s after each look that found nothing and 0.5 s between two
looks at its own finished work; neither can be configured. Over a round that is up to 3.5 s a
device in which nothing happens. This runs the same program with those sleeps capped. What it
costs is one small request (about 1 kB) a look while the device has nothing to do.
"""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace


def main() -> None:
    """Run `flower-supernode`; the first argument is the cap on its sleeps, in seconds."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    cap_s = float(sys.argv.pop(1))
    # Only this module's name `time`, and only its sleep: nothing else is touched.
    capped = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, cap_s)))
    vars(start_client_internal)["time"] = capped
    flower_supernode()


if __name__ == "__main__":
    main()
