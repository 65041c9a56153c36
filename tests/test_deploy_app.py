"""What the server app reads from its configuration, which `flwr run` may change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airtune.deploy.app import run_on_devices
from airtune.errors import InputError, RunError
from fake_mailbox import FakeMailbox


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """A run with no device, which ends at once."""
    return {
        "scenario": "tiny", "overrides": "[]", "devices": 1,
        "out": str(tmp_path / "run"), "outcome": "", "progress": str(tmp_path / "progress"),
        "resume": True, "replace": False, "allow-privacy": "", "wire": "", "bands": "",
        "wait-s": 0, "slack": 1, "engine-s": 1, "longest-s": 1,
    }  # fmt: skip


def test_a_resumed_run_says_that_the_moments_start_afresh(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    config["overrides"] = '["training.keep_optimizer=true"]'
    for resumed in (True, False):
        with pytest.raises(RunError, match="0 of 1 devices"):
            run_on_devices(FakeMailbox({}), {**config, "resume": resumed}, "run-2")
        said = (tmp_path / "progress").read_text()
        (tmp_path / "progress").unlink()
        assert ("moments start afresh" in said) == resumed


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [("slack", float("nan"), 1), ("slack", 0.5, 1), ("wait-s", -1.0, 0),
     ("engine-s", float("nan"), 0), ("longest-s", 0.0, 1)],
)  # fmt: skip
def test_a_limit_that_no_time_reaches_is_refused(
    config: dict[str, Any], key: str, value: float, allowed: int
) -> None:
    with pytest.raises(InputError) as refused:
        run_on_devices(FakeMailbox({}), {**config, key: value}, "run-2")
    assert str(refused.value) == (
        f"{key} = {value:g} in the app's configuration: allowed from {allowed}"
    )


def test_a_file_that_cannot_be_read_is_refused_before_devices_are_waited_for(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    absent = tmp_path / "absent.csv"
    config["overrides"] = f'["cell.table={absent}"]'
    with pytest.raises(InputError, match=str(absent)):
        run_on_devices(FakeMailbox({}), {**config, "wait-s": 600}, "run-2")
    assert not (tmp_path / "progress").exists()
