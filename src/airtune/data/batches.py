"""From examples to token batches: loss only on the answer, little padding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from airtune.data.examples import Example, Turn
from airtune.errors import InputError

IGNORED = -100
"""Label of a position that has no loss: torch's own convention."""


@dataclass(frozen=True)
class Encoded:
    """One tokenised example: prompt, answer and end-of-text.

    `labels` is as long as `input_ids`, with `IGNORED` over the prompt; `label` is the example's
    class, kept for the partition.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    label: int


def text_fingerprint(parts: Iterable[Iterable[Encoded]]) -> str:
    """Return a name for examples as they are tokenised, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        for one in part:
            digest.update(repr((one.input_ids, one.labels, one.label)).encode())
        digest.update(b"end")
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Batch:
    """Token tensors of shape (B, T), right-padded; labels are `IGNORED` outside the answer."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on a device."""
        return Batch(
            self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device)
        )


def prompt_tokens(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the prompt's tokens, begun with the tokenizer's own first token where it has one.

    Added by hand, because some tokenizers (T5's) also end every text with end-of-text.
    """
    opening = tokenizer("", add_special_tokens=True)["input_ids"][:1]
    begin = opening if opening == [tokenizer.bos_token_id] else []
    return [*begin, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]


def answer_tokens(answer: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of a space, the answer, and end-of-text.

    Raises:
        InputError: the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the model's tokenizer has no end-of-text token (eos_token), so an answer could "
            "never end; choose a model that has one"
        )
    tokens = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    return [*tokens, tokenizer.eos_token_id]


def turn_tokens(turn: Turn, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the tokens of a first turn's prompt and of its answer with what ends it.

    What a chat template rendered has its special tokens already, the first one included.
    """
    if turn.ending is None:
        return prompt_tokens(turn.prompt, tokenizer), answer_tokens(turn.answer, tokenizer)
    return _bare_tokens(turn.prompt, tokenizer), _bare_tokens(turn.answer + turn.ending, tokenizer)


def pieces(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[tuple[list[int], bool]]:
    """Return the example's tokens piece by piece, and whether a piece carries loss."""
    found = []
    for number, turn in enumerate(example.turns):
        prompt, answer = turn_tokens(turn, tokenizer)
        if number:  # the first token of a text comes once
            prompt = _bare_tokens(turn.prompt, tokenizer)
        found += [(prompt, False), (answer, True)]
    return found


def token_count(example: Example, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the example's length in tokens, prompts, answers and end-of-text together."""
    return sum(len(tokens) for tokens, _ in pieces(example, tokenizer))


def encode(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> list[Encoded]:
    """Tokenise examples; those longer than `max_tokens` are left out.

    Prompt and answer are tokenised apart, so that the answer's tokens are the same whether a
    prompt precedes them in training or a generation is compared with them. In a conversation
    every answer carries loss, and nothing else does.

    Returns:
        The examples that fit, in order: the number left out is
        ``len(examples) - len(encode(examples, …))``.
    """
    encoded = []
    for example in examples:
        ids: list[int] = []
        labels: list[int] = []
        for tokens, trained in pieces(example, tokenizer):
            ids += tokens
            labels += tokens if trained else [IGNORED] * len(tokens)
        if len(ids) <= max_tokens:
            encoded.append(Encoded(tuple(ids), tuple(labels), example.label))
    return encoded


def _bare_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def collate(encoded: Sequence[Encoded]) -> Batch:
    """Stack examples into one batch, padded on the right to the longest of them.

    The padding's token is 0: a causal model's answer never looks at it.
    """
    width = max(len(one.input_ids) for one in encoded)
    gaps = [width - len(one.input_ids) for one in encoded]
    rows = list(zip(encoded, gaps, strict=True))
    return Batch(
        torch.tensor([one.input_ids + (0,) * gap for one, gap in rows]),
        torch.tensor([(1,) * (width - gap) + (0,) * gap for gap in gaps]),
        torch.tensor([one.labels + (IGNORED,) * gap for one, gap in rows]),
    )


def local_batches(
    encoded: Sequence[Encoded], *, batch_size: int, steps: int, rng: np.random.Generator
) -> list[Batch]:
    """Draw one client's batches of one round, one a local step.

    Examples come without replacement until all are used, then from a new shuffle. Within a
    window of at most one pass over the data they are sorted by length and cut into batches,
    so that a batch's examples are about equally long; the batches of a window are then
    shuffled, so that length says nothing about the order of training.

    Args:
        encoded: the client's examples, at least one.
        batch_size: examples a batch; every batch has exactly that many.
        steps: batches to draw.
        rng: the generator of this (round, client).
    """
    lengths = np.array([len(one.input_ids) for one in encoded])
    cuts = drawn(lengths, batch_size=batch_size, steps=steps, rng=rng)
    return [collate([encoded[i] for i in cut]) for cut in cuts]


def drawn(
    lengths: NDArray[np.int64], *, batch_size: int, steps: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Return which examples each of `local_batches`'s batches has, from their lengths alone.

    Args:
        lengths: of the client's examples, tokens.
        batch_size: as for `local_batches`.
        steps: as for `local_batches`.
        rng: as for `local_batches`.

    Raises:
        InputError: there is no example.
    """
    if not len(lengths):
        raise InputError("a client has no training examples: lower task.client_eval_examples")
    passes = -(-batch_size * steps // len(lengths))
    order = np.concatenate([rng.permutation(len(lengths)) for _ in range(passes)])
    order = order[: batch_size * steps]
    window = batch_size * max(1, len(lengths) // batch_size)
    batches = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part = part[np.argsort(lengths[part], kind="stable")]
        cuts = [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
        batches += [cuts[index] for index in rng.permutation(len(cuts))]
    return batches


def eval_batches(encoded: Sequence[Encoded], batch_size: int) -> list[Batch]:
    """Return all examples once, longest first (so that memory runs out at once or never)."""
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i].input_ids))
    return [
        collate([encoded[i] for i in order[at : at + batch_size]])
        for at in range(0, len(order), batch_size)
    ]
