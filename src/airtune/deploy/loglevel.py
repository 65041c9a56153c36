"""How much the processes of a deployment write into their logs."""

from __future__ import annotations

import os

from airtune.errors import InputError

LEVELS = ("debug", "info", "warning", "error")
VARIABLE = "FLWR_LOG_LEVEL"
"""Flower's own; the gateway reads it too, and every process inherits it."""


def set_level(level: str) -> None:
    """Have the processes that are started from now on write so much; raises `InputError`."""
    if level not in LEVELS:
        raise InputError(f"--log-level '{level}': allowed are {', '.join(LEVELS)}")
    os.environ[VARIABLE] = level.upper()


def gateway_level() -> str:
    """Return uvicorn's level: refused requests, one line each, at debug alone.

    They are counted in any case. A refused client could fill the disk with them.
    """
    level = os.environ.get(VARIABLE, "info").lower()
    return "debug" if level == "debug" else "error"
