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

Whatever else differs between architectures is a field of `Family` too: no other file knows a
family by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

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
    """Output projections write into the residual stream with no norm between."""
    residual_outputs_key: str | None = None
    """The configuration's switch without which there is a norm between after all."""
    residual_factor_key: str | None = None
    """What the configuration multiplies outputs by before they are added to the stream."""
    logit_divisor_key: str | None = None
    """What the configuration divides logits by."""
    logit_cap_key: str = "final_logit_softcapping"
    """The configuration's cap c of logits z, as c·tanh(z / c)."""
    context_key: str = "max_position_embeddings"
    """Where the configuration has the longest text that the model can read, in tokens."""
    channels_over_hidden: int | None = None
    """MLP channels per entry of the residual stream where the configuration does not say."""
    norm_over_heads: bool = False
    """Queries and keys are normalised over all heads together. A norm over some of them is
    another one, so all heads of a block are one unit: kept, or left out, together."""
    head_counts: Mapping[str, str] = field(default_factory=dict)
    """What the attention module remembers of its size, and must be told after a cut: an
    attribute, and which of `queries`, `groups` and `width` (queries x head_dim) it is."""
    head_counts_in_config: bool = False
    """The attention module reads its head counts from its configuration at every call."""
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
_TIED = replace(_LLAMA, tied_by_default=True)
_GEMMA = replace(_TIED, residual_outputs=False)  # from its second version on

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,  # SmolLM and SmolLM2 are Llama models
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _TIED,
    "granite": replace(
        _LLAMA, residual_factor_key="residual_multiplier", logit_divisor_key="logits_scaling"
    ),
    "olmo2": replace(_LLAMA, residual_outputs=False, norm_over_heads=True),
    "gemma": _TIED,
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
        head_counts={"num_key_value_heads": "groups"},
        head_counts_in_config=True,
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
        context_key="n_positions",
        channels_over_hidden=4,
        head_counts={"num_heads": "queries", "embed_dim": "width", "split_size": "width"},
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
        residual_outputs_key="do_layer_norm_before",
        head_counts={"num_heads": "queries", "embed_dim": "width"},
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


EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Where configurations of Mixture-of-Experts models have the number of experts."""


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


def check_dense(config: Mapping[str, Any]) -> None:
    """Refuse a Mixture-of-Experts model by its configuration; raises `InputError` with the reason.

    A token passes a few of the experts only, chosen anew at every token. FLOPs then do not
    follow from the kept sizes, and an expert that few calibration texts reach has no statistics
    to be cut by.
    """
    model_type = str(config.get("model_type"))
    counts = {key: config[key] for key in EXPERT_KEYS if config.get(key)}
    if counts or "moe" in model_type or model_type == "mixtral":
        said = "".join(f", {key} = {value!r}" for key, value in counts.items())
        raise InputError(
            f"model architecture '{model_type}' is a Mixture-of-Experts{said}: each token passes a "
            "few of the experts only, so neither the work of a cut model nor what each expert "
            f"contributes can be counted; dense architectures are known: {', '.join(FAMILIES)}"
        )
