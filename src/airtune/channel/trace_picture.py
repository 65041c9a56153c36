"""What a trace was read as: its figures, and a picture of it over time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from airtune.channel.trace import WINDOW_MS, RateTrace, Trace
from airtune.pictures import check_picture, save_picture

MOST_POINTS = 800
"""Of a picture: about one for each of its pixels."""


def summary_of(trace: Trace) -> dict[str, Any]:
    """Return a trace's figures: duration, mean, outages, and the time that was left out."""
    outages = trace.outages_s()
    gaps = trace.gaps_s if isinstance(trace, RateTrace) else ()
    period_s = trace.period_ms / 1000.0
    return {
        "read_as": trace.read_as,
        "duration_s": period_s,
        "mean_bps": trace.mean_bps(0.0, trace.period_ms),
        "busiest_window_bps": trace.busiest_rate_bps(),
        "window_s": WINDOW_MS / 1000.0,
        "outages": len(outages),
        "outages_s": float(outages.sum()),
        "longest_outage_s": float(outages.max()) if len(outages) else 0.0,
        "gaps": len(gaps),
        "gaps_s": float(sum(gaps)),
    }


def draw(traces: Mapping[str, Trace], path: Path) -> None:
    """Draw each trace's capacity over time, in a panel of its own, as SVG or PNG.

    Raises:
        InputError: the file cannot be written.
    """
    check_picture(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 2.4 * len(traces) + 0.4), layout="constrained")
    panels = figure.subplots(len(traces), 1, squeeze=False)[:, 0]
    for panel, (name, trace) in zip(panels, traces.items(), strict=True):
        # Bins of a second at least: in shorter ones single packets are all that is seen.
        bins = int(np.clip(trace.period_ms / 1000.0, 1, MOST_POINTS))
        edges_ms = np.linspace(0.0, trace.period_ms, bins + 1)
        # The trace starts over at its period, where its first packets count again.
        bits = trace.delivered_bits(edges_ms)
        rates = np.diff(bits) / np.diff(edges_ms) * 1000.0
        panel.stairs(rates / 1e6, edges_ms / 1000.0, fill=True, alpha=0.6)
        panel.axhline(trace.mean_bps(0.0, trace.period_ms) / 1e6, color="black", lw=0.8, ls="--")
        panel.set_xlim(0.0, trace.period_ms / 1000.0)
        panel.set_ylim(bottom=0.0)
        panel.set_ylabel("Mbit/s")
        panel.set_title(name or "mahimahi", loc="left", fontsize=9)
    panels[-1].set_xlabel("time, s (dashed: mean)")
    save_picture(figure, path)
