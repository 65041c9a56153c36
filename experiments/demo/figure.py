"""Draw the README's figure from the committed records, and say their numbers in a sentence.

python experiments/demo/figure.py        # writes docs/figures/demo.svg, prints the sentence
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from airtune.record import Record, read_record

FOLDER = Path(__file__).parent
FIGURE = FOLDER.parents[1] / "docs" / "figures" / "demo.svg"
RUNS = {
    # label, colour, where the label stands (points from the last point), its alignment
    "exact": ("planned jointly", "#0b6bb3", (9, -4), "left"),
    "none": ("no plan", "#d55e00", (0, 9), "right"),
}


def records() -> dict[str, Record]:
    """Read the two committed runs."""
    return {name: read_record(FOLDER / name) for name in RUNS}


def points(record: Record) -> tuple[list[float], list[float]]:
    """Return virtual time (s) and test loss, from before training to the last round."""
    assert record.description is not None
    assert record.description.initial_eval_loss is not None
    times, losses = [0.0], [record.description.initial_eval_loss]
    for entry in record.rounds:
        if entry.eval_loss is not None:
            times.append(entry.elapsed_s)
            losses.append(entry.eval_loss)
    return times, losses


def sentence(runs: dict[str, Record]) -> str:
    """Say what the figure shows; the README holds this very sentence."""
    (fast_s, fast), (slow_s, slow) = (points(runs[name]) for name in ("exact", "none"))
    less = 1 - fast_s[-1] / slow_s[-1]
    bits = 1 - sum(r.uplink_bits for r in runs["exact"].rounds) / sum(
        r.uplink_bits for r in runs["none"].rounds
    )
    return (
        f"The demo, {len(fast) - 1} rounds of eight devices fine-tuning SmolLM2-135M: "
        f"{fast_s[-1]:.0f} s of virtual time instead of {slow_s[-1]:.0f} s ({less:.0%} less), "
        f"{bits:.0%} fewer uplink bits, test loss {fast[0]:.3f} → {fast[-1]:.3f} instead of "
        f"{slow[-1]:.3f}."
    )


def main() -> None:
    """Write the figure."""
    runs = records()
    plt.rcParams.update({"font.family": "sans-serif", "svg.hashsalt": "airtune", "font.size": 11})
    figure, axes = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
    for name, (label, colour, offset, side) in RUNS.items():
        times, losses = points(runs[name])
        axes.plot(times, losses, marker="o", markersize=4, linewidth=2, color=colour)
        axes.annotate(
            label, (times[-1], losses[-1]), offset, textcoords="offset points",
            ha=side, color=colour, weight="bold",
        )  # fmt: skip
    axes.set(xlabel="virtual time (s)", ylabel="test loss (nats per answer token)")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})
    print(sentence(runs))


if __name__ == "__main__":
    main()
