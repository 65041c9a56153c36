"""The rows that are committed, a run each, from the folder of a study.

    python experiments/rows.py runs/study-clinc150 --commit 9132d975e3f8

Runs that finished, also those that diverged, go to rows/NAME.jsonl, NAME the study's. A row of the
same method, point and seed is replaced where it is of another run or has other numbers. Its command
does this one run again; the program that made it is that of its commit.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airtune.errors import InputError
from airtune.record import read_record
from airtune.scenario import Scenario
from airtune.scenario.overrides import with_paths
from airtune.study.conduct import known_jobs
from airtune.study.folder import read_study
from airtune.study.jobs import Job
from airtune.study.keys import folder_of
from airtune.study.results import DIVERGED, Result, results_of
from airtune.study.running import FINISHED

HERE = Path(__file__).parent
ROWS = HERE / "rows"
GPU = "gpu-"
"""How the names of the studies in the folder gpu begin."""
FOLDER = "task.source=FOLDER"
"""What a command sets where nothing else is said: the word stands for the folder of the data."""
SERIES = ("loss", "elapsed_s", "uplink_bits", "downlink_bits", "flops", "energy_j")
"""What a row has before training and after each round."""
COMPARED = ("key", *SERIES, "metrics", "clients")
"""What makes a row another one; when and by which commit it was made does not."""
DIGITS = 7
"""Significant ones of every number: what is compared differs in the third."""

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the rows of the study folders that the options name."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, nargs="+", help="of a study")
    parser.add_argument("--commit", required=True, help="of the program that made the runs")
    parser.add_argument(
        "--set", action="append", metavar="KEY=VALUE", help=f"as in the command; default: {FOLDER}"
    )
    given = parser.parse_args(arguments)
    for folder in given.folder:
        try:
            name, rows = rows_of_folder(folder, given.commit, given.set or [FOLDER])
        except InputError as error:
            parser.error(str(error))
        path = ROWS / f"{name}.jsonl"
        kept = merged(read_rows(path), rows)
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        print(f"{path}: {len(kept)} rows")


def file_of(study: str) -> Path:
    """Return the file of a study of this folder, by the study's name."""
    own = HERE / "gpu" if study.startswith(GPU) else HERE
    return own / f"{study.removeprefix(GPU)}.toml"


def command_of(study: str, method: str, seed: int, sets: Sequence[str] = (FOLDER,)) -> str:
    """Return the command that does one run of a study again; with axes, those of all points."""
    words = ["airtune", "study", "run", file_of(study).relative_to(HERE.parent).as_posix()]
    words += ["--methods", method, "--seeds", str(seed)]
    return shlex.join([*words, *(word for one in sets for word in ("--set", one))])


def rows_of_folder(
    folder: Path, commit: str, sets: Sequence[str] = (FOLDER,)
) -> tuple[str, list[Row]]:
    """Return a study's name and a row for each of its finished runs."""
    study, plugins = read_study(folder)
    if not file_of(study.name).is_file():
        raise InputError(f"'{folder}' is of the study '{study.name}': no file of it is here")
    jobs = known_jobs(study, folder, plugins) or []
    results = results_of(study, jobs, folder)
    rows = [
        _row(job, result, folder)
        | {"commit": commit, "command": command_of(study.name, job.method, job.seed, sets)}
        for job, result in zip(jobs, results, strict=True)
        if result.status in (FINISHED, DIVERGED)
    ]
    return study.name, rows


def merged(before: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """Return the rows of both; of one method, point and seed the later, where it differs."""
    found = {_place(row): row for row in before}
    for row in rows:
        known = found.get(_place(row))
        if known is None or any(known.get(name) != row.get(name) for name in COMPARED):
            found[_place(row)] = row
    return [found[place] for place in sorted(found, key=lambda p: (p[2], p[1]))]


def _place(row: Row) -> tuple[str, str, int]:
    return row["method"], json.dumps(row["point"]), row["seed"]


def _row(job: Job, result: Result, folder: Path) -> Row:
    last = read_record(folder_of(folder, job.key)).rounds[-1]
    return {
        **{
            name: getattr(result, name)
            for name in ("method", "kind", "seed", "point", "key", "status", "error")
        },
        **{name: [_short(value) for value in getattr(result, name)] for name in SERIES},
        "metrics": {name: _short(value) for name, value in result.metrics.items()},
        "clients": {one.name: _short(one.eval_loss) for one in last.clients},
        "budget_s": {name: _short(value) for name, value in result.budget_s.items()},
        "wall_s": round(result.wall_s, 1),
        "version": result.version,
        "scenario": _scenario(job),
    }


def _scenario(job: Job) -> Row:
    """Return the keys that are not at their defaults; of the study's own files the names alone."""
    values: Row = Scenario.model_validate(job.values).model_dump(mode="json", exclude_defaults=True)
    # A file beside the study was made absolute: of this machine, and of no account.
    named: Row = with_paths(values, lambda _, path: Path(path).name if path[:1] == "/" else path)
    return named


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file; none where it is not there."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def result_of(row: Mapping[str, Any]) -> Result:
    """Return a row as the study's statistics take it."""
    fields = set(Result.__dataclass_fields__)
    values = {name: value for name, value in row.items() if name in fields}
    series = {name: tuple(row[name]) for name in SERIES}
    point = tuple((axis, label) for axis, label in row["point"])
    return Result(**{**values, **series, "point": point})


if __name__ == "__main__":
    main()
