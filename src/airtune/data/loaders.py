"""Each task's name and where its examples come from."""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from airtune.data.examples import (
    Conversation,
    Example,
    solution_steps,
    without_calculator,
)
from airtune.data.generated import gsm_problems, sums
from airtune.data.parts import Part, TablePart, TextPart, label_text, text_of
from airtune.data.records import Row
from airtune.data.shapes import prompt_of, turns_of
from airtune.data.sources import open_source
from airtune.data.yahoo import TOPICS, yahoo_file, yahoo_reader
from airtune.errors import InputError
from airtune.randomness import derived_seed, generator
from airtune.scenario import TaskSection
from airtune.scenario.tasks import Streams

HUB_IDS = {
    "gsm8k": ("openai/gsm8k", "main"),
    "yahoo-answers": ("community-datasets/yahoo_answers_topics", None),
}

Drawn = Iterator[Conversation | Example]
RowReader = Callable[[str, Row], Conversation]
FileReader = Callable[[Path], Iterator[Conversation]]


def sums_streams(section: TaskSection, seed: int) -> Streams:
    """Return additions without end."""
    return Streams(sums(generator(seed, "task sums")))


def gsm_symbolic_streams(section: TaskSection, seed: int) -> Streams:
    """Return generated problems without end."""
    return Streams(gsm_problems(derived_seed(seed, "task gsm-symbolic")))


def gsm8k_streams(section: TaskSection, seed: int) -> Streams:
    """Return GSM8K's problems."""
    return _read(section, seed, _gsm8k_conversation, {})


def yahoo_answers_streams(section: TaskSection, seed: int) -> Streams:
    """Return forum texts and their topics."""
    labels = {topic: index for index, topic in enumerate(TOPICS)}
    read = functools.partial(yahoo_file, section)
    return _read(section, seed, yahoo_reader(section), labels, read=read, choice=True)


def prompt_answer_streams(section: TaskSection, seed: int) -> Streams:
    """Any prompt and answer; the label column, where there is one, gives the label."""
    labels: dict[str, int] = {}

    def to_conversation(place: str, row: Row) -> Conversation:
        label = "" if _is_empty(row, section.label_column) else _label(section, row, place)
        turns = turns_of(section, row, place)
        return Conversation(turns, labels.setdefault(label, len(labels)), place=place)

    return _read(section, seed, to_conversation, labels)


def classification_streams(section: TaskSection, seed: int) -> Streams:
    """Any prompt, and the label as the answer: one of the label column's texts."""
    labels: dict[str, int] = {}

    def to_conversation(place: str, row: Row) -> Conversation:
        label = _label(section, row, place)
        turns = ("user", prompt_of(section, row, place)), ("assistant", label)
        return Conversation(turns, labels.setdefault(label, len(labels)), "Label", place)

    return _read(section, seed, to_conversation, labels, choice=True)


def _read(
    section: TaskSection,
    seed: int,
    to_conversation: RowReader,
    labels: dict[str, int],
    *,
    read: FileReader | None = None,
    choice: bool = False,
) -> Streams:
    """Open the task's source; files are read whole, tables as far as rows are drawn."""
    hub_id, config = HUB_IDS.get(section.name, (None, None))
    if section.source == "" or (section.source is None and hub_id is None):
        raise InputError(
            f"task.source is missing: the task '{section.name}' needs a file, a folder or a hub id"
        )
    source = section.source or str(hub_id)
    copied = Path(source).is_dir()
    parts = open_source(source, config=config if source == hub_id or copied else None)

    def stream(part: Part, purpose: str) -> Drawn:
        rng = generator(seed, purpose)
        if isinstance(part, TablePart):
            return (to_conversation(place, row) for place, row in part.rows(rng))
        return _shuffled(part, rng)

    def _shuffled(part: TextPart, rng: np.random.Generator) -> Drawn:
        if read is not None:
            found = [one for path in part.paths for one in read(path)]
        else:
            rows = part.rows(_columns(section))
            found = [to_conversation(place, row) for place, row in rows]
        if not found:
            raise InputError(f"{part.paths[0]}: the file holds no examples")
        return (found[index] for index in rng.permutation(len(found)))

    if choice and not labels:
        # A table's rows are read as they are drawn, but every label in it is a choice.
        for part in (parts.test, parts.train):
            for text in part.texts(section.label_column) if isinstance(part, TablePart) else ():
                labels.setdefault(text, len(labels))
    test = None if parts.test is None else stream(parts.test, "task test part")
    train = stream(parts.train, "task train part")
    return Streams(train, test, labels=labels, choice=choice)


def _columns(section: TaskSection) -> set[str]:
    """Return the columns that hold text to be trained on."""
    template = string.Formatter().parse(section.prompt_template or "")
    named = {column for _, column, _, _ in template if column is not None}
    return {section.prompt_column, section.answer_column, section.label_column, *named}


def _is_empty(row: Row, column: str) -> bool:
    value = row.get(column)
    return value is None or (isinstance(value, str) and not value.strip())


def _label(section: TaskSection, row: Row, place: str) -> str:
    return label_text(row, section.label_column, place)


def _gsm8k_conversation(place: str, row: Row) -> Conversation:
    answer = without_calculator(text_of(row, "answer", place))
    if "####" not in answer:
        raise InputError(f"{place}: 'answer' must end with '#### <number>'")
    turns = ("user", text_of(row, "question", place)), ("assistant", answer)
    return Conversation(turns, solution_steps(answer), place=place)
