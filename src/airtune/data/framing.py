"""From a conversation to what a model reads: plain text, or the model's own chat template."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from airtune.data.examples import Conversation, Example, Turn, frame
from airtune.errors import InputError


def plain(conversation: Conversation) -> Example:
    """Frame a conversation as plain text: "Question: ", the text, "Answer:", then the answer.

    A system text stands before the question; so does an answer that precedes every question,
    which is not trained on. Texts of one role that follow each other are one text.
    """
    turns: list[Turn] = []
    before: list[str] = []
    asked: list[str] = []
    for role, text in conversation.turns:
        if role == "user":
            asked.append(text)
        elif role == "assistant" and asked:
            prompt = "\n".join([*before, frame("\n".join(asked), conversation.cue)])
            turns.append(Turn(f"\n{prompt}" if turns else prompt, text))
            before, asked = [], []
        elif role == "assistant" and turns:
            raise InputError(
                f"{conversation.place}: two assistant turns follow each other; join them"
            )
        else:
            before.append(text)
    return _example(turns, conversation)


def templated(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> Example:
    """Render a conversation by the model's chat template; every answer to a user is trained on.

    The text is rendered up to each answer and again with it: the difference is the answer and
    what the template writes around it. What stands before the answer's text, as an empty block
    of thoughts does, belongs to the prompt; what stands behind it ends the answer.

    Raises:
        InputError: there is no template, it refuses the conversation, or it writes the turns
            differently when others follow.
    """
    place = f"{conversation.place}: " if conversation.place else ""
    messages = [{"role": role, "content": text} for role, text in conversation.turns]
    turns: list[Turn] = []
    done, asked = "", False
    for index, message in enumerate(messages):
        asked = asked or message["role"] == "user"
        if message["role"] != "assistant" or not asked:
            continue
        opening = _rendered(tokenizer, messages[:index], place, add_generation_prompt=True)
        whole = _rendered(tokenizer, messages[: index + 1], place, add_generation_prompt=False)
        lead, answer, ending = whole[len(opening) :].partition(message["content"])
        if not (whole.startswith(opening) and opening.startswith(done) and answer):
            raise InputError(
                f"{place}the model's chat template does not keep earlier turns as they are; set "
                "task.chat_template = false, or give conversations of one answer"
            )
        ending = ending.rstrip()
        turns.append(Turn(opening[len(done) :] + lead, answer, ending or _end(tokenizer)))
        done = opening + lead + answer + ending
    return _example(turns, conversation)


def _example(turns: list[Turn], conversation: Conversation) -> Example:
    first, *more = turns
    return Example(first.prompt, first.answer, conversation.label, first.ending, tuple(more))


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], place: str, **options: Any
) -> str:
    if not tokenizer.chat_template:
        raise InputError(
            "task.chat_template = true: the model's tokenizer has no chat template; set it to "
            "false, or choose a model that is tuned for chat"
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # templates raise what they like
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{place}the model's chat template: {reason[:160]}") from None


def _end(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.eos_token is None:
        raise InputError(
            "the model's tokenizer has no end-of-text token (eos_token), so an answer could "
            "never end; choose a model that has one"
        )
    return str(tokenizer.eos_token)
