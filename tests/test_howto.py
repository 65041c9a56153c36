"""The blocks of the how-to pages run, and give what the other tool gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HOWTO = Path(__file__).resolve().parents[1] / "docs" / "howto"


@pytest.fixture(scope="module")
def cvx() -> dict[str, Any]:
    pytest.importorskip("cvxpy")
    blocks = re.findall(r"```python\n(.*?)```", (HOWTO / "cvx.md").read_text(), re.S)
    assert len(blocks) == 7
    values: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, block.splitlines()[0], "exec"), values)
    return values


def test_the_min_max_delay_is_cvxpys(cvx: dict[str, Any]) -> None:
    assert cvx["delay_s"] == pytest.approx(cvx["cvx_delay_s"], rel=1e-5)
    assert cvx["bands_hz"].sum() <= cvx["B"] * (1 + 1e-12)


def test_the_weighted_sum_rate_is_cvxpys(cvx: dict[str, Any]) -> None:
    assert cvx["sum_bps"] == pytest.approx(cvx["cvx_sum_bps"], rel=1e-5)
    # Not the equal split, which would hide wrong weights.
    equal = cvx["B"] / 5
    plain = float(cvx["w"] @ (equal * np.log2(1 + cvx["s"] / equal)))
    assert cvx["sum_bps"] > 1.05 * plain


def test_the_joint_plan_is_not_above_the_grid_and_close_to_it(cvx: dict[str, Any]) -> None:
    assert cvx["objective_s"] <= cvx["cvx_objective_s"] * (1 + 1e-6)
    assert cvx["objective_s"] == pytest.approx(cvx["cvx_objective_s"], rel=0.02)
    assert cvx["gap"] <= 1e-6


@pytest.mark.usefixtures("no_plugins_left")
def test_the_page_for_flower_users_runs(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    blocks = re.findall(r"```python\n(.*?)```", (HOWTO / "flower.md").read_text(), re.S)
    assert len(blocks) == 2
    values: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, block.splitlines()[0], "exec"), values)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2"]

    def contribution(*values: float, held: tuple[bool, ...]) -> Any:
        own = {"x": torch.tensor(values)}
        return type("One", (), {"values": own, "held": {"x": torch.tensor(held)}})

    merged = values["trimmed_mean"](
        {"x": torch.tensor([9.0, 9.0])},
        [
            contribution(1.0, 0.0, held=(True, False)),
            contribution(2.0, 0.0, held=(True, False)),
            contribution(40.0, 0.0, held=(True, False)),
        ],
    )
    assert merged["x"].tolist() == [2.0, 9.0]
