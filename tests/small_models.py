"""Random models of a few thousand parameters, one of every family, built without a download."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

VOCAB = 61
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GATED = {**_COMMON, "intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 6}


def configs() -> dict[str, PretrainedConfig]:
    """One configuration a family, and variants: multi-head, multi-query, biases, OPT-350m."""
    gpt2 = {
        "vocab_size": VOCAB,
        "n_embd": 16,
        "n_layer": 3,
        "n_head": 4,
        "n_inner": 24,
        "n_positions": 64,
        "initializer_range": 0.25,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }
    return {
        "llama": LlamaConfig(**_GATED),
        "llama-multi-head": LlamaConfig(**{**_GATED, "num_key_value_heads": 4}),
        "llama-multi-query": LlamaConfig(**{**_GATED, "num_key_value_heads": 1}),
        "llama-biases": LlamaConfig(
            **_GATED, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
        ),
        "mistral": MistralConfig(**_GATED),
        "qwen2": Qwen2Config(
            **_GATED, use_sliding_window=True, sliding_window=4, max_window_layers=1
        ),
        "qwen3": Qwen3Config(**_GATED),
        # No positions in the second layer, a window in the third.
        "smollm3": SmolLM3Config(
            **{key: value for key, value in _GATED.items() if key != "head_dim"},
            no_rope_layers=[1, 0, 1],
            use_sliding_window=True,
            sliding_window=4,
            layer_types=["full_attention", "full_attention", "sliding_attention"],
        ),
        "granite": GraniteConfig(
            **_GATED,
            embedding_multiplier=3.0,
            residual_multiplier=0.4,
            attention_multiplier=0.3,
            logits_scaling=2.5,
        ),
        "olmo2": Olmo2Config(**_GATED),
        "olmo2-multi-head": Olmo2Config(
            **{**_GATED, "num_key_value_heads": 4}, tie_word_embeddings=True
        ),
        "gemma": GemmaConfig(**_GATED),
        "gemma2": Gemma2Config(**_GATED, sliding_window=4, query_pre_attn_scalar=6),
        "gemma3": Gemma3TextConfig(
            **_GATED,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        "phi3": Phi3Config(**{k: v for k, v in _GATED.items() if k != "head_dim"}),
        "gpt2": GPT2Config(**gpt2),
        "opt": OPTConfig(**_COMMON, ffn_dim=24, word_embed_proj_dim=16, dropout=0.0),
        "opt-350m": OPTConfig(
            **_COMMON, ffn_dim=24, word_embed_proj_dim=8, do_layer_norm_before=False, dropout=0.0
        ),
        "gpt_neox": GPTNeoXConfig(**_COMMON, intermediate_size=24),
        "gpt_neox-serial": GPTNeoXConfig(
            **_COMMON, intermediate_size=24, use_parallel_residual=False
        ),
    }


NAMES = tuple(configs())


def small_model(name: str, *, seed: int = 0, attention: str | None = None) -> nn.Module:
    """Build a model with random weights and biases, frozen."""
    config = configs()[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        options = {} if attention is None else {"attn_implementation": attention}
        model = Auto.from_config(config, **options)
        for key, value in model.named_parameters():
            if key.endswith("bias"):  # Transformers starts them at zero, where faults hide
                nn.init.normal_(value, std=0.3)
            elif "norm" in key or ".ln_" in key:  # and these at one, or at zero (Gemma)
                value.data += 0.3 * torch.randn_like(value)
    model.requires_grad_(False)
    return model.eval()


@dataclass(frozen=True)
class TextBatch:
    """Token ids padded on the right, with labels on the later half of each row."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


def text_batch(rows: int = 4, length: int = 12, *, seed: int = 0, padded: bool = True) -> TextBatch:
    """Draw random token ids; each row one token shorter than the one before, if padded."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (rows, length), generator=rng)
    mask = torch.ones_like(ids)
    if padded:
        for row in range(rows):
            mask[row, length - row % (length // 2) :] = 0
    ids = ids * mask
    labels = torch.where(mask.bool(), ids, -100)
    labels[:, : length // 2] = -100
    return TextBatch(ids, mask, labels)
