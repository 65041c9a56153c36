"""The sizes of a causal language model that its cost follows from; nothing of it needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from airtune.errors import InputError
from airtune.models.families import Family, check_dense, family_of


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
    """Key/value groups, each with the query heads that read it: the units of attention."""
    head_dim: int
    vocab: int
    head_inputs: int
    """Width of what the LM head reads: `hidden`, but for OPT models that project down."""
    tied: bool
    """The LM head is the embedding matrix."""
    parallel: bool = False
    """Attention and MLP of a block read the same input (GPT-NeoX)."""
    keys_of_group: int = field(default=1, repr=False)  # fingerprints read the others
    """Key/value heads of a group: more than one where heads cannot be told apart (OLMo 2)."""

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read the sizes from a model's configuration (config.json as a dict).

        Raises:
            InputError: an architecture outside the table, or a size is missing.
        """
        check_dense(config)
        model_type = str(config.get("model_type"))
        family = family_of(model_type)
        sizes: dict[str, Any] = {name: config.get(key) for name, key in family.keys.items()}
        if sizes["kv_heads"] is None:
            sizes["kv_heads"] = sizes["query_heads"]
        if sizes["mlp_channels"] is None and family.channels_over_hidden and sizes["hidden"]:
            sizes["mlp_channels"] = family.channels_over_hidden * sizes["hidden"]
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
        keys_of_group = sizes["kv_heads"] if family.norm_over_heads else 1
        return cls(
            family=model_type,
            hidden=sizes["hidden"],
            blocks=sizes["blocks"],
            mlp_channels=sizes["mlp_channels"],
            query_heads=sizes["query_heads"],
            kv_heads=sizes["kv_heads"] // keys_of_group,
            head_dim=config.get("head_dim") or sizes["hidden"] // sizes["query_heads"],
            vocab=sizes["vocab"],
            head_inputs=config.get("word_embed_proj_dim") or sizes["hidden"],
            tied=family.tied_by_default if tied is None else bool(tied),
            parallel=bool(family.parallel_key and config.get(family.parallel_key, True)),
            keys_of_group=keys_of_group,
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
        query = self.query_heads // self.kv_heads * self.head_dim
        key = self.keys_of_group * self.head_dim
        return {
            "hidden": Axis("hidden", (self.hidden,)),
            "mlp": Axis("mlp", (1,)),
            "mlp+mlp": Axis("mlp", (1, 1)),
            "query": Axis("group", (query,)),
            "key": Axis("group", (key,)),
            "query+key+value": Axis("group", (query, key, key)),
            "query/key/value": Axis("group", (query + 2 * key,)),
        }[layout]


def check_context(config: Mapping[str, Any], max_tokens: int, *, name: str) -> None:
    """Refuse texts longer than the model can read, where its configuration says how long.

    Learned positions end there with an error. Rotary ones go on without a word, at angles that
    the model was not trained on.

    Raises:
        InputError: they are longer, or the architecture is outside the table.
    """
    longest = context_of(config)
    if longest is not None and max_tokens > longest:
        key = family_of(str(config.get("model_type"))).context_key
        raise InputError(
            f"task.max_tokens = {max_tokens}: the model '{name}' reads at most {longest} tokens "
            f"({key} of its configuration)"
        )


def context_of(config: Mapping[str, Any]) -> int | None:
    """Return the length of the longest text that a model reads, tokens; None: it is not said."""
    longest = config.get(family_of(str(config.get("model_type"))).context_key)
    return longest if isinstance(longest, int) else None


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
    "gemma-3-270m": ModelShape(
        family="gemma3_text",
        hidden=640,
        blocks=18,
        mlp_channels=2048,
        query_heads=4,
        kv_heads=1,
        head_dim=256,
        vocab=262144,
        head_inputs=640,
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
