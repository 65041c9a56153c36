"""Flower's SuperNode as a device runs it: shorter waits, patience, and a sign of life.

`flower-supernode` 1.41 sleeps 3 s after each look that found nothing and 0.5 s between two
looks at its own finished work, and a second before it asks again for a part of a message that the
server has not finished storing; none can be configured. Over a round that is up to 4.5 s a device
in which nothing happens. It gives up for good where a TLS handshake breaks, and then its main
thread ends while another keeps the process alive. This runs the same program with those waits
capped, with every broken connection tried again, and it ends when its main thread does.

The file named in the first argument tells `watch.py` how it goes: `connected` once the server
has admitted this device and answered its first look for work, touched at every later answer;
`refused 412` or `refused 401` while the server does not admit it.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from airtune.deploy.flower_names import prepare_supernode

ENDED = 75
"""Exit status when SuperNode ended without being asked to (EX_TEMPFAIL: start it again)."""
CONNECTED, REFUSED = "connected", "refused"
_TOUCH_EVERY_S = 0.5


class Contact:
    """Writes how the connection goes into a file.

    Args:
        file: what is written and touched.
        clock: tests replace it.
    """

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file, clock
        self._said = ""
        self._touched_s = -1e9

    def answered(self, path: str) -> None:
        """Note an answer; the first to a look for work says that the device is connected."""
        if path.endswith("pull-messages") or self._said == CONNECTED:
            self._say(CONNECTED)

    def refused(self, status: int) -> None:
        """Note that the server does not admit this device."""
        self._say(f"{REFUSED} {status}")

    def _say(self, text: str) -> None:
        now_s = self._clock()
        if text == self._said and now_s < self._touched_s + _TOUCH_EVERY_S:
            return
        self._said, self._touched_s = text, now_s
        self._file.write_text(text)


def _forgotten() -> None:
    print("SuperNode ended: the server no longer knows this device", flush=True)
    os._exit(ENDED)


def main() -> None:
    """Run SuperNode; the arguments begin with the file of `Contact` and the cap on its waits, s."""
    contact = Contact(Path(sys.argv.pop(1)))
    cap_s = float(sys.argv.pop(1))
    status = ENDED
    try:
        prepare_supernode(cap_s, contact.answered, contact.refused, _forgotten)()
        print("SuperNode ended: its connection broke", flush=True)
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # another thread of Flower's would keep the process alive


if __name__ == "__main__":
    main()
