"""From a study to its runs: every method at every point of the axes on every seed."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airtune.errors import InputError
from airtune.plugins.loading import is_path
from airtune.scenario import Scenario, scenario_from_dict
from airtune.scenario.overrides import add_plugins
from airtune.study.keys import file_hashes, key_of, made_before
from airtune.study.methods import rank_settings, shipped_sets
from airtune.study.schema import Study, StudyMethod

Point = tuple[tuple[str, str], ...]
"""Which point of which axis: (axis, label) pairs; () is the scenario as it is."""


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
        method: the method's name.
        seed: the scenario's seed.
        point: where on the axes.
        values: the resolved scenario, every key.
        key: names the run and its directory; equal keys are equal runs.
        files: SHA-256 of each plugin, profile and trace that it names.
        candidate: the searched values, where the run is a candidate of the search.
    """

    method: str
    seed: int
    point: Point
    values: dict[str, Any]
    key: str
    files: tuple[str, ...] = ()
    candidate: tuple[tuple[str, Any], ...] = ()

    @property
    def where(self) -> str:
        """What the run is, in a few words."""
        parts = [self.method, *(f"{axis} = {label}" for axis, label in self.point)]
        parts += [f"{key} = {value}" for key, value in self.candidate]
        return f"{', '.join(parts)}, seed {self.seed}"


def points_of(study: Study) -> list[Point]:
    """Return the points that a study visits: the base alone, and the axes one by one or crossed."""
    axes = {name: list(axis.points) for name, axis in study.axes.items()}
    if study.crossed and axes:
        labels = itertools.product(*axes.values())
        return [tuple(zip(axes, combination, strict=True)) for combination in labels]
    return [(), *(((name, label),) for name, labels in axes.items() for label in labels)]


def jobs_of(
    study: Study, tuned: Mapping[str, Mapping[str, Any]] | None = None, plugins: Sequence[str] = ()
) -> list[Job]:
    """Return all runs of a study, seed by seed, so that a table grows evenly.

    Args:
        study: the study.
        tuned: each method's searched values; default: the study's own `tuned`.
        plugins: files with the user's own methods.

    Raises:
        InputError: a method or a point gives no valid scenario.
    """
    chosen = study.tuned if tuned is None else tuned
    searched = {searched_as(study, name)[0] for name in study.methods}
    for name in study.tuned:
        if name not in searched:
            raise InputError(
                f"tuned.{name}: no method of the study takes its values; those that are tuned: "
                f"{', '.join(sorted(searched))}"
            )
    jobs = []
    for seed, point in itertools.product(study.seeds, points_of(study)):
        for name, method in study.methods.items():
            values = chosen.get(searched_as(study, name)[0], {})
            scenario = resolved(
                study, name, method, seed=seed, point=point, tuned=values, plugins=plugins
            )
            jobs.append(_job(name, seed, point, scenario))
    return jobs


def search_jobs(study: Study, plugins: Sequence[str] = ()) -> list[Job]:
    """Return the candidates of a study's search: every combination, for each method to be tuned.

    Raises:
        InputError: a candidate is no valid scenario.
    """
    search = study.search
    if search is None:
        return []
    searched = dict(searched_as(study, name) for name in study.methods)
    jobs = []
    for values in itertools.product(*search.keys.values()):
        candidate = tuple(zip(search.keys, values, strict=True))
        for name, method in searched.items():
            scenario = resolved(
                study,
                name,
                method,
                seed=search.seed,
                tuned=dict(candidate),
                plugins=plugins,
                searching=True,
            )
            jobs.append(_job(name, search.seed, (), scenario, candidate))
    return jobs


