"""What a model has learnt: loss per answer token, accuracy among choices, exact match."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerBase

from airtune.data import IGNORED, Batch, Encoded, Example, Turn, collate, turn_tokens
from airtune.errors import InputError
from airtune.models.loading import (
    causal_model,
    head_logits,
    label_logits,
    longest_text,
)
from airtune.models.precision import mixed_precision


def answer_loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Return the mean negative log-likelihood of an answer token, in nats.

    −Σ log p(token | what precedes it) / number of tokens, over all answer tokens of all
    batches, end-of-text included: a mean over tokens, not over batches or examples, so it does
    not depend on how the examples were batched.

    Raises:
        ValueError: there is no answer token.
    """
    total, tokens = 0.0, 0
    with _evaluating(model):
        for batch in batches:
            losses, rows = _token_losses(model, batch)
            total += float(losses.double().sum())
            tokens += len(rows)
    if not tokens:
        raise ValueError("no answer tokens to take the loss of")
    return total / tokens


def group_losses(
    model: nn.Module, groups: Sequence[Sequence[Encoded]], batch_size: int
) -> list[float]:
    """Return `answer_loss` of each group of examples, e.g. of each client's own held-out text.

    The examples of all groups share batches of similar length, so that many small groups cost
    no more than one large one.

    Raises:
        ValueError: a group is empty.
    """
    tagged = [(group, one) for group, members in enumerate(groups) for one in members]
    tagged.sort(key=lambda pair: -len(pair[1].input_ids))
    sums = torch.zeros(len(groups), dtype=torch.float64)
    tokens = torch.zeros_like(sums)
    with _evaluating(model):
        for at in range(0, len(tagged), batch_size):
            part = tagged[at : at + batch_size]
            losses, rows = _token_losses(model, collate([one for _, one in part]))
            owner = torch.tensor([group for group, _ in part])[rows.cpu()]
            sums.index_add_(0, owner, losses.double().cpu())
            tokens.index_add_(0, owner, torch.ones(len(owner), dtype=torch.float64))
    if not bool((tokens > 0).all()):
        raise ValueError("a group has no answer tokens to take the loss of")
    return [float(loss) for loss in sums / tokens]


def label_accuracy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    choices: Sequence[str],
    *,
    batch_size: int,
) -> float:
    """Return the share of examples whose answer is the most likely of the choices.

    The score of a choice is log p(choice, end-of-text | prompt), summed over its tokens and
    not divided by their number: these are the probabilities of disjoint events, and with
    end-of-text a choice that begins another has no advantage. The prompt is run once; its
    keys and values are shared by all choices.

    Args:
        model: a causal language model of Transformers, with or without PEFT around it.
        tokenizer: the model's.
        examples: at least one; each `answer` is one of the choices.
        choices: the possible answers.
        batch_size: prompts run together.
    """
    ending = examples[0].ending
    ends = [turn_tokens(Turn("", choice, ending), tokenizer)[1] for choice in choices]
    correct = 0
    for part in _by_length(examples, tokenizer, batch_size):
        prompts = [_first_prompt(example, tokenizer) for example in part]
        best = choice_scores(model, prompts, ends).argmax(dim=1).tolist()
        answers = [choices[index] for index in best]
        correct += sum(e.answer == a for e, a in zip(part, answers, strict=True))
    return correct / len(examples)


def check_choices_fit(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    choices: Sequence[str],
    longest_text: int | None,
) -> None:
    """Refuse choices that, after the longest prompt, lie beyond the last position of the model.

    Args:
        tokenizer: the model's.
        examples: those that `label_accuracy` is asked for, at least one.
        choices: the possible answers.
        longest_text: what the model reads, tokens; None where that is not known.

    Raises:
        InputError: names the longest choice.
    """
    if longest_text is None:
        return
    ends = {c: len(turn_tokens(Turn("", c, examples[0].ending), tokenizer)[1]) for c in choices}
    choice = max(ends, key=lambda one: ends[one])
    prompt = max(len(_first_prompt(example, tokenizer)) for example in examples)
    if prompt + ends[choice] > longest_text:
        raise InputError(
            f"the choice {choice!r} ({ends[choice]} tokens) after a prompt of {prompt} tokens is "
            f"longer than the {longest_text} tokens that the model reads: lower task.max_tokens"
        )


def choice_scores(
    model: nn.Module, prompts: Sequence[Sequence[int]], choices: Sequence[Sequence[int]]
) -> Tensor:
    """Return log p(choice | prompt) for every pair, (prompts, choices), in float32 on the CPU."""
    device = _device(model)
    ids, mask = _left_padded(prompts, device)
    width = max(len(choice) for choice in choices)
    targets = torch.full((len(choices), width), IGNORED, device=device)
    for row, choice in enumerate(choices):
        targets[row, : len(choice)] = torch.tensor(choice)
    causal = causal_model(model)
    with _evaluating(model):
        # The head is applied to rows alone: a slice of (prompts, length, width) would have the
        # whole head copied for each prompt.
        first = causal.base_model(
            input_ids=ids, attention_mask=mask, position_ids=_positions(mask), use_cache=True
        )
        logits = head_logits(causal, first.last_hidden_state[:, -1].contiguous())
        scores = logits.float().log_softmax(dim=1)[:, targets[:, 0]]
        if width > 1:
            cache = first.past_key_values
            cache.batch_repeat_interleave(len(choices))
            targets = targets.repeat(len(prompts), 1)
            fed = targets[:, :-1]
            wide = torch.cat(
                [mask.repeat_interleave(len(choices), dim=0), (fed != IGNORED).long()], dim=1
            )
            rest = causal.base_model(
                input_ids=fed.clamp(min=0),
                attention_mask=wide,
                position_ids=_positions(wide)[:, -fed.shape[1] :],
                past_key_values=cache,
            )
            wanted = targets[:, 1:] != IGNORED
            logits = head_logits(causal, rest.last_hidden_state[wanted])
            losses = cross_entropy(logits.float(), targets[:, 1:][wanted], reduction="none")
            sums = torch.zeros(len(targets), device=device)
            sums.index_add_(0, wanted.nonzero()[:, 0], losses)
            scores = scores - sums.view(scores.shape)
    return scores.cpu()


