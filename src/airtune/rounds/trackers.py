"""A run told to experiment trackers, through Accelerate's trackers (`airtune[trackers]`).

Told are, a round each: losses, metrics, virtual clock, bits, FLOP, and every client's times; at the
start the resolved scenario. The record stays what counts: a tracker that fails is said so once, and
the run goes on without it.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airtune.errors import InputError
from airtune.record import RoundRecord
from airtune.record.schema import plain
from airtune.rounds.observer import Observer
from airtune.scenario import Scenario

TRACKERS = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}
"""Names that `--tracker` allows, with the package that each needs."""
TIMES = ("downlink_s", "compute_s", "upload_s", "total_s")
LONGEST = 250
"""Characters of a value that every tracker takes as a parameter."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse what is no tracker, is named twice, or is not installed; raises `InputError`."""
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"--tracker '{name}': allowed are {', '.join(TRACKERS)}")
        if list(names).count(name) > 1:
            raise InputError(f"--tracker '{name}': given twice")
        for package in ("accelerate", *TRACKERS[name]):
            if importlib.util.find_spec(package) is None:
                raise InputError(
                    f"--tracker {name} needs {package}: pip install {package}"
                    + (", or 'airtune[trackers]'" if name in ("tensorboard", "mlflow") else "")
                )


class Tracked(Observer):
    """Tells trackers of a run, and passes everything on to another observer.

    Args:
        names: of trackers.
        scenario: the run's.
        folder: where a tracker that writes files puts them, outside the run directory, which has to
            be empty when a run begins; its name is the run's in the tracker.
        inner: the observer that is told, too.
        project: the name under which runs are grouped.

    Raises:
        InputError: a tracker is unknown, not installed, or cannot be started.
    """

    def __init__(
        self,
        names: Sequence[str],
        scenario: Scenario,
        folder: Path,
        inner: Observer | None = None,
        project: str | None = None,
    ) -> None:
        check_trackers(names)
        self._inner = inner or Observer()
        self._trackers: dict[str, Any] = {}
        for name in names:
            try:
                tracker = _started(name, project or scenario.name, folder)
                tracker.store_init_configuration(parameters(scenario))
            except Exception as error:  # trackers raise errors of their own
                line = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise InputError(f"--tracker {name} cannot be started: {line}") from None
            self._trackers[name] = tracker

    def preparing(self, what: str) -> None:
        """Pass it on."""
        self._inner.preparing(what)

    def noticed(self, what: str) -> None:
        """Pass it on."""
        self._inner.noticed(what)

    def started(self, initial_loss: float | None) -> None:
        """Tell the loss before training as that of round 0."""
        self._inner.started(initial_loss)
        if initial_loss is not None:
            self._tell({"eval_loss": initial_loss, "elapsed_s": 0.0}, 0)

    def client_started(self, round: int, client: str) -> None:
        """Pass it on."""
        self._inner.client_started(round, client)

    def round_ended(self, record: RoundRecord) -> None:
        """Tell the round's numbers."""
        self._inner.round_ended(record)
        self._tell(values_of(record), record.round)

    def close(self) -> None:
        """Have every tracker write what it still holds."""
        for name, tracker in self._trackers.items():
            try:
                tracker.finish()
            except Exception as error:  # the record is whole without it
                self._inner.noticed(f"tracker {name}: {error}")
        self._trackers = {}

    def _tell(self, values: Mapping[str, float], round: int) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(dict(values), step=round)
            except Exception as error:  # a tracker must not end the run
                del self._trackers[name]
                self._inner.noticed(f"tracker {name} failed and is left out: {error}")


@contextmanager
def tracked(
    names: Sequence[str], scenario: Scenario, folder: Path, inner: Observer
) -> Iterator[Observer]:
    """Give an observer that tells trackers of the run in `folder`, too; raises `InputError`.

    TensorBoard's files go beside the run directory, into `<folder>-tracker`.
    """
    if not names:
        yield inner
        return
    watch = Tracked(names, scenario, folder.with_name(f"{folder.name}-tracker"), inner)
    try:
        yield watch
    finally:
        watch.close()


def values_of(record: RoundRecord) -> dict[str, float]:
    """Return a round's numbers by name; what was not measured is left out."""
    values: dict[str, float | None] = {
        "eval_loss": record.eval_loss,
        "train_loss": record.train_loss,
        "elapsed_s": record.elapsed_s,
        "round_latency_s": record.round_latency_s,
        "predicted_latency_s": record.predicted_latency_s,
        "uplink_bits": record.uplink_bits,
        "downlink_bits": record.downlink_bits,
        "flops": record.flops,
        "pruning_loss": record.pruning_loss,
        "gap": record.gap,
        **{f"metrics/{name}": value for name, value in record.metrics.items()},
    }
    for client in record.clients:
        for key in (*TIMES, "pruning", "train_loss"):
            values[f"clients/{client.name}/{key}"] = getattr(client, key)
    return {key: float(value) for key, value in values.items() if value is not None}


def parameters(scenario: Scenario) -> dict[str, Any]:
    """Return the resolved scenario as flat keys with plain values."""
    found: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                add(f"{prefix}.{key}" if prefix else str(key), item)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                add(f"{prefix}.{index}", item)
        else:
            found[prefix] = "none" if value is None else value

    add("", plain(scenario.model_dump(mode="json")))
    return {k: v[:LONGEST] if isinstance(v, str) else v for k, v in found.items()}


def _started(name: str, project: str, folder: Path) -> Any:
    from accelerate import PartialState, tracking

    PartialState(cpu=True)
    logging.getLogger("accelerate.tracking").setLevel(logging.ERROR)
    if name == "tensorboard":
        tracker: Any = tracking.TensorBoardTracker(folder.name, logging_dir=str(folder.parent))
    elif name == "mlflow":
        tracker = tracking.MLflowTracker(experiment_name=project, run_name=folder.name)
    elif name == "wandb":
        tracker = tracking.WandBTracker(project, name=folder.name)
    else:
        tracker = tracking.TrackioTracker(project, name=folder.name)
    tracker.start()
    return tracker
