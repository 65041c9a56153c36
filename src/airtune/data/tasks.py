"""Load a task: draw its training and test examples from where its data comes from."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from airtune.data.batches import token_count
from airtune.data.examples import (
    Example,
    Task,
    examples_of,
    frame,
    solution_steps,
    without_calculator,
)
from airtune.data.generated import gsm_symbolic, sums
from airtune.data.sources import Files, csv_rows, hub_rows, open_source, table_rows, text_of
from airtune.errors import InputError
from airtune.plugins import called, is_built_in
from airtune.randomness import derived_seed, generator
from airtune.scenario import TASKS, TaskSection
from airtune.scenario.tasks import Streams

TOPICS = (
    "Society & Culture",
    "Science & Mathematics",
    "Health",
    "Education & Reference",
    "Computers & Internet",
    "Sports",
    "Business & Finance",
    "Entertainment & Music",
    "Family & Relationships",
    "Politics & Government",
)
"""Classes 1 to 10 of Yahoo! Answers topics (Zhang, Zhao and LeCun 2015)."""

HUB_IDS = {
    "gsm8k": ("openai/gsm8k", "main"),
    "yahoo-answers": ("community-datasets/yahoo_answers_topics", None),
}

CHARACTERS_PER_TOKEN = 3
"""Forum texts are cut to this many characters a token of `max_tokens`, or most would be too
long: English has four to five characters a token."""

RowReader = Callable[[str, dict[str, Any]], Example]


def load_task(
    section: TaskSection, *, seed: int, tokenizer: PreTrainedTokenizerBase | None = None
) -> Task:
    """Draw `train_examples` and `eval_examples` distinct examples of a task.

    The draw is a seeded shuffle. The test examples come from the source's test part; where it
    has none they are split off first, so that they do not depend on `train_examples`. A
    prompt is used once: nothing of the test set is trained on.

    Args:
        section: the scenario's task.
        seed: the scenario's seed.
        tokenizer: given, examples longer than `section.max_tokens` are left out, counted in
            `Task.left_out`, and replaced by others.

    Raises:
        InputError: the data cannot be had, is malformed, or is less than was asked for.
    """
    what = f"task '{section.name}'"
    function = TASKS.find(section.name).function
    streams: Streams = called(what, function, section, seed)
    classes: dict[Hashable, int] = {}

    def examples(items: Iterable[Any]) -> Iterator[Example]:
        return iter(items) if is_built_in(function) else examples_of(what, items, classes)

    train_stream = examples(streams.train)
    test_stream = None if streams.test is None else examples(streams.test)
    if section.eval_part == "train":
        test_stream = None
    seen: set[str] = set()
    test, long_test = _draw(
        train_stream if test_stream is None else test_stream,
        section,
        "eval_examples",
        tokenizer,
        seen,
    )
    train, long_train = _draw(train_stream, section, "train_examples", tokenizer, seen)
    return Task(section.name, train, test, streams.choices, left_out=long_test + long_train)


def _draw(
    stream: Iterator[Example],
    section: TaskSection,
    key: str,
    tokenizer: PreTrainedTokenizerBase | None,
    seen: set[str],
) -> tuple[tuple[Example, ...], int]:
    """Take examples with new prompts that fit; return them and how many were too long."""
    wanted: int = getattr(section, key)
    drawn: list[Example] = []
    tried = long = 0
    for example in itertools.islice(stream, _candidates(wanted)):
        tried += 1
        if example.prompt in seen:
            continue
        seen.add(example.prompt)
        if tokenizer is not None and token_count(example, tokenizer) > section.max_tokens:
            long += 1
            continue
        drawn.append(example)
        if len(drawn) == wanted:
            return tuple(drawn), long
    repeated = tried - long - len(drawn)
    raise InputError(
        f"task.{key} = {wanted}: only {len(drawn)} of {tried} examples of "
        f"{section.source or section.name} can be used ({long} are longer than "
        f"task.max_tokens = {section.max_tokens}, {repeated} repeat another's prompt)"
    )


def _candidates(wanted: int) -> int:
    """How many examples to look at before giving up; generated tasks never run dry."""
    return 50 * wanted + 1000


def sums_streams(section: TaskSection, seed: int) -> Streams:
    """Return additions without end."""
    return Streams(sums(generator(seed, "task sums")))


def gsm_symbolic_streams(section: TaskSection, seed: int) -> Streams:
    """Return generated problems without end."""
    return Streams(gsm_symbolic(derived_seed(seed, "task gsm-symbolic")))


def source_streams(section: TaskSection, seed: int) -> Streams:
    """Return the train part and the test part (where there is one) of a file, folder or hub id."""
    hub_id, config = HUB_IDS.get(section.name, (None, None))
    if section.source is None and hub_id is None:
        raise InputError(
            f"task.source is missing: the task '{section.name}' needs a file, a folder or a hub id"
        )
    source = section.source or str(hub_id)
    parts = open_source(source, config=config if source == hub_id else None)
    to_example = _row_reader(section)

    def stream(part: Any, purpose: str) -> Iterator[Example]:
        rng = generator(seed, purpose)
        if not isinstance(parts, Files):
            return (to_example(place, row) for place, row in hub_rows(parts, part, rng))
        examples = list(_file_examples(part, section, to_example))
        if not examples:
            raise InputError(f"{part}: the file holds no examples")
        return (examples[index] for index in rng.permutation(len(examples)))

    test = None if parts.test is None else stream(parts.test, "task test part")
    choices = TOPICS if section.name == "yahoo-answers" else None
    return Streams(stream(parts.train, "task train part"), test, choices)


def _file_examples(path: Path, section: TaskSection, to_example: RowReader) -> Iterator[Example]:
    if section.name == "yahoo-answers" and path.suffix == ".csv":
        return _yahoo_csv(path, section, to_example)
    return (to_example(place, row) for place, row in table_rows(path))


def _row_reader(section: TaskSection) -> RowReader:
    """Return the function from a row by column name to an example of the task."""
    if section.name == "gsm8k":
        return _gsm8k_example
    if section.name == "yahoo-answers":
        return functools.partial(_yahoo_example, section)
    classes: dict[str, int] = {}
    return functools.partial(_pair_example, section, classes)


def _gsm8k_example(place: str, row: dict[str, Any]) -> Example:
    answer = without_calculator(text_of(row, "answer", place))
    if "####" not in answer:
        raise InputError(f"{place}: 'answer' must end with '#### <number>'")
    return Example(frame(text_of(row, "question", place)), answer, solution_steps(answer))


def _pair_example(
    section: TaskSection, classes: dict[str, int], place: str, row: dict[str, Any]
) -> Example:
    """Any prompt and answer; a column named `label`, where there is one, gives the label."""
    prompt = text_of(row, section.prompt_column, place)
    answer = text_of(row, section.answer_column, place)
    label = text_of(row, "label", place) if "label" in row else ""
    return Example(frame(prompt), answer, classes.setdefault(label, len(classes)))


def _yahoo_csv(path: Path, section: TaskSection, to_example: RowReader) -> Iterator[Example]:
    """Read the original four columns without header, or two columns text,label."""
    for number, (place, fields) in enumerate(csv_rows(path)):
        match fields:
            case _ if number == 0 and "topic" in fields:  # the hub's table, saved as CSV
                yield from (to_example(*row) for row in table_rows(path))
                return
            case [topic, title, question, answer]:
                yield _topic_example(section, place, topic, (title, question, answer))
            case ["text", "label"] if number == 0:
                continue
            case [text, label]:
                yield _topic_example(section, place, label, (text,))
            case _:
                raise InputError(
                    f"{place}: {len(fields)} fields; expected class (1 to 10), title, question, "
                    "best answer, or text,label"
                )


def _yahoo_example(section: TaskSection, place: str, row: dict[str, Any]) -> Example:
    if "text" in row:
        text = text_of(row, "text", place)
        return _topic_example(section, place, text_of(row, "label", place), (text,))
    topic = text_of(row, "topic", place)
    if not topic.isdecimal():
        raise InputError(f"{place}: 'topic' must be a number from 0 to 9, found '{topic}'")
    columns = ("question_title", "question_content", "best_answer")
    texts = tuple(str(row.get(column) or "") for column in columns)
    # The hub's table counts topics from 0, the original files count classes from 1.
    return _topic_example(section, place, str(int(topic) + 1), texts)


def _topic_example(section: TaskSection, place: str, topic: str, texts: tuple[str, ...]) -> Example:
    index = _topic_index(topic, place)
    # The original files write line breaks as a backslash and an n, or as HTML.
    joined = re.sub(r"(?:\\n|<br\s*/?>|\s)+", " ", " ".join(texts)).strip()
    if not joined:
        raise InputError(f"{place}: the text is empty")
    room = CHARACTERS_PER_TOKEN * section.max_tokens
    if len(joined) > room:
        joined = joined[:room].rpartition(" ")[0] or joined[:room]
    return Example(frame(joined, cue="Topic"), TOPICS[index], index)


def _topic_index(topic: str, place: str) -> int:
    """Return 0 to 9 for a class 1 to 10 or for a topic's name, however it is punctuated."""

    def bare(name: str) -> str:
        return re.sub(r"[^a-z]|and", "", name.lower().replace("_", " "))

    if topic.strip().isdecimal() and 1 <= int(topic) <= len(TOPICS):
        return int(topic) - 1
    names = [bare(name) for name in TOPICS]
    if bare(topic) in names:
        return names.index(bare(topic))
    raise InputError(
        f"{place}: '{topic[:40]}' is not a class from 1 to 10 or one of: {', '.join(TOPICS)}"
    )