def placed(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """Return runs with the keys that they have in a study's folder.

    A run that was made before the scenario got a further key lies there under another key.

    Raises:
        InputError: a newer version made a run in this folder.
    """
    names = made_before(folder, {job.key for job in jobs})
    return [replace(job, key=names.get(job.key, job.key)) for job in jobs]


def searched_as(study: Study, name: str) -> tuple[str, StudyMethod]:
    """Return the method whose search decides for a method: of the study, or of a shipped set.

    Raises:
        InputError: there is no such method, or it is itself tuned as another.
    """
    method = study.methods[name]
    if method.tuned_as is None:
        return name, method
    shipped = {one: m for methods in shipped_sets().values() for one, m in methods.items()}
    other = study.methods.get(method.tuned_as, shipped.get(method.tuned_as))
    if other is None or other.tuned_as is not None:
        raise InputError(
            f"methods.{name}.tuned_as = '{method.tuned_as}': give a method of this study, or of a "
            f"shipped set, that has a search of its own: {', '.join(study.methods)}"
        )
    return method.tuned_as, other


def resolved(
    study: Study,
    name: str,
    method: StudyMethod,
    *,
    seed: int,
    point: Point = (),
    tuned: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
    searching: bool = False,
) -> Scenario:
    """Return a run's scenario; a later one wins of base, study, method, search, axis, budget.

    Raises:
        InputError: the settings make no valid scenario; says whose they are.
    """
    values = copy.deepcopy(study.base_values)
    _put(values, study.set, "set")
    _put(values, method.set, f"methods.{name}")
    _put(values, _with_alpha(values, tuned or {}), "search" if searching else f"tuned.{name}")
    for axis, label in point:
        _put(values, study.axes[axis].points[label], f"axes.{axis}")
    rounds = study.budget.rounds or values.get("rounds", Scenario.model_fields["rounds"].default)
    if searching and study.search is not None:
        rounds = study.search.rounds
        _put(values, {"task.eval_part": "train", "evaluation.generate": False}, "search")
    elif study.budget.virtual_s is not None:
        values["time_budget_s"] = study.budget.virtual_s
    values["rounds"] = max(1, round(rounds * method.rounds_factor))
    values["seed"] = seed
    if plugins:
        add_plugins(values, plugins, None)
    where = ", ".join([f"methods.{name}", *(f"axes.{axis}" for axis, _ in point)])
    scenario = scenario_from_dict(values, where=where)
    if method.ranks_by_speed:
        _put(values, rank_settings(scenario), where)
        scenario = scenario_from_dict(values, where=where)
    return scenario


def plugin_path(plugin: str) -> str:
    """Return a plugin as every process finds it: a file by its full path, a module by its name."""
    return str(Path(plugin).resolve()) if is_path(plugin) else plugin


def _job(
    name: str,
    seed: int,
    point: Point,
    scenario: Scenario,
    candidate: tuple[tuple[str, Any], ...] = (),
) -> Job:
    files = file_hashes(scenario)
    return Job(
        method=name,
        seed=seed,
        point=point,
        values=scenario.model_dump(mode="json"),
        key=key_of(scenario, files),
        files=files,
        candidate=candidate,
    )


def _with_alpha(values: Mapping[str, Any], tuned: Mapping[str, Any]) -> dict[str, Any]:
    """Let LoRA's alpha follow a searched rank, so that the scale alpha/r stays."""
    if "training.lora_rank" not in tuned or "training.lora_alpha" in tuned:
        return dict(tuned)
    training = values.get("training", {})
    rank, alpha = training.get("lora_rank", 8), training.get("lora_alpha", 16.0)
    return {**tuned, "training.lora_alpha": alpha / rank * tuned["training.lora_rank"]}


def _put(values: dict[str, Any], settings: Mapping[str, Any], where: str) -> None:
    """Set dotted keys in nested plain values; raises `InputError`."""
    for key, value in settings.items():
        *path, last = key.split(".")
        table: Any = values
        for part in path:
            if isinstance(table, list) and part.isdecimal() and int(part) < len(table):
                table = table[int(part)]
            elif isinstance(table, dict):
                table = table.setdefault(part, {})
            else:
                raise InputError(f"{where}: '{key}': there is no '{part}' in the scenario")
        if isinstance(table, list) and last.isdecimal() and int(last) < len(table):
            table[int(last)] = value
        elif isinstance(table, dict):
            table[last] = copy.deepcopy(value)
        else:
            raise InputError(f"{where}: '{key}': there is no '{last}' in the scenario")
