"""Load a task: draw its training and test examples from where its data comes from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from airtune.data.batches import token_count
from airtune.data.examples import Conversation, Example, Task, examples_of
from airtune.data.framing import plain, templated
from airtune.errors import InputError
from airtune.plugins import called, is_built_in
from airtune.scenario import TASKS, TaskSection
from airtune.scenario.tasks import Streams

MOST_LABELS = 1000
"""More different labels than this are no classes: every one is scored for every test prompt."""


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
            `Task.left_out`, and replaced by others; `task.chat_template` needs it.

    Raises:
        InputError: the data cannot be had, is malformed, or is less than was asked for.
    """
    what = f"task '{section.name}'"
    function = TASKS.find(section.name).function
    streams: Streams = called(what, function, section, seed)
    framed = _framing(section, tokenizer)
    classes: dict[Hashable, int] = {}

    def examples(items: Iterable[Any]) -> Iterator[Example]:
        if is_built_in(function):
            return map(framed, items)
        if section.chat_template:
            raise InputError(f"task.chat_template = true: {what} of a plugin is framed as it is")
        return examples_of(what, items, classes)

    train = examples(streams.train)
    seen: set[tuple[str, ...]] = set()
    source = train if streams.test is None else examples(streams.test)
    test, long_test = _draw(source, section, "eval_examples", tokenizer, seen)
    if section.eval_part == "train":
        # Drawn after the test set, whose prompts are seen: held-out text is none of it.
        test, long_test = _draw(train, section, "eval_examples", tokenizer, seen)
    drawn, long_train = _draw(train, section, "train_examples", tokenizer, seen)
    labels = tuple(streams.labels)
    return Task(
        section.name,
        drawn,
        test,
        _choices(section, labels) if streams.choice else streams.choices,
        left_out=long_test + long_train,
        labels=() if labels == ("",) else labels,
    )


def _framing(
    section: TaskSection, tokenizer: PreTrainedTokenizerBase | None
) -> Callable[[Conversation | Example], Example]:
    def framed(one: Conversation | Example) -> Example:
        if isinstance(one, Example):
            return one
        if not section.chat_template:
            return plain(one)
        if tokenizer is None:
            raise InputError("task.chat_template = true needs the model's tokenizer")
        return templated(one, tokenizer)

    return framed


def _choices(section: TaskSection, labels: tuple[str, ...]) -> tuple[str, ...]:
    if 2 <= len(labels) <= MOST_LABELS:
        return labels
    raise InputError(
        f"{section.source or section.name}: the column '{section.label_column}' holds "
        f"{len(labels)} different texts, e.g. '{labels[0][:40]}'; a classification needs 2 to "
        f"{MOST_LABELS:,} (task.label_column names the column)"
    )


def _draw(
    stream: Iterator[Example],
    section: TaskSection,
    key: str,
    tokenizer: PreTrainedTokenizerBase | None,
    seen: set[tuple[str, ...]],
) -> tuple[tuple[Example, ...], int]:
    """Take examples with new prompts that fit; return them and how many were too long."""
    wanted: int = getattr(section, key)
    drawn: list[Example] = []
    tried = long = 0
    for example in itertools.islice(stream, _candidates(wanted)):
        tried += 1
        asked = tuple(turn.prompt for turn in example.turns)
        if asked in seen:
            continue
        seen.add(asked)
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
