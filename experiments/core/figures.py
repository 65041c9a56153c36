"""The figures of the core experiment, drawn from results.json alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from gathering import at_end, loss_curve
from methods import METHODS

Rows = Sequence[dict[str, Any]]

SHOWN = (
    "exact",
    "exact-combined",
    "exact-combined-or-out",
    "fedit",
    "bandwidth-only",
    "flexlora",
    "deadline",
    "deadline-4-bit",
)
"""Methods with a colour of their own; all others are drawn grey."""
ABLATION = (
    "exact",
    "bcd",
    "pruning-only",
    "bandwidth-only",
    "exact-without-refit",
    "exact-linear-cost",
    "exact-guessed-kappa",
    "exact-fitted-kappa",
    "exact-or-out",
    "exact-4-bit",
    "exact-flexlora",
)
"""The joint plan and what is left without, or comes with, one of its parts."""
TITLES = {
    "gsm8k": "GSM8K",
    "yahoo": "Yahoo Answers",
    "loss": "test loss on the virtual clock",
    "budget": "who waits for whom",
    "target": "time to the best baseline's final loss",
    "ablation": "what each part brings",
    "prediction": "predicted against realised rounds",
}
"""Of tasks and of figures."""


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
            ("ablation", ablation),
            ("prediction", predicted_against_realised),
        ):
            path = folder / f"{task}-{name}.svg"
            drawn, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
            figure(own, axes)
            axes.set_title(f"{TITLES.get(task, task)}: {TITLES[name]}")
            drawn.savefig(path, metadata={"Date": None})
            plt.close(drawn)
            paths.append(path)
    return paths


def _by_method(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    return {
        name: own for name in METHODS if (own := [row for row in rows if row["method"] == name])
    }


def loss_against_time(rows: Rows, axes: Any) -> None:
    """Test loss on the virtual clock: the mean over seeds, and their range as a band.

    Each seed is another cell, so its clock runs in shares of what FedIT takes there.
    """
    units = _units(rows)
    for name, own in _by_method(rows).items():
        end = min(at_end(row, "elapsed_s") / units[row["seed"]] for row in own)
        times = np.linspace(0.0, end, 200)
        losses = []
        for row in own:
            seconds, loss = loss_curve(row)
            losses.append(np.interp(times, np.array(seconds) / units[row["seed"]], loss))
        mean = np.mean(losses, axis=0)
        if name not in SHOWN:
            axes.plot(times, mean, color="0.82", linewidth=0.8, zorder=1)
            continue
        colour = f"C{SHOWN.index(name)}"
        joint = METHODS[name].kind == "joint"
        axes.plot(times, mean, color=colour, linewidth=2.2 if joint else 1.3, label=name)
        low, high = np.min(losses, axis=0), np.max(losses, axis=0)
        axes.fill_between(times, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.plot([], [], color="0.82", linewidth=0.8, label="all others")
    axes.set_xlabel(f"virtual time, {_unit_name(rows)}")
    axes.set_ylabel("test loss per answer token")
    if max(row["curve"]["loss"][0] for row in rows) > 10 * min(row["final_loss"] for row in rows):
        axes.set_yscale("log")
    axes.legend(fontsize=8)


def _units(rows: Rows) -> dict[int, float]:
    """Return the seconds that are one on each seed's clock: all of FedIT's, where it was run."""
    if not _with_fedit(rows):
        return {row["seed"]: 1.0 for row in rows}
    return {row["seed"]: at_end(row, "elapsed_s") for row in rows if row["method"] == "fedit"}


def _with_fedit(rows: Rows) -> bool:
    return {row["seed"] for row in rows} == {r["seed"] for r in rows if r["method"] == "fedit"}


def _unit_name(rows: Rows) -> str:
    return "FedIT's on the same seed = 1" if _with_fedit(rows) else "s"


def latency_budget(rows: Rows, axes: Any) -> None:
    """What a round's mean client does with its time, and how long it waits for the slowest."""
    groups = _by_method(rows)
    units = _units(rows)
    if _with_fedit(rows):
        rounds = {row["seed"]: row["rounds"] for row in rows if row["method"] == "fedit"}
        units = {seed: unit / rounds[seed] for seed, unit in units.items()}
    left = np.zeros(len(groups))
    for phase in ("downlink_s", "compute_s", "upload_s", "waiting_s"):
        seconds = np.array(
            [
                np.mean([row["budget_s"][phase] / units[row["seed"]] for row in own])
                for own in groups.values()
            ]
        )
        label = phase.removesuffix("_s")
        axes.barh(list(groups), seconds, left=left, label=label)
        left += seconds
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(f"mean time of a round, {_unit_name(rows)}")
    axes.legend()


def time_to_target(rows: Rows, axes: Any) -> None:
    """Virtual time to the best baseline's final loss, a point a seed that reached it."""
    units = _units(rows)
    groups = {
        name: own
        for name, own in _by_method(rows).items()
        if any(row["time_to_target_s"] is not None for row in own)
    }
    for at, own in enumerate(groups.values()):
        times = [
            row["time_to_target_s"] / units[row["seed"]]
            for row in own
            if row["time_to_target_s"] is not None
        ]
        axes.plot(times, [at] * len(times), "o", color="C0")
        if len(times) < len(own):
            missing = f"not reached on {len(own) - len(times)} of {len(own)} seeds"
            axes.text(
                0.99, at, missing, transform=axes.get_yaxis_transform(), ha="right", fontsize=6
            )
    axes.set_yticks(range(len(groups)), list(groups), fontsize=7)
    axes.invert_yaxis()
    # Room on the right for what the text there says.
    axes.set_xlim(0.0, 1.3 * axes.get_xlim()[1])
    axes.set_xlabel(f"virtual time to it, {_unit_name(rows)}; methods that never reach it left out")


def ablation(rows: Rows, axes: Any) -> None:
    """What each part of the joint plan brings: time of all rounds, and the loss at their end.

    Points are means over seeds, lines reach over all of them; a loss is that above FedIT's.
    """
    units = _units(rows)
    whole = {row["seed"]: row["final_loss"] for row in rows if row["method"] == "fedit"}
    for number, name in enumerate(ABLATION):
        own = [row for row in rows if row["method"] == name and row["seed"] in whole]
        if not own:
            continue
        times = [at_end(row, "elapsed_s") / units[row["seed"]] for row in own]
        gaps = [row["final_loss"] - whole[row["seed"]] for row in own]
        time, gap = float(np.mean(times)), float(np.mean(gaps))
        axes.errorbar(
            time,
            gap,
            xerr=_reach(times),
            yerr=_reach(gaps),
            fmt="os"[number // 10],
            color=f"C{number % 10}",
            label=name,
        )
    axes.axhline(0.0, color="grey", linewidth=0.8)
    axes.set_xlabel(f"virtual time of all rounds, {_unit_name(rows)}")
    axes.set_ylabel("final test loss above FedIT's")
    axes.legend(fontsize=7)


def _reach(values: Sequence[float]) -> np.ndarray:
    """Return how far below and above their mean values lie; a mean of equals may miss them."""
    mean = np.mean(values)
    return np.maximum([[mean - min(values)], [max(values) - mean]], 0.0)


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
