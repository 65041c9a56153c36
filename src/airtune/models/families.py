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

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
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


@dataclass(frozen=True)
class Axis:
    """One side of a weight matrix: `widths` entries a unit, in consecutive runs over units."""

    unit: str
    """`hidden`, `mlp` or `group`."""
    widths: tuple[int, ...]

    def size(self, units: int) -> int:
        """Return the side's length with that many units."""
        return sum(self.widths) * units


@dataclass(frozen=True)
class Matrix:
    """One linear layer of a block."""

    name: str
    inputs: Axis
    outputs: Axis


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a causal language model that its cost follows from."""

    family: str
    hidden: int
    blocks: int
    mlp_channels: int
    query_heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    head_inputs: int
    """Width of what the LM head reads: `hidden`, but for OPT models that project down."""
    tied: bool
    """The LM head is the embedding matrix."""
    parallel: bool = False
    """Attention and MLP of a block read the same input (GPT-NeoX)."""

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read the sizes from a model's configuration (config.json as a dict).

        Raises:
            InputError: an architecture outside the table, or a size is missing.
        """
        model_type = str(config.get("model_type"))
        family = family_of(model_type)
        sizes: dict[str, Any] = {name: config.get(key) for name, key in family.keys.items()}
        if sizes["kv_heads"] is None:
            sizes["kv_heads"] = sizes["query_heads"]
        if sizes["mlp_channels"] is None and model_type == "gpt2":
            sizes["mlp_channels"] = 4 * config["n_embd"]
        sizes["vocab"] = config.get("vocab_size")
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                key = family.keys.get(name, "vocab_size")
                raise InputError(f"model configuration: {key} = {value!r}: must be 1 or more")
        if sizes["query_heads"] % sizes["kv_heads"]:
            raise InputError(
                f"model configuration: {sizes['query_heads']} query heads are not a multiple of "
                f"{sizes['kv_heads']} key/value heads"
            )
        tied = config.get("tie_word_embeddings")
        return cls(
            family=model_type,
            hidden=sizes["hidden"],
            blocks=sizes["blocks"],
            mlp_channels=sizes["mlp_channels"],
            query_heads=sizes["query_heads"],
            kv_heads=sizes["kv_heads"],
            head_dim=config.get("head_dim") or sizes["hidden"] // sizes["query_heads"],
            vocab=sizes["vocab"],
            head_inputs=config.get("word_embed_proj_dim") or sizes["hidden"],
            tied=family.tied_by_default if tied is None else bool(tied),
            parallel=bool(family.parallel_key and config.get(family.parallel_key, True)),
        )

    @property
    def table(self) -> Family:
        """The family's entry in the table of what can be cut."""
        return family_of(self.family)

    @cached_property
    def matrices(self) -> tuple[Matrix, ...]:
        """The linear layers of one block, in the order in which they are computed."""
        return tuple(
            Matrix(p.name, self._axis(p.inputs), self._axis(p.outputs))
            for p in self.table.projections
        )

    @property
    def channel_multiple(self) -> int:
        """Kept MLP channels are multiples of this: hardware gets even sizes, rates stay fine.

        The largest power of two up to 64 that still leaves 64 steps.
        """
        multiple = 1
        while multiple < 64 and self.mlp_channels // (2 * multiple) >= 64:
            multiple *= 2
        return multiple

    @cached_property
    def unit_parameters(self) -> dict[str, int]:
        """Weight-matrix entries of one MLP channel (`mlp`) and of one key/value group (`group`)."""
        count = {"mlp": 0, "group": 0}
        for matrix in self.matrices:
            for side in (matrix.inputs, matrix.outputs):
                if side.unit != "hidden":
                    count[side.unit] += self.hidden * side.size(1)
        return count

    @property
    def block_parameters(self) -> int:
        """Weight-matrix entries of all decoder blocks: what pruning rates refer to."""
        unit = self.unit_parameters
        return self.blocks * (unit["mlp"] * self.mlp_channels + unit["group"] * self.kv_heads)

    def _axis(self, layout: str) -> Axis:
        query, key = self.query_heads // self.kv_heads * self.head_dim, self.head_dim
        return {
            "hidden": Axis("hidden", (self.hidden,)),
            "mlp": Axis("mlp", (1,)),
            "mlp+mlp": Axis("mlp", (1, 1)),
            "query": Axis("group", (query,)),
            "key": Axis("group", (key,)),
            "query+key+value": Axis("group", (query, key, key)),
            "query/key/value": Axis("group", (query + 2 * key,)),
        }[layout]


SHAPES = {
    "smollm2-135m-instruct": ModelShape(
        family="llama",
        hidden=576,
        blocks=30,
        mlp_channels=1536,
        query_heads=9,
        kv_heads=3,
        head_dim=64,
        vocab=49152,
        head_inputs=576,
        tied=True,
    ),
    "tiny": ModelShape(
        family="llama",
        hidden=16,
        blocks=3,
        mlp_channels=32,
        query_heads=4,
        kv_heads=2,
        head_dim=4,
        vocab=259,
        head_inputs=16,
        tied=True,
    ),
}
"""The built-in models, so that planning needs no model in memory."""
