"""The figures of the core experiment, drawn from results.json alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from methods import METHODS

Rows = Sequence[dict[str, Any]]


def draw(rows: Rows, folder: Path) -> list[Path]:
    """Draw every figure of every task; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        for name, figure in (
            ("loss", loss_against_time),
            ("budget", latency_budget),
            ("target", time_to_target),
            ("prediction", predicted_against_realised),
        ):
            path = folder / f"{task}-{name}.svg"
            drawn, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
            figure(own, axes)
            axes.set_title(task)
            drawn.savefig(path, metadata={"Date": None})
            plt.close(drawn)
            paths.append(path)
    return paths


def _by_method(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    return {
        name: own for name in METHODS if (own := [row for row in rows if row["method"] == name])
    }


def loss_against_time(rows: Rows, axes: Any) -> None:
    """Test loss on the virtual clock: the mean over seeds, and their range as a band."""
    for number, (name, own) in enumerate(_by_method(rows).items()):
        end = min(row["curve"]["elapsed_s"][-1] for row in own)
        times = np.linspace(0.0, end, 100)
        losses = [np.interp(times, row["curve"]["elapsed_s"], row["curve"]["loss"]) for row in own]
        joint = METHODS[name].kind == "joint"
        (line,) = axes.plot(
            times,
            np.mean(losses, axis=0),
            color=f"C{number % 10}",
            linestyle="-" if number < 10 else "--",
            linewidth=2.4 if joint else 1.2,
            label=name,
        )
        low, high = np.min(losses, axis=0), np.max(losses, axis=0)
        axes.fill_between(times, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set_xlabel("virtual time, s")
    axes.set_ylabel("test loss per answer token")
    axes.legend(fontsize=7, ncols=2)


def latency_budget(rows: Rows, axes: Any) -> None:
    """What a round's mean client does with its time, and how long it waits for the slowest."""
    groups = _by_method(rows)
    left = np.zeros(len(groups))
    for phase in ("downlink_s", "compute_s", "upload_s", "waiting_s"):
        seconds = np.array(
            [np.mean([row["budget_s"][phase] for row in g]) for g in groups.values()]
        )
        label = phase.removesuffix("_s")
        axes.barh(list(groups), seconds, left=left, label=label)
        left += seconds
    axes.invert_yaxis()
    axes.set_xlabel("s of a round")
    axes.legend()


def time_to_target(rows: Rows, axes: Any) -> None:
    """Virtual time to the best baseline's final loss, a point a seed; none where not reached."""
    groups = _by_method(rows)
    for at, own in enumerate(groups.values()):
        times = [row["time_to_target_s"] for row in own if row["time_to_target_s"] is not None]
        axes.plot(times, [at] * len(times), "o", color="C0")
        if len(times) < len(own):
            missing = f"{len(own) - len(times)} of {len(own)} not reached"
            axes.text(
                0.99, at, missing, transform=axes.get_yaxis_transform(), ha="right", fontsize=7
            )
    axes.set_yticks(range(len(groups)), list(groups))
    axes.invert_yaxis()
    axes.set_xlabel("virtual time to the target loss, s")


def predicted_against_realised(rows: Rows, axes: Any) -> None:
    """Each round's latency as the plan expected it and as it came out."""
    for number, (name, own) in enumerate(_by_method(rows).items()):
        predicted = [value for row in own for value in row["predicted_latency_s"]]
        realised = [value for row in own for value in row["round_latency_s"]]
        axes.plot(predicted, realised, ".", color=f"C{number % 10}", label=name)
    axes.axline((0, 0), slope=1, color="grey", linewidth=0.8)
    axes.set_xlabel("predicted round latency, s")
    axes.set_ylabel("realised, s")
    axes.legend(fontsize=7, ncols=2)
