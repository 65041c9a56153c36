"""The shapes that rows come in: prompt and answer, Alpaca, conversations, columns of one's own."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from typing import Any

from airtune.data.parts import text_of
from airtune.encoding import surrogate_in
from airtune.errors import InputError
from airtune.scenario import TaskSection

Turns = tuple[tuple[str, str], ...]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
"""The names of roles in `messages` (role, content) and in `conversations` (from, value)."""

CHATS = ("messages", "conversations")


def turns_of(section: TaskSection, row: Mapping[str, Any], place: str) -> Turns:
    """Return a row's turns, whatever its shape.

    The columns that the scenario names come first, then `messages` or `conversations`, then
    Alpaca's `instruction`, `input` (may be empty) and `output`.

    Raises:
        InputError: the row has none of the shapes, or a text in it is missing or empty.
    """
    answer = _answer_column(section, row)
    if section.prompt_template is None and section.prompt_column not in row:
        for column in CHATS:
            if column in row:
                return _chat(row[column], column, place)
        if "instruction" in row and answer in row:
            texts = [text_of(row, "instruction", place)]
            if str(row.get("input") or "").strip():
                texts.append(text_of(row, "input", place))
            return ("user", "\n".join(texts)), ("assistant", text_of(row, answer, place))
    if answer not in row and section.prompt_template is None:
        for column in CHATS:  # some tables also hold a conversation's first question as `prompt`
            if column in row:
                return _chat(row[column], column, place)
    prompt = prompt_of(section, row, place)
    return ("user", prompt), ("assistant", text_of(row, answer, place, key="task.answer_column"))


def prompt_of(section: TaskSection, row: Mapping[str, Any], place: str) -> str:
    """Return the prompt column, or the columns of `task.prompt_template` in their places."""
    if section.prompt_template is None:
        return text_of(row, section.prompt_column, place, key="task.prompt_column")
    parts = []
    for literal, column, _, _ in string.Formatter().parse(section.prompt_template):
        parts.append(literal)
        if column is not None:
            # A column may be empty in some rows, as Alpaca's `input` is in most.
            empty = column in row and not str("" if row[column] is None else row[column]).strip()
            parts.append("" if empty else text_of(row, column, place, key="task.prompt_template"))
    prompt = "".join(parts).strip()
    if not prompt:
        raise InputError(f"{place}: all columns of task.prompt_template are empty")
    return prompt


def _answer_column(section: TaskSection, row: Mapping[str, Any]) -> str:
    """Return the scenario's column, or Alpaca's where the default one is not there."""
    alpaca = section.answer_column == "answer" and "answer" not in row and "output" in row
    return "output" if alpaca else section.answer_column


def _chat(value: Any, column: str, place: str) -> Turns:
    if isinstance(value, dict):  # a table may hold a list of turns as one list a field
        lists = {key: part for key, part in value.items() if isinstance(part, list)}
        value = [
            dict(zip(lists, turn, strict=False)) for turn in zip(*lists.values(), strict=False)
        ]
    if not isinstance(value, list):
        raise InputError(f"{place}: '{column}' must be a list of turns, found {_shown(value)}")
    turns = tuple(_turn(one, f"{place}: {column}[{index}]") for index, one in enumerate(value))
    roles = [role for role, _ in turns]
    if "user" not in roles or "assistant" not in roles[roles.index("user") :]:
        raise InputError(f"{place}: '{column}' has no assistant turn after a user's")
    last = len(roles) - roles[::-1].index("assistant")
    return turns[:last]  # a turn without an answer is not trained on


def _turn(value: Any, where: str) -> tuple[str, str]:
    if not isinstance(value, dict):
        raise InputError(f"{where} must have role and content, found {_shown(value)}")
    role = value.get("role", value.get("from"))
    if role not in ROLES:
        allowed = ", ".join(ROLES)
        raise InputError(f"{where}: the role {_shown(role)} is not one of {allowed}")
    content = value.get("content", value.get("value"))
    if isinstance(content, list):
        content = "\n".join(_text_part(part, where) for part in content)
    if not isinstance(content, str) or not content.strip():
        raise InputError(f"{where}: the content must be text, found {_shown(content)}")
    return ROLES[role], content.strip()


def _text_part(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise InputError(f"{where}: only parts of type 'text' can be used, found {_shown(part)}")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return json.dumps(value, default=str)[:40] if surrogate_in(text) else text[:40]