@dataclass(frozen=True)
class ExactMatch:
    """The share of examples whose generated answer is right.

    Attributes:
        strict: the answer stands where the reference has it: after ``####``.
        flexible: the answer is the last number of the generated text; None where no reference has
            ``####``.
    """

    strict: float
    flexible: float | None


def exact_match(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    batch_size: int,
    max_new_tokens: int | None = None,
) -> ExactMatch:
    """Return the shares of examples whose generated answer is right.

    Answers are generated greedily. Where the reference has ``#### N``, its number is compared:
    strictly with the number after the first ``####`` (see `final_answer`), so that a generation
    without ``####`` is wrong; flexibly with the last number of the text (see `last_number`). These
    are the two filters of GSM8K in lm-eval, ``strict-match`` and ``flexible-extract``. A reference
    without ``####`` is compared whole, white space aside, in both. Of a conversation the first
    answer is generated and compared.

    Args:
        model: a causal language model of Transformers, with or without PEFT around it.
        tokenizer: the model's.
        examples: at least one.
        batch_size: prompts continued together.
        max_new_tokens: where to give up; default: half as much again as the longest
            reference answer. Where the model's own positions end, each text ends too.
    """
    if max_new_tokens is None:
        longest = max(len(turn_tokens(e.turns[0], tokenizer)[1]) for e in examples)
        max_new_tokens = 3 * longest // 2
    generator: Any = model
    strict = flexible = 0
    for part, room in _with_room(
        examples, tokenizer, batch_size, longest_text(model), max_new_tokens
    ):
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=room,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        prompts = [_first_prompt(example, tokenizer) for example in part]
        ids, mask = _left_padded(prompts, _device(model))
        with _evaluating(model):
            output = generator.generate(
                input_ids=ids, attention_mask=mask, generation_config=config
            )
        texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
        for text, example in zip(texts, part, strict=True):
            right = _matches(text, example.answer)
            strict += right[0]
            flexible += right[1]
    marked = any(final_answer(example.answer) is not None for example in examples)
    count = len(examples)
    return ExactMatch(strict / count, flexible / count if marked else None)


def final_answer(text: str) -> str | None:
    """Return what follows the first ``####``, numbers in one spelling, or None without it.

    Thousands separators, currency signs and trailing zeros do not count: ``#### $1,200.0``
    gives ``1200``.
    """
    _, marker, rest = text.partition("####")
    if not marker:
        return None
    line = rest.strip().partition("\n")[0].strip()
    # A model that goes on after the number is not asked what else it says.
    number = re.match(r"[^\d\n.+-]{0,3}([+-]?[\d,]*\.?\d+)", line)
    if number is None:
        return line
    return _spelling(number[1]) or line


def last_number(text: str) -> str | None:
    """Return the last number of the text in one spelling, or None without any.

    A sign counts where neither a digit nor a letter precedes it: ``5-3`` ends in ``3``.
    """
    found = re.findall(r"(?:(?<!\w)-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)", text)
    return _spelling(found[-1].replace("$", "")) if found else None


def _spelling(number: str) -> str | None:
    try:
        value = Decimal(number.replace(",", ""))
    except InvalidOperation:
        return None
    return format(value.normalize(), "f")


def _matches(generated: str, reference: str) -> tuple[bool, bool]:
    """Return whether the generated answer is right: strictly, flexibly."""
    expected = final_answer(reference)
    if expected is None:
        same = generated.split() == reference.split()
        return same, same
    return final_answer(generated) == expected, last_number(generated) == expected


def _token_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return each answer token's loss and its row, both (answer tokens,)."""
    batch = batch.to(_device(model))
    labels = batch.labels[:, 1:]
    wanted = labels != IGNORED
    logits = label_logits(model, batch).float()
    losses = cross_entropy(logits, labels[wanted], reduction="none")
    return losses, wanted.nonzero()[:, 0]


def _by_length(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> Iterator[list[Example]]:
    order = sorted(examples, key=lambda e: -len(_first_prompt(e, tokenizer)))
    for at in range(0, len(order), batch_size):
        yield order[at : at + batch_size]


def _with_room(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    longest_text: int | None,
    most: int,
) -> Iterator[tuple[list[Example], int]]:
    """Yield batches and how many tokens may follow: `most`, or what the model's positions leave.

    An example whose prompt leaves less than `most` is alone: the others of its batch would have to
    end with it.
    """
    room = [
        most if longest_text is None else longest_text - len(_first_prompt(example, tokenizer))
        for example in examples
    ]
    rest = [example for example, left in zip(examples, room, strict=True) if left >= most]
    for part in _by_length(rest, tokenizer, batch_size):
        yield part, most
    for example, left in zip(examples, room, strict=True):
        if 0 < left < most:
            yield [example], left


def _first_prompt(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return turn_tokens(example.turns[0], tokenizer)[0]


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, (prompts, longest): continuing needs all prompts to end together."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _positions(mask: Tensor) -> Tensor:
    """Return each token's place in its text; models with learned positions need it told."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without gradients and dropout, in the weights' dtype; the mode is put back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), mixed_precision(model):
            yield
    finally:
        model.train(training)
