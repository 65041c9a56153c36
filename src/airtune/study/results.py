"""Run directories read back: one frozen value a run, and what reaching a loss took it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from airtune.errors import InputError
from airtune.record import Record, RoundRecord, read_record
from airtune.record.schema import OK
from airtune.study.jobs import Job, Point
from airtune.study.keys import folder_of
from airtune.study.running import FINISHED, state_of
from airtune.study.schema import Study

PHASES = ("downlink_s", "compute_s", "upload_s")
DIVERGED = "diverged"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one run came to.

    Attributes:
        method: its name.
        kind: joint, baseline, rival or ablation.
        seed: the scenario's.
        point: where on the axes.
        key: names the run directory.
        status: finished, diverged (it ended and its last loss is no finite number), failed, begun
            or missing.
        error: why it failed.
        loss: test loss before training and after each round; None where not measured.
        elapsed_s: s of the virtual clock at the same moments.
        uplink_bits: bits sent until then.
        downlink_bits: bits that crossed the air downwards until then.
        flops: until then, of all clients.
        energy_j: J until then, of all clients; () where the run recorded none.
        metrics: of the last evaluation.
        budget_s: mean s a round of one client's phases, and of waiting for the slowest.
        wall_s: real time of its rounds.
        version: of airtune.
    """

    method: str
    kind: str
    seed: int
    point: Point
    key: str
    status: str
    error: str | None = None
    loss: tuple[float | None, ...] = ()
    elapsed_s: tuple[float, ...] = ()
    uplink_bits: tuple[float, ...] = ()
    downlink_bits: tuple[float, ...] = ()
    flops: tuple[float, ...] = ()
    energy_j: tuple[float, ...] = ()
    metrics: dict[str, float | None] = field(default_factory=dict)
    budget_s: dict[str, float] = field(default_factory=dict)
    wall_s: float = 0.0
    version: str | None = None

    @property
    def usable(self) -> bool:
        """Whether the run finished with a finite loss."""
        return self.status == FINISHED

    @property
    def final_loss(self) -> float | None:
        """The last loss; None where the run has none."""
        return self.loss[-1] if self.usable else None

    def reached(self, loss: float) -> int | None:
        """Return the first round whose loss is not above this; None if none is.

        From 1 on: the loss before training took nothing to reach. Rounds that were not evaluated
        are passed over; nothing is interpolated.
        """
        losses = enumerate(self.loss)
        return next((i for i, own in losses if i and own is not None and own <= loss), None)


def results_of(study: Study, jobs: Sequence[Job], folder: Path) -> list[Result]:
    """Return the results of a study's runs, in its order; equal runs are read once."""
    seen: dict[str, Result] = {}
    found = []
    for job in jobs:
        kind = study.methods[job.method].kind if job.method in study.methods else "joint"
        if job.key not in seen:
            seen[job.key] = _result(job, folder)
        own = seen[job.key]
        values = {name: getattr(own, name) for name in own.__dataclass_fields__}
        own_place = {"method": job.method, "kind": kind, "seed": job.seed, "point": job.point}
        found.append(Result(**{**values, **own_place}))
    return found


def _result(job: Job, folder: Path) -> Result:
    state, error = state_of(folder, job)
    place: dict[str, Any] = {
        "method": job.method, "kind": "", "seed": job.seed, "point": job.point, "key": job.key,
    }  # fmt: skip
    if state != FINISHED:
        return Result(**place, status=state, error=error)
    return Result(**place, **_measured(read_record(folder_of(folder, job.key))))


def _measured(record: Record) -> dict[str, Any]:
    rounds, cell = record.rounds, record.description
    if not rounds:
        raise InputError(f"'{record.path}' is finished and has no round: remove it and run again")
    loss = (cell.initial_eval_loss if cell else None, *(one.eval_loss for one in rounds))
    ended = loss[-1] is not None and math.isfinite(loss[-1])
    setup_flops = cell.setup_flops if cell else 0.0
    energy = [one.energy_j for one in rounds]
    return {
        "status": FINISHED if ended else DIVERGED,
        "error": None if ended else "its last loss is no finite number",
        "loss": loss,
        "elapsed_s": (0.0, *(one.elapsed_s for one in rounds)),
        "uplink_bits": _running([one.uplink_bits for one in rounds]),
        "downlink_bits": _running([one.downlink_bits for one in rounds]),
        "flops": (0.0, *(f + setup_flops for f in _running([o.flops for o in rounds])[1:])),
        "energy_j": () if None in energy else _running([e for e in energy if e is not None]),
        "metrics": dict(next((r.metrics for r in reversed(rounds) if r.metrics), {})),
        "budget_s": _budget(rounds),
        "wall_s": sum(one.wall_s for one in rounds),
        "version": record.versions.get("airtune"),
    }


def _running(values: Sequence[float]) -> tuple[float, ...]:
    return (0.0, *(float(total) for total in np.cumsum(values)))


def _budget(rounds: Sequence[RoundRecord]) -> dict[str, float]:
    """Mean seconds a round of one client's phases, and of waiting for the slowest."""
    means = []
    for one in rounds:
        # Where every upload of a round was lost, those who sent one stand for it.
        arrived = [client for client in one.clients if client.status == OK]
        present = arrived or list(one.clients)
        phases = [float(np.mean([getattr(c, phase) for c in present])) for phase in PHASES]
        means.append([*phases, one.round_latency_s - sum(phases)])
    totals = np.mean(means, axis=0)
    return dict(zip((*PHASES, "waiting_s"), (float(value) for value in totals), strict=True))


def best_candidate(candidates: Sequence[Result]) -> int:
    """Return which candidate has the lowest held-out loss in the second half of a common time.

    A mean over time, because clients of few labels make the loss swing from round to round.

    Raises:
        InputError: none finished with a finite loss.
    """
    known = [i for i, one in enumerate(candidates) if one.usable]
    if not known:
        what = candidates[0]
        raise InputError(
            f"search: no candidate of '{what.method}' finished: {what.error or what.status}"
        )
    common = min(candidates[i].elapsed_s[-1] for i in known)
    times = np.linspace(common / 2, common, 101)

    def loss(i: int) -> float:
        seconds, losses = loss_curve(candidates[i])
        return float(np.interp(times, seconds, losses).mean())

    return min(known, key=loss)


def loss_curve(result: Result) -> tuple[list[float], list[float]]:
    """Return a run's seconds and losses, of the rounds that were evaluated."""
    pairs = zip(result.elapsed_s, result.loss, strict=True)
    known = [(time, loss) for time, loss in pairs if loss is not None]
    return [time for time, _ in known], [loss for _, loss in known]
