"""Conversations: what carries loss, in plain text and in the model's chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import ByT5Tokenizer

from airtune.data import IGNORED, Encoded, Example, Turn, encode, load_task
from airtune.data.batches import token_count
from airtune.data.examples import Conversation, frame
from airtune.data.framing import plain, templated
from airtune.errors import InputError
from airtune.scenario import TaskSection

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TURNS = (
    ("system", "Be brief."),
    ("user", "hi"),
    ("assistant", "hello"),
    ("user", "bye"),
    ("assistant", "see you"),
)


def tokenizer(template: str | None = CHATML) -> ByT5Tokenizer:
    made = ByT5Tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|end|>", "<|assistant|>"]})
    made.chat_template = template
    return made


def trained(one: Encoded, tokens: ByT5Tokenizer) -> list[str]:
    """Return each run of tokens that carries loss, as text."""
    runs: list[list[int]] = []
    before = IGNORED
    for label in one.labels:
        if label != IGNORED:
            if before == IGNORED:
                runs.append([])
            runs[-1].append(label)
        before = label
    return [tokens.decode(run) for run in runs]


def test_plain_text_trains_on_every_answer_and_its_end() -> None:
    tokens = tokenizer()
    example = plain(Conversation(TURNS, 3))
    (one,) = encode([example], tokens, 200)
    assert trained(one, tokens) == [" hello</s>", " see you</s>"]
    assert tokens.decode(one.input_ids) == (
        "Be brief.\nQuestion: hi\nAnswer: hello</s>\nQuestion: bye\nAnswer: see you</s>"
    )
    assert one.label == 3
    assert token_count(example, tokens) == len(one.input_ids)
    assert encode([example], tokens, len(one.input_ids) - 1) == []


def test_the_chat_template_is_the_models_own() -> None:
    tokens = tokenizer()
    example = templated(Conversation(TURNS, 0), tokens)
    (one,) = encode([example], tokens, 200)
    messages = [{"role": role, "content": text} for role, text in TURNS]
    whole = tokens.apply_chat_template(messages, tokenize=False).rstrip("\n")
    assert list(one.input_ids) == tokens(whole, add_special_tokens=False).input_ids
    assert trained(one, tokens) == ["hello<|end|>", "see you<|end|>"]


def test_one_turn_is_what_it_was_before_there_were_conversations() -> None:
    example = plain(Conversation((("user", "2+2"), ("assistant", "4")), 1))
    assert example == Example(frame("2+2"), "4", 1)
    assert example.turns == (Turn(frame("2+2"), "4"),)


def test_what_a_template_writes_before_an_answer_is_no_answer() -> None:
    thinks = CHATML.replace("{{ m.content }}", "{{ m.role == 'assistant' and 'T:' or '' }}"
                            "{{ m.content }}")  # fmt: skip
    tokens = tokenizer(thinks)
    example = templated(Conversation(TURNS[1:3], 0), tokens)
    assert example == Example("<|user|>hi<|end|>\n<|assistant|>T:", "hello", 0, "<|end|>")


def test_a_template_without_an_end_gets_end_of_text() -> None:
    tokens = tokenizer("{% for m in messages %}[{{ m.content }}{% endfor %}")
    (one,) = encode([templated(Conversation(TURNS[1:3], 0), tokens)], tokens, 99)
    assert trained(one, tokens) == ["hello</s>"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "task.chat_template = true: the model's tokenizer has no chat template"),
        (
            "{{ raise_exception('no system role') }}",
            "d, line 1: the model's chat template: no system",
        ),
        (
            "{% for m in messages %}{% if m.role == 'user' or loop.last %}<{{ m.content }}>"
            "{% endif %}{% endfor %}",
            "d, line 1: the model's chat template does not keep earlier turns as they are",
        ),
    ],
)
def test_templates_that_cannot_be_used(template: str | None, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        templated(Conversation(TURNS, 0, place="d, line 1"), tokenizer(template))
    assert str(refusal.value).startswith(message)


def test_two_answers_in_a_row_are_refused_in_plain_text() -> None:
    twice = (*TURNS, ("assistant", "more"))
    with pytest.raises(InputError, match="two assistant turns follow each other"):
        plain(Conversation(twice, 0))


def chat_file(path: Path, count: int) -> Path:
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": role, "content": f"{text} {i}"} for role, text in TURNS]}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("asked", [False, True])
def test_a_task_of_conversations(tmp_path: Path, asked: bool) -> None:
    section = TaskSection(
        name="prompt-answer",
        source=str(chat_file(tmp_path / "d.jsonl", 6)),
        chat_template=asked,
        train_examples=5,
        eval_examples=1,
    )
    task = load_task(section, seed=0, tokenizer=tokenizer())
    assert {(e.ending is not None, len(e.more)) for e in task.train} == {(asked, 1)}
    assert not {e.turns for e in task.train} & {e.turns for e in task.test}


def test_choices_end_as_the_template_ends_them(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("prompt,label\n" + "".join(f"q{i},{'ab'[i % 2]}\n" for i in range(6)))
    section = TaskSection(
        name="classification", source=str(path), chat_template=True, train_examples=5,
        eval_examples=1,
    )  # fmt: skip
    task = load_task(section, seed=0, tokenizer=tokenizer())
    assert task.choices == ("a", "b")
    assert {(e.answer, e.ending) for e in task.train} == {("a", "<|end|>"), ("b", "<|end|>")}


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sums are plain text"):
        TaskSection(name="sums", chat_template=True)
    source = str(chat_file(tmp_path / "d.jsonl", 2))
    with pytest.raises(InputError, match="needs the model's tokenizer"):
        load_task(TaskSection(name="prompt-answer", source=source, chat_template=True), seed=0)
