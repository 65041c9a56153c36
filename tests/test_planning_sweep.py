from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from airtune.errors import InputError
from airtune.planning import plan
from airtune.planning.sweep import axis_from_text, draw, sweep, with_value
from oracles import random_problem


def test_axes_are_read() -> None:
    axis = axis_from_text("bandwidth_hz=1e6:1e8:3")
    assert axis.key == "bandwidth_hz"
    assert axis.values == pytest.approx((1e6, 1e7, 1e8))
    assert axis_from_text("kappa=0.1:0.5:3").values == pytest.approx((0.1, 0.3, 0.5))
    assert axis_from_text("clients=2:9:3").values == (2.0, 6.0, 9.0)
    assert axis_from_text("power=-10:10:2").key == "power_db"


@pytest.mark.parametrize(
    "text",
    ["bandwidth_hz", "colour=1:2:3", "kappa=1:2", "kappa=a:b:3", "kappa=2:1:3", "kappa=1:2:1",
     "bandwidth_hz=0:1:3", "kappa=nan:1:3", "clients=1:2:3.5"],
)  # fmt: skip
def test_other_axes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^sweep '"):
        axis_from_text(text)


def test_more_band_and_power_never_cost_latency() -> None:
    problem = random_problem(np.random.default_rng(6), 5)
    for text in ("bandwidth_hz=1e6:1e8:5", "power_db=-10:20:4"):
        points = sweep(problem, [axis_from_text(text)])
        found = [point.plan.objective_s for point in points]
        assert all(more <= less * (1 + 2e-6) for less, more in pairwise(found))


def test_a_grid_holds_every_pair() -> None:
    problem = random_problem(np.random.default_rng(6), 3, pruning_cost=None)
    axes = [axis_from_text("clients=1:7:3"), axis_from_text("kappa=0.1:0.3:2")]
    points = sweep(problem, axes, "bcd")
    assert [point.at for point in points] == [
        (1.0, 0.1), (4.0, 0.1), (7.0, 0.1), (1.0, 0.3), (4.0, 0.3), (7.0, 0.3),
    ]  # fmt: skip
    one = plan(with_value(with_value(problem, "kappa", 0.3), "clients", 4), "bcd")
    assert points[4].plan.objective_s == one.objective_s
    assert one.names == ("c0", "c1", "c2", "c0#2")


def test_power_is_decibels() -> None:
    problem = random_problem(np.random.default_rng(6), 3)
    assert with_value(problem, "power_db", 3.0).snr_hz == pytest.approx(
        problem.snr_hz * 1.9952623, rel=1e-6
    )


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_figure_is_drawn(tmp_path: Path, suffix: str) -> None:
    problem = random_problem(np.random.default_rng(6), 3)
    axes = [axis_from_text("bandwidth_hz=1e6:1e8:4"), axis_from_text("kappa=0.1:0.3:2")]
    path = tmp_path / f"latency{suffix}"
    draw(axes, sweep(problem, axes, "none"), path)
    head = path.read_bytes()[:2000]
    assert (b"<svg" in head) if suffix == ".svg" else head.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "message"), [("a.pdf", "in .svg or .png"), ("no/a.svg", "folder")]
)
def test_a_figure_that_cannot_be_written_is_refused(
    tmp_path: Path, name: str, message: str
) -> None:
    problem = random_problem(np.random.default_rng(6), 2)
    axes = [axis_from_text("kappa=0.1:0.3:2")]
    with pytest.raises(InputError, match=message):
        draw(axes, sweep(problem, axes, "none"), tmp_path / name)
