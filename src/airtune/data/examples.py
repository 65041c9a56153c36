"""What a task is made of: examples with a prompt, an answer and a label."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from airtune.errors import InputError, RunError
from airtune.plugins.registry import explained

LONGEST_NAME = 80
"""Characters of a label's name in the record."""

MOST_STEPS = 8
"""Longer solutions share one label, so that no label is left with a handful of examples."""


@dataclass(frozen=True)
class Turn:
    """A prompt, and the answer that is trained on."""

    prompt: str
    answer: str
    ending: str | None = None
    """What the model's chat template writes behind the answer; None: plain text, in which a space
    precedes the answer and end-of-text follows it."""


@dataclass(frozen=True)
class Example:
    """One prompt with its answer; plain ones are joined by a single space when tokenised.

    `label` is the class that partitions are skewed over: a topic's index, the number of
    solution steps, the number of digits.
    """

    prompt: str
    answer: str
    label: int
    ending: str | None = None
    """As in `Turn`."""
    more: tuple[Turn, ...] = ()
    """The further turns of a conversation, each prompt being what stands between two answers."""

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns, in order."""
        return (Turn(self.prompt, self.answer, self.ending), *self.more)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a row holds, before it is framed: (role, text), of system, user and assistant."""

    turns: tuple[tuple[str, str], ...]
    label: int
    cue: str = "Answer"
    place: str = ""
    """Where it was read, for refusals."""


@dataclass(frozen=True)
class Task:
    """A task's examples, drawn and split: no prompt of `test` is among those of `train`."""

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    choices: tuple[str, ...] | None
    """Every possible answer, where the task is a choice among them."""
    left_out: int
    """Examples met while drawing that were longer than `task.max_tokens`."""
    labels: tuple[str, ...] = ()
    """The text of each label, where labels have one."""

    def label_name(self, label: int) -> str:
        """Return how the record names a label: by its text where it has one."""
        if not self.labels:
            return str(label)
        text = self.labels[label] or "(no label)"
        return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}… ({label})"


def frame(text: str, cue: str = "Answer") -> str:
    """Return the plain-text prompt around a text: "Question: ", the text, "Answer:" below it.

    Plain text rather than a chat template, so that every causal language model, instruction
    tuned or not, gets the same prompt; docs/data.md has the measured difference.
    """
    return f"Question: {text.strip()}\n{cue}:"


def solution_steps(answer: str) -> int:
    """Return the number of lines of a worked answer before ``####``, at least 1, at most 8."""
    worked = answer.partition("####")[0]
    lines = sum(bool(line.strip()) for line in worked.splitlines())
    return min(max(lines, 1), MOST_STEPS)


def without_calculator(answer: str) -> str:
    """Drop GSM8K's calculator annotations: ``48/2 = <<48/2=24>>24`` becomes ``48/2 = 24``."""
    return re.sub(r"<<[^<>]*>>", "", answer)


def examples_of(what: str, items: Iterable[Any], classes: dict[Hashable, int]) -> Iterator[Example]:
    """Yield the items of a plugin's task as examples, checked.

    Args:
        what: the task, e.g. "task 'mine'".
        items: `Example`s as they are; (prompt, answer) and (prompt, answer, label), whose prompts
            are framed and whose labels are numbered in the order in which they appear.
        classes: the numbers of the labels so far; new ones are added.

    Raises:
        InputError: an item is none of these, or the task's own code failed.
    """
    iterator = _iterator(what, items)
    number = 0
    while True:
        number += 1
        try:
            item = next(iterator)
        except StopIteration:
            return
        except (InputError, RunError):
            raise
        except Exception as error:
            raise InputError(f"{what}, example {number}: {explained(error)}") from error
        yield (
            item
            if isinstance(item, Example)
            else _example(f"{what}, example {number}", item, classes)
        )


def _iterator(what: str, items: Iterable[Any]) -> Iterator[Any]:
    try:
        return iter(items)
    except TypeError:
        raise InputError(
            f"{what}: it returned {type(items).__name__}; allowed: examples, one after the other"
        ) from None


def _example(place: str, item: Any, classes: dict[Hashable, int]) -> Example:
    if not isinstance(item, tuple | list) or len(item) not in (2, 3):
        raise InputError(
            f"{place}: {repr(item)[:60]} is not (prompt, answer), (prompt, answer, label) or an "
            "Example"
        )
    for name, text in zip(("prompt", "answer"), item, strict=False):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{place}: the {name} {repr(text)[:60]} is not a text")
    label = item[2] if len(item) == 3 else ""
    if not isinstance(label, Hashable):
        raise InputError(f"{place}: the label {repr(label)[:60]} is not a word or a number")
    return Example(frame(item[0]), item[1], classes.setdefault(label, len(classes)))
