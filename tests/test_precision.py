"""bfloat16 products that are made in float32: against float64, and in a model's own step."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional

from airtune.adapters.lora import lora_config
from airtune.data import Batch, load_task
from airtune.models import precision
from airtune.models.loading import LoadedModel, label_logits, load_model
from airtune.models.precision import (
    WideProducts,
    needs_wide_products,
    speed_up_attention,
)
from airtune.pruning import calibrate
from airtune.scenario import ModelSection, TaskSection, TrainingSection
from airtune.training.evaluation import answer_loss, exact_match
from small_models import text_batch

ULP = 2.0**-8
"""Largest relative error of a value that is rounded to bfloat16 once."""
MAKERS: dict[str, Callable[..., Tensor]] = {
    "linear": functional.linear,
    "addmm": lambda x, weight, bias: torch.addmm(bias, x, weight.mT),
}


@pytest.fixture
def slow_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this processor have no instructions for bfloat16, and weights many chunks."""
    monkeypatch.setattr(precision, "_has_bfloat16", lambda: False)
    monkeypatch.setattr(precision, "CHUNK_VALUES", 100)


def factors(dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Return an input (6, 48), a weight (70, 48) and a bias (70,) that ask for gradients."""
    torch.manual_seed(0)
    values = [torch.randn(6, 48), torch.randn(70, 48), torch.randn(70)]
    return [value.bfloat16().to(dtype).requires_grad_() for value in values]


@pytest.mark.usefixtures("slow_bfloat16")
@pytest.mark.parametrize("name", MAKERS)
def test_a_product_and_its_gradients_are_rounded_once(name: str) -> None:
    ours, exact = factors(), factors(torch.float64)
    with WideProducts():
        made = MAKERS[name](*ours)
    expected = MAKERS[name](*exact)
    upward = torch.randn_like(expected).bfloat16()
    made.backward(upward)
    expected.backward(upward.double())
    pairs = [(made, expected), *((a.grad, b.grad) for a, b in zip(ours, exact, strict=True))]
    for one, other in pairs:
        assert one is not None
        assert other is not None
        assert one.dtype == torch.bfloat16
        assert torch.allclose(one.double(), other, rtol=ULP, atol=1e-5)


@pytest.mark.usefixtures("slow_bfloat16")
def test_attention_is_rounded_once() -> None:
    torch.manual_seed(0)
    query, key, value, bias = (torch.randn(2, 3, 5, 8).bfloat16() for _ in range(4))
    bias = bias[..., :5]
    with WideProducts():
        made = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    exact = functional.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), attn_mask=bias.double()
    )
    assert made.dtype == torch.bfloat16
    assert torch.allclose(made.double(), exact, rtol=ULP, atol=1e-5)


def test_autocast_decides_the_dtype_and_float32_stays() -> None:
    x, weight, bias = factors(torch.float32)
    with WideProducts():
        assert functional.linear(x, weight, bias).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            cast = functional.linear(x, weight, bias)
            with torch.autocast("cpu", enabled=False):
                assert functional.linear(x, weight, bias).dtype == torch.float32
        plain = functional.linear(*factors())
    assert cast.dtype == torch.bfloat16
    assert torch.equal(cast, plain)
    cast.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def stepped(base: LoadedModel) -> tuple[Tensor, Tensor, set[torch.dtype], int]:
    """Return a step's loss and gradients, and dtypes and bytes of what it kept for backward."""
    config = lora_config(TrainingSection(lora_rank=2), base.lora_targets)
    torch.manual_seed(1)
    model = get_peft_model(copy.deepcopy(base.model), config)
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = 0.1 * torch.randn(parameter.shape)
    ids = torch.arange(60).reshape(3, 20)
    batch = type("Batch", (), {"input_ids": ids, "labels": ids})
    kept: dict[int, Tensor] = {}
    weights = {p.data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = functional.cross_entropy(label_logits(model, batch).float(), ids[:, 1:].flatten())
    of_weights = {t.dtype for t in kept.values() if tuple(t.shape) in shapes_of(base)}
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    return loss.detach(), gradients, of_weights, sum(t.nbytes for t in kept.values())


def shapes_of(base: LoadedModel) -> set[tuple[int, ...]]:
    """Return the shapes of the weights of all linear layers, also transposed."""
    shapes = [tuple(m.weight.shape) for m in base.model.modules() if isinstance(m, nn.Linear)]
    return {*shapes, *(shape[::-1] for shape in shapes)}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_step_is_that_of_bfloat16(monkeypatch: pytest.MonkeyPatch, attention: str) -> None:
    base = load_model(ModelSection(id="tiny", dtype="bfloat16"), seed=0)
    base.model.set_attn_implementation(attention)  # type: ignore[operator]
    monkeypatch.setattr(precision, "_has_bfloat16", lambda: True)
    loss, gradients, *_ = stepped(base)
    monkeypatch.setattr(precision, "_has_bfloat16", lambda: False)
    wide_loss, wide_gradients, of_weights, _ = stepped(base)
    assert wide_loss == pytest.approx(float(loss), rel=0.005)
    assert functional.cosine_similarity(gradients, wide_gradients, dim=0) > 0.995
    assert wide_gradients.norm() == pytest.approx(float(gradients.norm()), rel=0.03)
    assert torch.float32 not in of_weights  # no copy of a weight is held until backward


def test_only_bfloat16_on_a_cpu_without_instructions(
    monkeypatch: pytest.MonkeyPatch, slow_bfloat16: None
) -> None:
    assert needs_wide_products(torch.zeros(2, dtype=torch.bfloat16))
    assert not needs_wide_products(torch.zeros(2))
    assert not needs_wide_products(torch.zeros(2, dtype=torch.bfloat16, device="meta"))
    monkeypatch.setattr(precision, "_has_bfloat16", lambda: True)
    assert not needs_wide_products(torch.zeros(2, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("level", "of_avx512", "onednn", "has"),
    [
        ("AVX512", False, True, False),  # oneDNN says yes, and is slow
        ("AVX512", True, True, True),
        ("AVX2", False, False, False),
        ("DEFAULT", False, True, True),  # an ARM processor with bf16
    ],
)
def test_avx512_alone_has_no_instructions_for_bfloat16(
    monkeypatch: pytest.MonkeyPatch, level: str, of_avx512: bool, onednn: bool, has: bool
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: of_avx512)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    assert precision._has_bfloat16.__wrapped__() is has


@pytest.mark.parametrize(
    ("fast", "longest", "kernel"),
    [
        (True, 256, "eager"),
        (True, 257, "sdpa"),
        (False, 256, "sdpa"),
    ],
)
def test_attention_is_plain_where_bfloat16_is_fast_and_texts_are_short(
    monkeypatch: pytest.MonkeyPatch, fast: bool, longest: int, kernel: str
) -> None:
    monkeypatch.setattr(precision, "_has_bfloat16", lambda: fast)
    model = load_model(ModelSection(id="tiny", dtype="bfloat16"), seed=0).model
    speed_up_attention(model, longest=longest)
    assert model.config._attn_implementation == kernel  # type: ignore[union-attr]


@pytest.mark.usefixtures("slow_bfloat16")
@pytest.mark.parametrize("work", ["calibration", "evaluation", "generation"])
def test_every_linear_layer_is_computed_so(monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    base = load_model(ModelSection(id="tiny", dtype="bfloat16"), seed=0)
    calls = {"layers": 0, "wide": 0}

    def count(kind: str) -> None:
        calls[kind] += 1

    for module in base.model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_: count("layers"))
    rows, linear = text_batch(), precision._linear
    monkeypatch.setitem(
        precision._INSTEAD, functional.linear, lambda *args: (count("wide"), linear(*args))[1]
    )
    if work == "calibration":
        calibrate(base.model, base.shape, [rows])
    elif work == "evaluation":
        answer_loss(base.model, [Batch(rows.input_ids, rows.attention_mask, rows.labels)])
    else:
        sums = load_task(TaskSection(name="sums", train_examples=4, eval_examples=4), seed=0)
        exact_match(base.model, base.tokenizer, sums.test, batch_size=2)
    assert calls["layers"] == calls["wide"] > 0
