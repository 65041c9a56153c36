"""What can be cut where, for every model family: one table, and nothing of it needs torch.

A decoder block has two kinds of units that can be left out while the rest stays dense:

- an **MLP channel**: one hidden activation, with its row in the input projections and its
  column in the output projection;
- a **key/value group**: one key/value head with all query heads that read it, with their rows
  in the query, key and value projections and their columns in the output projection.

Both sides of each weight matrix are named by how its entries belong to units:

    hidden     the residual stream: never cut
    mlp        one entry a channel
    mlp+mlp    gate, then up: two consecutive runs of one entry a channel (Phi-3)
    query      head_dim x queries-per-group entries a group
    key        head_dim entries a group (values have the same layout)
    query+key+value   three consecutive runs (Phi-3, GPT-2)
    query/key/value   per head its query, key and value (GPT-NeoX)
"""

from __future__ import annotations

from dataclasses import dataclass

from airtune.errors import InputError


@dataclass(frozen=True)
class Projection:
    """One linear layer of a block, and what the entries of its two sides are."""

    name: str
    """Path of the layer inside a block."""
    inputs: str
    outputs: str


@dataclass(frozen=True)
class Family:
    """How one architecture of Transformers names its parts."""

    blocks: str
    """Path of the list of decoder blocks inside the causal language model."""
    attention: str
    """Path of the attention module inside a block."""
    projections: tuple[Projection, ...]
    keys: dict[str, str]
    """Where the configuration has hidden, blocks, mlp_channels, query_heads and kv_heads."""
    transposed: bool = False
    """Weights are stored inputs x outputs (Conv1D)."""
    residual_outputs: bool = True
    """Output projections write straight into the residual stream, with no norm between."""
    parallel_key: str | None = None
    """The configuration's switch for attention and MLP reading the same input."""
    tied_by_default: bool = False
    """Whether the LM head is the embedding where the configuration does not say."""


_SEPARATE = (
    Projection("self_attn.q_proj", "hidden", "query"),
    Projection("self_attn.k_proj", "hidden", "key"),
    Projection("self_attn.v_proj", "hidden", "key"),
    Projection("self_attn.o_proj", "query", "hidden"),
    Projection("mlp.gate_proj", "hidden", "mlp"),
    Projection("mlp.up_proj", "hidden", "mlp"),
    Projection("mlp.down_proj", "mlp", "hidden"),
)
_KEYS = {
    "hidden": "hidden_size",
    "blocks": "num_hidden_layers",
    "mlp_channels": "intermediate_size",
    "query_heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
}
_LLAMA = Family("model.layers", "self_attn", _SEPARATE, _KEYS)
_GEMMA = Family(
    "model.layers", "self_attn", _SEPARATE, _KEYS, residual_outputs=False, tied_by_default=True
)

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,  # SmolLM and SmolLM2 are Llama models
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": Family(
        "model.layers",
        "self_attn",
        (
            Projection("self_attn.qkv_proj", "hidden", "query+key+value"),
            Projection("self_attn.o_proj", "query", "hidden"),
            Projection("mlp.gate_up_proj", "hidden", "mlp+mlp"),
            Projection("mlp.down_proj", "mlp", "hidden"),
        ),
        _KEYS,
    ),
    "gpt2": Family(
        "transformer.h",
        "attn",
        (
            Projection("attn.c_attn", "hidden", "query+key+value"),
            Projection("attn.c_proj", "query", "hidden"),
            Projection("mlp.c_fc", "hidden", "mlp"),
            Projection("mlp.c_proj", "mlp", "hidden"),
        ),
        {
            "hidden": "n_embd",
            "blocks": "n_layer",
            "mlp_channels": "n_inner",
            "query_heads": "n_head",
            "kv_heads": "n_head",
        },
        transposed=True,
        tied_by_default=True,
    ),
    "opt": Family(
        "model.decoder.layers",
        "self_attn",
        (
            Projection("self_attn.q_proj", "hidden", "query"),
            Projection("self_attn.k_proj", "hidden", "key"),
            Projection("self_attn.v_proj", "hidden", "key"),
            Projection("self_attn.out_proj", "query", "hidden"),
            Projection("fc1", "hidden", "mlp"),
            Projection("fc2", "mlp", "hidden"),
        ),
        {**_KEYS, "mlp_channels": "ffn_dim", "kv_heads": "num_attention_heads"},
        tied_by_default=True,
    ),
    "gpt_neox": Family(
        "gpt_neox.layers",
        "attention",
        (
            Projection("attention.query_key_value", "hidden", "query/key/value"),
            Projection("attention.dense", "query", "hidden"),
            Projection("mlp.dense_h_to_4h", "hidden", "mlp"),
            Projection("mlp.dense_4h_to_h", "mlp", "hidden"),
        ),
        {**_KEYS, "kv_heads": "num_attention_heads"},
        parallel_key="use_parallel_residual",
    ),
}


def family_of(model_type: str) -> Family:
    """Return the table's entry for a configuration's `model_type`.

    Raises:
        InputError: the architecture is not in the table; the message lists what is.
    """
    if model_type not in FAMILIES:
        raise InputError(
            f"model architecture '{model_type}' cannot be cut; known: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]
