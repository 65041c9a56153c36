"""Yahoo! Answers topics in the forms that the data set is found in."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from airtune.data.examples import Conversation
from airtune.data.parts import text_of
from airtune.data.records import CSV, Row, csv_records, format_of, table_rows
from airtune.errors import InputError
from airtune.scenario import TaskSection

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

CHARACTERS_PER_TOKEN = 3
"""Forum texts are cut to this many characters a token of `max_tokens`, or most would be too
long: English has four to five characters a token."""

RowReader = Callable[[str, Row], Conversation]


def yahoo_reader(section: TaskSection) -> RowReader:
    """Return the function from a row by column name to a text and its topic."""
    return functools.partial(_yahoo_conversation, section)


def yahoo_file(section: TaskSection, path: Path) -> Iterator[Conversation]:
    """Yield a file's texts and topics, whichever form it has."""
    to_conversation = yahoo_reader(section)
    if format_of(path) in CSV:
        return _yahoo_csv(path, section, to_conversation)
    return (to_conversation(place, row) for place, row in table_rows(path))


def _yahoo_csv(
    path: Path, section: TaskSection, to_conversation: RowReader
) -> Iterator[Conversation]:
    """Read the original four columns without header, or two columns text,label."""
    for number, (place, fields) in enumerate(csv_records(path)):
        match fields:
            case _ if number == 0 and "topic" in fields:  # the hub's table, saved as CSV
                yield from (to_conversation(*row) for row in table_rows(path))
                return
            case [topic, title, question, answer]:
                yield _topic_conversation(section, place, topic, (title, question, answer))
            case ["text", "label"] if number == 0:
                continue
            case [text, label]:
                yield _topic_conversation(section, place, label, (text,))
            case _:
                raise InputError(
                    f"{place}: {len(fields)} fields; expected class (1 to 10), title, question, "
                    "best answer, or text,label"
                )


def _yahoo_conversation(section: TaskSection, place: str, row: Row) -> Conversation:
    if "text" in row:
        text = text_of(row, "text", place)
        return _topic_conversation(section, place, text_of(row, "label", place), (text,))
    topic = text_of(row, "topic", place)
    if not topic.isdecimal():
        raise InputError(f"{place}: 'topic' must be a number from 0 to 9, found '{topic}'")
    columns = ("question_title", "question_content", "best_answer")
    texts = tuple(str(row.get(column) or "") for column in columns)
    # The hub's table counts topics from 0, the original files count classes from 1.
    return _topic_conversation(section, place, str(int(topic) + 1), texts)


def _topic_conversation(
    section: TaskSection, place: str, topic: str, texts: tuple[str, ...]
) -> Conversation:
    index = _topic_index(topic, place)
    # The original files write line breaks as a backslash and an n, or as HTML.
    joined = re.sub(r"(?:\\n|<br\s*/?>|\s)+", " ", " ".join(texts)).strip()
    if not joined:
        raise InputError(f"{place}: the text is empty")
    room = CHARACTERS_PER_TOKEN * section.max_tokens
    if len(joined) > room:
        joined = joined[:room].rpartition(" ")[0] or joined[:room]
    turns = ("user", joined), ("assistant", TOPICS[index])
    return Conversation(turns, index, "Topic", place)


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
