"""Which run it is: what run.json says of it, and whether another start is the same run."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airtune.errors import InputError
from airtune.plugins import provenance
from airtune.record.files import write_durably
from airtune.record.provenance import machine, versions
from airtune.record.reading import FORMAT, RUN
from airtune.record.schema import dump_json, plain

_MAY_CHANGE = ("rounds", "description")


def write_info(path: Path, info: Mapping[str, Any]) -> None:
    """Write run.json; raises `RunError`."""
    text = dump_json(info, indent=2) + "\n"
    write_durably(path / RUN, text.encode())


def new_info(scenario_values: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return what run.json says of a run that begins."""
    scenario = plain(scenario_values)
    return {
        "format": FORMAT,
        "status": "running",
        "method": method,
        "seed": scenario["seed"],
        "started_at": now(),
        "ended_at": None,
        "error": None,
        "resumed_at": [],
        "versions": versions(),
        "platform": machine(),
        "scenario": scenario,
        "plugins": provenance(scenario.get("plugins", ())),
        "cell": None,
        "results": {},
    }


def now() -> str:
    """Return the time, UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def require_same_run(path: Path, info: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with another run.

    Two keys may differ: `description`, and `rounds` where it grows and no round depends on
    their number.

    Raises:
        InputError: names the first difference and both values.
    """
    before, after = ({**_flat(i["scenario"]), "method": i["method"]} for i in (info, wanted))
    before["airtune version"] = info["versions"].get("airtune")
    after["airtune version"] = wanted["versions"]["airtune"]
    for key in [*before, *(key for key in after if key not in before)]:
        # A key without a value is one that the run's own version of the schema did not have yet.
        old, new = (values.get(key) for values in (before, after))
        if old != new and key not in _MAY_CHANGE:
            old, new = (values.get(key, "not set") for values in (before, after))
            raise InputError(
                f"'{path}' holds another run: {key} was {old!r} and is now {new!r}; resume "
                "with the same settings, or give another --out"
            )
    old, new = before["rounds"], after["rounds"]
    schedule = after.get("training.learning_rate_schedule")
    if new < old:
        raise InputError(
            f"'{path}' holds a run of rounds = {old!r}, and rounds is now {new!r}: a run can be "
            "made longer, not shorter; give another --out"
        )
    if new > old and schedule != "constant":
        raise InputError(
            f"'{path}' holds another run: rounds was {old!r} and is now {new!r}, and with "
            f"training.learning_rate_schedule = '{schedule}' the learning rate of every round "
            "depends on their number; a run can be made longer with 'constant' only: give "
            "another --out"
        )


def last_round_differs(scenario: Mapping[str, Any]) -> bool:
    """Return whether a run's last round is evaluated in another way than the rounds before."""
    evaluation = scenario["evaluation"]
    return bool(
        scenario["rounds"] % evaluation["every_rounds"]
        or evaluation["generate"]
        or not evaluation["metrics_every_round"]
    )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        items = values.items()
    elif isinstance(values, list):
        items = {str(i): item for i, item in enumerate(values)}.items()
    else:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(_flat(item, f"{prefix}.{key}" if prefix else key))
    return flat
