"""Tasks by name: what a scenario may ask for. Their data is read below, when a run begins."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from airtune.plugins import Registry, loaded
from airtune.randomness import generator

if TYPE_CHECKING:
    from airtune.scenario.schema import TaskSection

TaskFunction = Callable[["TaskSection", np.random.Generator], Iterable[Any]]
"""(task section, rng) → examples: (prompt, answer), (prompt, answer, label) or `Example`."""


@dataclass(frozen=True)
class Streams:
    """A task's examples in random order.

    Attributes:
        train: examples, as many as there are; may be without end.
        test: of the source's test part; None where the test set is split off `train`.
        choices: every possible answer, where the task is a choice among them.
        labels: each label's index by its text, where labels have one; filled as rows are read.
        choice: the answer is one of the labels.
    """

    train: Iterable[Any]
    test: Iterable[Any] | None = None
    choices: tuple[str, ...] | None = None
    labels: dict[str, int] = field(default_factory=dict)
    choice: bool = False


@dataclass(frozen=True)
class TaskSource:
    """What a task is, in one line, where its data comes from, and what reads it.

    `streams(section, seed)` returns `Streams`; `module:name` where it is imported when called.
    """

    description: str
    source: str
    streams: Callable[..., Streams] | str

    @property
    def function(self) -> Callable[..., Streams]:
        """What reads the task's data, imported now where it was not before."""
        return loaded(self.streams)


TASKS: Registry[TaskSource] = Registry(
    "task",
    "task.name",
    {
        "gsm-symbolic": TaskSource(
            "grade-school mathematics, generated",
            "GSM-Symbolic (Mirzadeh et al., ICLR 2025), by reasoning-gym",
            "airtune.data.loaders:gsm_symbolic_streams",
        ),
        "gsm8k": TaskSource(
            "grade-school mathematics",
            "GSM8K: Cobbe et al., 2021",
            "airtune.data.loaders:gsm8k_streams",
        ),
        "yahoo-answers": TaskSource(
            "the topic of a question, one of ten",
            "Yahoo! Answers topics: Zhang, Zhao and LeCun, NeurIPS 2015",
            "airtune.data.loaders:yahoo_answers_streams",
        ),
        "prompt-answer": TaskSource(
            "prompts and answers of a file, a folder or a hub id",
            "task.source",
            "airtune.data.loaders:prompt_answer_streams",
        ),
        "classification": TaskSource(
            "the label of a prompt, one of those in a file, a folder or a hub id",
            "task.source",
            "airtune.data.loaders:classification_streams",
        ),
        "sums": TaskSource(
            "additions, generated", "for tests", "airtune.data.loaders:sums_streams"
        ),
    },
)
"""Tasks by name, in the order in which they are listed."""


def task(
    name: str,
    *,
    description: str,
    source: str = "a plugin",
    choices: tuple[str, ...] | None = None,
) -> Callable[[TaskFunction], TaskFunction]:
    """Register a function as a task.

    The function takes the scenario's task section and a generator, and returns (or yields)
    examples in random order: (prompt, answer), or (prompt, answer, label) where partitions are
    skewed over labels. The prompt is framed as the built-in tasks' is; an
    `airtune.data.Example` is taken as it is. The test set is split off first.

    Args:
        name: as task.name names it.
        description: one line for `airtune methods`.
        source: where the data is from.
        choices: every possible answer, where the task is a choice among them: accuracy is then
            measured.

    Raises:
        InputError: the name exists already.
    """

    def register(function: TaskFunction) -> TaskFunction:
        def streams(section: TaskSection, seed: int) -> Streams:
            return Streams(function(section, generator(seed, f"task {name}")), choices=choices)

        streams.__module__ = function.__module__
        TASKS.add(name, TaskSource(description, source, streams))
        return function

    return register


def check_template(template: str) -> None:
    """Raise `ValueError` where a prompt template is not text with columns in braces."""
    wrong = f"prompt_template = {template!r}"
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{wrong}: {error}; a brace itself is written {{{{ or }}}}") from None
    columns = [column for _, column, _, _ in parts if column is not None]
    if not columns:
        raise ValueError(f"{wrong}: no column in braces, as in '{{instruction}}'")
    if "" in columns or any(form or cast for _, _, form, cast in parts):
        raise ValueError(f"{wrong}: braces hold a column's name and nothing else")
