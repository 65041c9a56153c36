"""Engines by name, for the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from airtune.engines import Engine
from airtune.engines.local import LocalEngine
from airtune.errors import InputError
from airtune.scenario import Scenario

ENGINES = ("local", "ray")


def engine_maker(
    name: str,
    *,
    workers: int | None = None,
    address: str | None = None,
    gpus_per_worker: float = 0.0,
    threads: int | None = None,
) -> Callable[[Scenario], Engine]:
    """Return what makes the named engine with these options.

    Raises:
        InputError: no such engine, or an option that it does not have.
    """
    if name not in ENGINES:
        raise InputError(f"--engine '{name}': allowed are {', '.join(ENGINES)}")
    if threads is not None and threads < 1:
        raise InputError(f"--threads {threads}: must be 1 or more")
    cores = os.cpu_count() or 1
    if threads is not None and address is None and threads > cores:
        raise InputError(f"--threads {threads}: this machine has {cores}; allowed: 1 to {cores}")
    if name == "local":
        if gpus_per_worker:
            raise InputError(f"--gpus-per-worker {gpus_per_worker:g}: only with --engine ray")
        for option, value in (("--workers", workers), ("--address", address)):
            if value is not None:
                raise InputError(f"{option} {value}: only with --engine ray")
        return partial(LocalEngine, threads=threads)
    from airtune.engines.ray import RayEngine

    return partial(
        RayEngine,
        workers=workers,
        address=address,
        gpus_per_worker=gpus_per_worker,
        threads=threads,
    )
