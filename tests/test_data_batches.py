"""Tokens and batches: what carries loss, how long examples may be, what is drawn how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from airtune.data import (
    IGNORED,
    Encoded,
    Example,
    answer_tokens,
    encode,
    eval_batches,
    local_batches,
)
from airtune.errors import InputError

TOKENIZER = ByT5Tokenizer()


# --- tokens -----------------------------------------------------------------------------------


def test_loss_is_on_the_answer_and_its_end_only() -> None:
    (one,) = encode([Example("2+2 =", "4", 7)], TOKENIZER, 100)
    prompt = TOKENIZER("2+2 =", add_special_tokens=False).input_ids
    answer = [*TOKENIZER(" 4", add_special_tokens=False).input_ids, TOKENIZER.eos_token_id]
    assert one == Encoded((*prompt, *answer), (*[IGNORED] * len(prompt), *answer), 7)


def test_the_first_token_of_tokenizers_that_have_one_is_kept() -> None:
    class Begins(ByT5Tokenizer):
        def build_inputs_with_special_tokens(self, ids: list[int], pair: Any = None) -> list[int]:
            return [self.bos_token_id, *ids]

    tokenizer = Begins(bos_token="<s>")
    (one,) = encode([Example("a", "b", 0)], tokenizer, 100)
    assert one.input_ids.count(tokenizer.bos_token_id) == 1
    assert one.input_ids[0] == tokenizer.bos_token_id
    assert one.labels[0] == IGNORED


def test_examples_are_left_out_from_one_token_above_the_limit() -> None:
    example = Example("2+2 =", "4", 0)  # 5 + 2 bytes and end-of-text
    assert len(encode([example], TOKENIZER, 8)) == 1
    assert len(encode([example], TOKENIZER, 7)) == 0


def test_a_tokenizer_without_end_of_text_is_refused() -> None:
    tokenizer = ByT5Tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-text token"):
        answer_tokens("4", tokenizer)


# --- batches ----------------------------------------------------------------------------------


def made_up(lengths: list[int]) -> list[Encoded]:
    """Examples that can be told apart by their first token."""
    return [
        Encoded((i + 1, *[9999] * (length - 1)), (*[IGNORED] * (length - 1), 9999), 0)
        for i, length in enumerate(lengths)
    ]


def uses(batches: list[Any]) -> Counter[int]:
    return Counter(int(row[0]) - 1 for batch in batches for row in batch.input_ids)


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=30),
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(0, 5),
)
@settings(max_examples=80, deadline=None)
def test_no_example_comes_again_before_all_have_come(
    lengths: list[int], batch_size: int, steps: int, seed: int
) -> None:
    encoded = made_up(lengths)
    rng: Callable[[], np.random.Generator] = lambda: np.random.default_rng(seed)  # noqa: E731
    batches = local_batches(encoded, batch_size=batch_size, steps=steps, rng=rng())
    assert [len(batch.input_ids) for batch in batches] == [batch_size] * steps
    counts = uses(batches)
    passes, extra = divmod(batch_size * steps, len(lengths))
    assert sorted(counts[i] for i in range(len(lengths))) == sorted(
        [passes] * (len(lengths) - extra) + [passes + 1] * extra
    )
    again = local_batches(encoded, batch_size=batch_size, steps=steps, rng=rng())
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(batches, again, strict=True))
    for batch in batches:
        for row, mask, labels in zip(
            batch.input_ids, batch.attention_mask, batch.labels, strict=True
        ):
            length = lengths[int(row[0]) - 1]
            assert mask.tolist() == [1] * length + [0] * (len(row) - length)
            assert (labels != IGNORED).nonzero().flatten().tolist() == [length - 1]


def test_sorting_by_length_leaves_little_padding() -> None:
    rng = np.random.default_rng(0)
    encoded = made_up([int(n) for n in rng.integers(20, 160, size=256)])

    def padding(batches: list[Any]) -> float:
        return 1 - sum(float(b.attention_mask.sum()) for b in batches) / sum(
            b.input_ids.numel() for b in batches
        )

    sorted_ones = local_batches(encoded, batch_size=8, steps=32, rng=rng)
    assert padding(sorted_ones) < 0.05  # unsorted: about 0.4
    widths = [batch.input_ids.shape[1] for batch in sorted_ones]
    assert widths != sorted(widths)  # but not trained on from short to long


def test_eval_batches_hold_every_example_once_longest_first() -> None:
    encoded = made_up([5, 9, 2, 9, 7])
    batches = eval_batches(encoded, 2)
    assert uses(batches) == Counter(range(5))
    widths = [batch.input_ids.shape[1] for batch in batches]
    assert all(a >= b for a, b in pairwise(widths))
    assert eval_batches([], 2) == []
