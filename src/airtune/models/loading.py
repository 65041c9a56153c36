"""Load a causal language model with its tokenizer, and ask it for logits where they are needed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from airtune.errors import InputError
from airtune.models.builtin import PACKED, TINY, byte_tokenizer, packed_folder, tiny_model
from airtune.models.checkpoints import read_checkpoint
from airtune.models.families import family_of
from airtune.models.precision import mixed_precision
from airtune.models.quantize import quantize_blocks
from airtune.models.shapes import check_context, context_of
from airtune.models.workload import ModelShape
from airtune.scenario import ModelSection

FINGERPRINT_SAMPLES = 4096
"""Values of each tensor that the fingerprint reads, evenly spaced."""


class LabelledBatch(Protocol):
    """What is asked of a batch here; `airtune.data.Batch` has it."""

    @property
    def input_ids(self) -> Tensor:
        """Token ids, (rows, length)."""

    @property
    def labels(self) -> Tensor:
        """Token ids to predict, -100 where there is none, (rows, length)."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with frozen weights, its tokenizer, and what the rest needs to know of it."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    shape: ModelShape
    fingerprint: str
    """See `fingerprint_of`."""

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Names of the linear layers of a block, for PEFT's `target_modules`."""
        return lora_targets(self.shape)


def shape_of(model: nn.Module) -> ModelShape:
    """Read the sizes of a causal language model; raises `InputError` outside the table."""
    config: Any = model.config
    return ModelShape.of_config(config.to_dict())


def lora_targets(shape: ModelShape) -> tuple[str, ...]:
    """Return the last name of every linear layer of a block: PEFT matches by it."""
    return tuple(dict.fromkeys(m.name.rpartition(".")[2] for m in shape.matrices))


def load_model(section: ModelSection, *, seed: int, max_tokens: int | None = None) -> LoadedModel:
    """Load the scenario's model: built in, from a folder, or from the hub by id.

    The weights come frozen and in evaluation mode. Nothing is printed.

    Args:
        section: which model, and in which dtype.
        seed: of the random weights of `tiny`; not used otherwise.
        max_tokens: the longest text that it is to read, task.max_tokens.

    Raises:
        InputError: no such model, it cannot be had offline, its architecture cannot be cut, its
            files do not fit together, it has weights that are not finite, or it cannot read
            texts of `max_tokens`.
    """
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[section.dtype]
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    if section.id == TINY:
        model, tokenizer = tiny_model(seed), byte_tokenizer()
        nn.Module.to(model, dtype)
    elif section.id in PACKED:
        model, tokenizer = read_checkpoint(str(packed_folder(section.id)), section, dtype)
    else:
        model, tokenizer = read_checkpoint(section.id, section, dtype)
    loaded = prepared(model, tokenizer, name=section.id, quantize=section.quantize)
    if max_tokens is not None:
        config: Any = model.config
        check_context(config.to_dict(), max_tokens, name=section.id)
    return loaded


def prepared(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    quantize: str | None = None,
) -> LoadedModel:
    """Freeze and check a model that is already in memory; raises `InputError` as `load_model`."""
    shape = shape_of(model)
    _check_tied(model, shape, name)
    _check_vocabulary(tokenizer, shape, name)
    for key, value in model.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"model '{name}': weights of {key} are not finite")
    model.requires_grad_(False)
    model.eval()
    if quantize is not None:
        quantize_blocks(model, shape, quantize)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return LoadedModel(model, tokenizer, shape, fingerprint_of(model))


def longest_text(model: nn.Module) -> int | None:
    """Return the length of the longest text that a model reads, tokens; None: it is not said."""
    return context_of(causal_model(model).config.to_dict())


def _check_tied(model: Any, shape: ModelShape, name: str) -> None:
    """Refuse a checkpoint whose LM head is not what its configuration says."""
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if shape.tied and head is not embedding:
        raise InputError(
            f"model '{name}': its configuration says tie_word_embeddings = true, but the LM head "
            "among its weights is not the embedding: give the configuration that the weights were "
            "saved with"
        )


def _check_vocabulary(tokenizer: Any, shape: ModelShape, name: str) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding for.

    Special tokens that no text is written with do not matter: Gemma 3's text models have no
    embedding for the image's.
    """
    used = set(tokenizer.all_special_tokens) - set(tokenizer.extra_special_tokens or ())
    template = str(tokenizer.chat_template or "")
    special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    beyond = {
        token: index
        for token, index in tokenizer.get_vocab().items()
        if index >= shape.vocab and (token not in special or token in used or token in template)
    }
    if beyond:
        token = min(beyond, key=lambda token: beyond[token])
        raise InputError(
            f"model '{name}': its tokenizer has {len(tokenizer)} tokens and the model embeddings "
            f"for {shape.vocab}: token {token!r} is number {beyond[token]}; give the tokenizer "
            "that the model was trained with, or resize the embeddings"
        )


def label_logits(model: nn.Module, batch: LabelledBatch) -> Tensor:
    """Return the logits only at the positions that predict a label, (labels, vocab).

    The order is that of ``batch.labels[:, 1:][batch.labels[:, 1:] != -100]``. Batches are padded
    on the right, where causal attention never looks, so no mask is needed.

    Args:
        model: a causal language model of Transformers, with or without PEFT around it.
        batch: token ids and labels, (rows, length), labels -100 where nothing is predicted.
    """
    causal = causal_model(model)
    with mixed_precision(causal):
        hidden = causal.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        wanted = batch.labels[:, 1:] != -100
        return head_logits(causal, hidden[:, :-1][wanted])


def causal_model(model: nn.Module) -> Any:
    """Return the model that PEFT was put around, or the model itself."""
    wrapped: Any = model
    return wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped


def head_logits(causal: Any, hidden: Tensor) -> Tensor:
    """Apply the LM head, with the divisor and the soft cap of the models that have one."""
    logits: Tensor = causal.get_output_embeddings()(hidden)
    family = family_of(causal.config.model_type)
    if family.logit_divisor_key is not None:
        logits = logits / getattr(causal.config, family.logit_divisor_key)
    cap = getattr(causal.config, family.logit_cap_key, None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def fingerprint_of(model: nn.Module) -> str:
    """Return 64 hex digits that tell models apart: SHA-256 over configuration and weights.

    Of each tensor its name, dtype, shape and up to 4096 evenly spaced values are read, so that
    it takes milliseconds also for large models; an edit that misses all samples goes unseen.
    """
    digest = hashlib.sha256()
    digest.update(repr(shape_of(model)).encode())
    for name, value in sorted(model.state_dict().items()):
        flat = value.detach().reshape(-1)
        step = max(1, -(-flat.numel() // FINGERPRINT_SAMPLES))
        sample = flat[::step].contiguous().cpu().view(torch.uint8)
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()
