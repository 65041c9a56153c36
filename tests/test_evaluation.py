"""Evaluation against slow one-by-one versions on a small random model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    ByT5Tokenizer,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from airtune.data import IGNORED, Encoded, Example, answer_tokens, encode, eval_batches
from airtune.data.batches import prompt_tokens
from airtune.errors import InputError
from airtune.training.evaluation import (
    ExactMatch,
    answer_loss,
    check_choices_fit,
    choice_scores,
    exact_match,
    final_answer,
    group_losses,
    label_accuracy,
    last_number,
)

TOKENIZER = ByT5Tokenizer()
TEXTS = ["one", "twenty two", "three hundred and thirty three", "4", "fifty-five and a half"]


def small_model(family: str, **more: int) -> PreTrainedModel:
    """Rotary positions; learned positions; windows of attention and capped logits."""
    common = {
        "vocab_size": len(TOKENIZER),
        "initializer_range": 0.3,  # far from uniform predictions
        "pad_token_id": 0,
        "eos_token_id": TOKENIZER.eos_token_id,
    }
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config: PretrainedConfig
    match family:
        case "llama":
            config = LlamaConfig(**common, **sizes)
        case "gpt2":
            config = GPT2Config(**common, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, **more)
        case _:
            config = Gemma2Config(
                **common, **sizes, head_dim=8, sliding_window=8, final_logit_softcapping=5.0
            )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return small_model(request.param)


@pytest.fixture(scope="module")
def encoded() -> list[Encoded]:
    examples = [Example(f"say {text}:", text.upper(), i) for i, text in enumerate(TEXTS)]
    return encode(examples, TOKENIZER, 200)


def log_likelihood(model: nn.Module, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """One text at a time, all logits, no cache, no padding."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
    table = logits.log_softmax(-1)
    return sum(float(table[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))


def oracle(model: nn.Module, encoded: Sequence[Encoded]) -> float:
    total, tokens = 0.0, 0
    for one in encoded:
        start = sum(label == IGNORED for label in one.labels)
        total -= log_likelihood(model, one.input_ids[:start], one.input_ids[start:])
        tokens += len(one.input_ids) - start
    return total / tokens


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_answer_loss_is_the_mean_over_tokens_however_batched(
    model: nn.Module, encoded: list[Encoded], batch_size: int
) -> None:
    loss = answer_loss(model, eval_batches(encoded, batch_size))
    assert loss == pytest.approx(oracle(model, encoded), rel=1e-5)


# peft asks transformers for an attribute by its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_answer_loss_under_peft(encoded: list[Encoded]) -> None:
    model = small_model("llama")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        adapted = get_peft_model(
            copy.deepcopy(model),
            LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
        )
    loss = answer_loss(adapted, eval_batches(encoded, 2))
    assert loss == pytest.approx(oracle(adapted.eval(), encoded), rel=1e-5)
    assert loss != pytest.approx(answer_loss(model, eval_batches(encoded, 2)), rel=1e-3)


def test_group_losses_are_the_losses_of_the_groups(
    model: nn.Module, encoded: list[Encoded]
) -> None:
    groups = [encoded[:1], encoded[3:], encoded[1:3], encoded]
    losses = group_losses(model, groups, batch_size=3)
    assert losses == pytest.approx([oracle(model, group) for group in groups], rel=1e-5)


def test_nothing_to_evaluate_is_an_error(model: nn.Module, encoded: list[Encoded]) -> None:
    with pytest.raises(ValueError, match="no answer tokens"):
        answer_loss(model, [])
    with pytest.raises(ValueError, match="a group has no answer tokens"):
        group_losses(model, [encoded, []], 2)


def test_evaluation_keeps_the_models_mode_and_makes_no_gradients(
    model: nn.Module, encoded: list[Encoded]
) -> None:
    model.train()
    try:
        answer_loss(model, eval_batches(encoded, 2))
        assert model.training
    finally:
        model.eval()
    assert all(parameter.grad is None for parameter in model.parameters())


CHOICES = ("red", "redder", "a much longer answer", "x")


def test_choice_scores_are_those_of_each_pair_alone(model: nn.Module) -> None:
    prompts = [prompt_tokens(text, TOKENIZER) for text in TEXTS]
    ends = [answer_tokens(choice, TOKENIZER) for choice in CHOICES]
    scores = choice_scores(model, prompts, ends)
    expected = [[log_likelihood(model, prompt, end) for end in ends] for prompt in prompts]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert all(end[-1] == TOKENIZER.eos_token_id for end in ends)


def test_choices_of_a_single_token(model: nn.Module) -> None:
    prompts = [prompt_tokens(text, TOKENIZER) for text in TEXTS]
    scores = choice_scores(model, prompts, [[70], [71]])
    expected = [[log_likelihood(model, prompt, [end]) for end in (70, 71)] for prompt in prompts]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_label_accuracy_counts_the_most_likely_choice(model: nn.Module) -> None:
    ends = [answer_tokens(choice, TOKENIZER) for choice in CHOICES]
    best = []
    for text in TEXTS:
        prompt = prompt_tokens(text, TOKENIZER)
        scores = [log_likelihood(model, prompt, end) for end in ends]
        best.append(int(np.argmax(scores)))
    # Three are told the model's favourite, the others another choice.
    answers = [CHOICES[b if i < 3 else (b + 1) % len(CHOICES)] for i, b in enumerate(best)]
    examples = [Example(t, a, 0) for t, a in zip(TEXTS, answers, strict=True)]
    assert label_accuracy(model, TOKENIZER, examples, CHOICES, batch_size=2) == 3 / 5


def test_choices_end_as_the_examples_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a chat template: no space before the answer, the template's own end behind it."""
    asked: list[str] = []

    def scores(_: nn.Module, prompts: list[list[int]], ends: list[list[int]]) -> torch.Tensor:
        asked.extend(TOKENIZER.decode(tokens) for tokens in (*prompts, *ends))
        return torch.eye(len(ends))[: len(prompts)]

    monkeypatch.setattr("airtune.training.evaluation.choice_scores", scores)
    examples = [Example("q<", "red", 0, "!"), Example("r<", "redder", 0, "!")]
    accuracy = label_accuracy(nn.Module(), TOKENIZER, examples, CHOICES, batch_size=2)
    assert asked == ["q<", "r<", *(f"{choice}!" for choice in CHOICES)]
    assert accuracy == 1


def greedy(model: nn.Module, prompt: list[int], most: int) -> str:
    """One prompt, no cache, one token at a time."""
    tokens = list(prompt)
    for _ in range(most):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
        if token == TOKENIZER.eos_token_id:
            break
        tokens.append(token)
    return TOKENIZER.decode(tokens[len(prompt) :], skip_special_tokens=True)


def test_exact_match_generates_greedily(model: nn.Module) -> None:
    prompts = [prompt_tokens(text, TOKENIZER) for text in TEXTS]
    generated = [greedy(model, prompt, 6) for prompt in prompts]
    assert len(set(generated)) > 1
    examples = [
        Example(text, answer if i % 2 == 0 else answer + "!", 0)
        for i, (text, answer) in enumerate(zip(TEXTS, generated, strict=True))
    ]
    match = exact_match(model, TOKENIZER, examples, batch_size=2, max_new_tokens=6)
    assert match == ExactMatch(3 / 5, None)


def test_generation_ends_where_the_models_positions_do() -> None:
    prompts = [prompt_tokens(text, TOKENIZER) for text in TEXTS]
    longest = max(map(len, prompts)) + 2
    model = small_model("gpt2", n_positions=longest)
    answers = [greedy(model, prompt, min(6, longest - len(prompt))) for prompt in prompts]
    examples = [Example(text, answer, 0) for text, answer in zip(TEXTS, answers, strict=True)]
    assert exact_match(model, TOKENIZER, examples, batch_size=5, max_new_tokens=6).strict == 1
    shorter = [replace(e, answer=e.answer[:-1]) for e in examples]
    assert exact_match(model, TOKENIZER, shorter, batch_size=5, max_new_tokens=6).strict == 0


def test_choices_beyond_the_models_positions_are_refused() -> None:
    examples = [Example("short", "a", 0), Example("a longer one", "a", 0)]
    prompt = len(prompt_tokens("a longer one", TOKENIZER))
    end = len(answer_tokens("a choice", TOKENIZER))
    check_choices_fit(TOKENIZER, examples, ["a", "a choice"], prompt + end)
    check_choices_fit(TOKENIZER, examples, ["a", "a choice"], None)
    with pytest.raises(InputError, match=f"'a choice' .* after a prompt of {prompt} tokens"):
        check_choices_fit(TOKENIZER, examples, ["a", "a choice"], prompt + end - 1)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 3\n#### 72", "72"),
        ("#### 1,234,000", "1234000"),
        ("####$1,200.50", "1200.5"),
        ("#### 15.0", "15"),
        ("#### -3", "-3"),
        ("#### .5", "0.5"),
        ("#### 100", "100"),
        ("#### 7 apples. Question: #### 9", "7"),
        ("#### 7.\nmore", "7"),
        ("#### none", "none"),
        ("####", ""),
        ("the answer is 72", None),
    ],
)
def test_final_answers(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@given(st.integers(-(10**9), 10**9))
def test_thousands_separators_do_not_count(number: int) -> None:
    assert final_answer(f"#### {number:,}") == final_answer(f"x #### {number}\n") == str(number)


class _Says(nn.Module):
    """Continues every prompt with the same text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = LlamaConfig(max_position_embeddings=4096)
        self.tokens = torch.tensor([answer_tokens(text, TOKENIZER)])

    def generate(self, input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.cat([input_ids, self.tokens.repeat(len(input_ids), 1)], dim=1)


def test_worked_answers_are_compared_by_their_number_only() -> None:
    examples = [Example("a", "1+1 = 2\n#### 1,002", 0), Example("b", "so\n#### 3", 0)]

    def match(text: str) -> ExactMatch:
        return exact_match(_Says(text), TOKENIZER, examples, batch_size=2)

    assert match("any way\n#### 1002.0 and on") == ExactMatch(0.5, 0.5)
    # Without the mark only the last number counts; with it the two may differ.
    assert match("1002") == ExactMatch(0.0, 0.5)
    assert match("3 and then #### 1002") == ExactMatch(0.5, 0.5)
    assert match("#### 3. Check: 1,002") == ExactMatch(0.5, 0.5)
    assert match("#### 3. Check: 5") == ExactMatch(0.5, 0.0)
    assert match("nothing") == ExactMatch(0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 plus 4 is 7.", "7"),
        ("it costs $1,200.50, she says", "1200.5"),
        ("at -3", "-3"),
        ("5-3", "3"),
        ("about .50", "0.5"),
        ("#### 15.0", "15"),
        ("none", None),
    ],
)
def test_last_numbers(text: str, number: str | None) -> None:
    assert last_number(text) == number


def test_final_answers_of_unmarked_references_are_whole_texts() -> None:
    examples = [Example("1 + 2 =", "3", 1), Example("1 + 3 =", "4", 1)]
    match = exact_match(_Says(" 3 "), TOKENIZER, examples, batch_size=1)
    assert match == ExactMatch(0.5, None)
