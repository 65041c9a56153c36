"""FLOPs, payload bits and memory of fine-tuning a submodel, counted; torch-free.

What is counted is LoRA training on a frozen base: the forward pass, and the backward pass
through activations. Frozen matrices have no weight gradient, and below the first adapter no
gradient flows at all. One multiply-add is two FLOPs; element-wise work is not counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from airtune.assignment import Mode
from airtune.errors import InputError
from airtune.models.shapes import SHAPES, Axis, Matrix, ModelShape

__all__ = [
    "SHAPES",
    "Axis",
    "KeptSizes",
    "Matrix",
    "ModelShape",
    "StepTokens",
    "adapter_size",
    "calibration_flops",
    "check_rate",
    "full_sizes",
    "kept_parameters",
    "largest_step",
    "memory_bytes",
    "payload_bits",
    "realised_pruning",
    "rereading_flops",
    "training_flops",
    "uniform_sizes",
]

ACTIVATION_FACTOR = 1.8
"""What autograd keeps of a block over the inputs and outputs of its linear layers.

Norms, activations and rotations keep their own; from the peak memory of real steps
(SmolLM2-135M, rates 0.4, 0.6 and 0.8: 1.87, 1.71, 1.73; benchmarks/step.py).
"""
BYTES_PER_QUANTIZED_WEIGHT = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
"""In the blocks: a float32 scale an output (not counted) or every 64 weights."""
HEADER_BITS = 1024
"""A message's fixed part: round, client, shapes, checksum."""


@dataclass(frozen=True)
class KeptSizes:
    """How much of each block a submodel keeps; a block with nothing of either is left out."""

    mlp_channels: tuple[int, ...]
    kv_groups: tuple[int, ...]

    def units(self, block: int, unit: str) -> int:
        """Return how many units of a kind a block keeps (`hidden` counts as one unit)."""
        if unit == "hidden":
            return 1
        return (self.mlp_channels if unit == "mlp" else self.kv_groups)[block]


@dataclass(frozen=True)
class StepTokens:
    """The size of one training step: rows padded to a common length, and answer tokens."""

    rows: int
    length: int
    label_tokens: int


def full_sizes(shape: ModelShape) -> KeptSizes:
    """Return the sizes of the uncut model."""
    return KeptSizes((shape.mlp_channels,) * shape.blocks, (shape.kv_heads,) * shape.blocks)


def uniform_sizes(shape: ModelShape, pruning: float) -> KeptSizes:
    """Return the sizes of a submodel cut to the same share everywhere, as nearly as units allow.

    Groups are few, so whole ones are spread evenly over the blocks and the MLP makes up for
    the difference. A stand-in for planning before any text was read.

    Raises:
        InputError: `pruning` is outside [0, 1).
    """
    check_rate(pruning)
    unit, multiple = shape.unit_parameters, shape.channel_multiple
    total_groups = shape.blocks * shape.kv_heads
    kept_groups = max(shape.blocks, round(total_groups * (1 - pruning)))
    groups = _spread(kept_groups, shape.blocks, shape.kv_heads)
    kept = shape.block_parameters * (1 - pruning) - unit["group"] * kept_groups
    steps = shape.mlp_channels // multiple
    chunks = round(kept / (unit["mlp"] * multiple))
    if chunks >= steps * shape.blocks:
        channels = (shape.mlp_channels,) * shape.blocks
    else:
        spread = _spread(max(shape.blocks, chunks), shape.blocks, steps)
        channels = tuple(multiple * count for count in spread)
    return KeptSizes(channels, groups)


def _spread(total: int, bins: int, limit: int) -> tuple[int, ...]:
    # Differences of a rounded ramp: as even as whole numbers can be.
    total = min(total, bins * limit)
    return tuple((i + 1) * total // bins - i * total // bins for i in range(bins))


def check_rate(pruning: float, limit: float = 1.0) -> None:
    """Refuse a pruning rate outside [0, limit], or 1; raises `InputError`."""
    if not (0 <= pruning <= limit and pruning < 1):
        allowed = f"[0, {limit:g}]" if limit < 1 else "[0, 1)"
        raise InputError(f"pruning = {pruning!r}: must be in {allowed}")


def kept_parameters(shape: ModelShape, sizes: KeptSizes) -> int:
    """Return how many weight-matrix entries of the blocks the submodel keeps."""
    unit = shape.unit_parameters
    return unit["mlp"] * sum(sizes.mlp_channels) + unit["group"] * sum(sizes.kv_groups)


def realised_pruning(shape: ModelShape, sizes: KeptSizes) -> float:
    """Return the share of the blocks' weight-matrix entries that the submodel leaves out."""
    return 1 - kept_parameters(shape, sizes) / shape.block_parameters


def largest_step(shape: ModelShape, units: str) -> float:
    """Return the share of the blocks' entries that goes at once, where most goes.

    Args:
        shape: the model.
        units: as `pruning.units`: `mlp`, `attention`, `mixed` or `blocks`.
    """
    unit = shape.unit_parameters
    mlp, attention = unit["mlp"] * shape.channel_multiple, unit["group"]
    steps = {"mlp": mlp, "attention": attention, "mixed": max(mlp, attention)}
    return steps.get(units, shape.block_parameters / shape.blocks) / shape.block_parameters


def training_flops(
    shape: ModelShape,
    sizes: KeptSizes,
    step: StepTokens,
    mode: Mode,
) -> float:
    """Count the FLOPs of one training step with LoRA on every linear layer of the blocks.

    Per layer with n inputs, m outputs and rank r, over T tokens:
    forward 2T(nm + rn + rm); backward 2T(2rm + rn) for the adapter's own gradients, and
    2T(nm + rn) more for the input's, which nothing below the first adapter needs. A frozen A
    saves its 2Trn.
    Attention scores: rows of s tokens, h heads of width d: 4hds² a row forward, twice that
    backward (all s² pairs: what eager attention computes). LM head: at label positions only,
    4 FLOPs an entry.
    """
    fixed, per_rank = _flop_terms(shape, sizes, step, mode.freezes_a)
    return fixed + mode.rank * per_rank


@lru_cache(maxsize=8192)
def _flop_terms(
    shape: ModelShape, sizes: KeptSizes, step: StepTokens, freezes_a: bool
) -> tuple[float, float]:
    """Return a step's FLOPs without the adapter, and what each of its ranks adds."""
    tokens = step.rows * step.length
    per_rank = 0.0
    total = 4.0 * step.label_tokens * shape.head_inputs * shape.vocab
    heads_of_group = shape.query_heads // shape.kv_heads
    matrices = shape.matrices
    reached = False  # whether an adapter lies below
    for block in range(shape.blocks):
        parts: dict[str, list[Matrix]] = {"group": [], "mlp": []}
        for matrix in matrices:
            inner = matrix.inputs.unit if matrix.inputs.unit != "hidden" else matrix.outputs.unit
            parts[inner].append(matrix)
        below = reached
        for unit, layers in parts.items():
            units = sizes.units(block, unit)
            if not units:
                continue
            for matrix in layers:
                n = matrix.inputs.size(units if matrix.inputs.unit == unit else 1)
                m = matrix.outputs.size(units if matrix.outputs.unit == unit else 1)
                reads_hidden = matrix.inputs.unit == "hidden"
                needs_input_gradient = not reads_hidden or (below if shape.parallel else reached)
                reads = 1 if freezes_a else 2
                total += 2.0 * tokens * n * m
                per_rank += 2.0 * tokens * (reads * n + 3 * m)
                if needs_input_gradient:
                    total += 2.0 * tokens * n * m
                    per_rank += 2.0 * tokens * n
            if unit == "group":
                width = units * heads_of_group * shape.head_dim
                total += 12.0 * width * step.rows * step.length**2
            reached = True
    return total, per_rank


def calibration_flops(shape: ModelShape, lengths: Sequence[int], *, sensitivity_rows: int) -> float:
    """Count the FLOPs of calibrating on texts of these lengths.

    T tokens in all, s a text; a sublayer's output projection has n features and d outputs.
    Once through the blocks: 2T a weight, 4hds² a text for attention scores. Second moments:
    2Tn². Order, factors and harms: n³/3 + 2n³/3 (factor, inverse), 8n³/7 + 4n²d/3 (elimination,
    half of what is alive at a time), n³/3 + 2n²d. `sensitivity_rows` of the texts also go forward
    and backward: twice the work of a pass, and 4 FLOPs an entry of the LM head a token. Not
    counted: stand-ins for whole blocks.

    Args:
        shape: the model.
        lengths: tokens of each text.
        sensitivity_rows: how many texts are also differentiated.
    """
    count = max(1, len(lengths))
    differentiated = min(1.0, sensitivity_rows / count)
    total = _pass_flops(shape, lengths) * (1 + 2 * differentiated)
    total += 4.0 * differentiated * sum(lengths) * shape.head_inputs * shape.vocab
    for n in _moment_sizes(shape):
        orders = (4 / 3 + 8 / 7) * n**3 + (4 / 3 + 2) * n**2 * shape.hidden
        total += shape.blocks * (2.0 * sum(lengths) * n**2 + orders)
    return total


def rereading_flops(shape: ModelShape, lengths: Sequence[int]) -> float:
    """Count the FLOPs of reading calibration text again for the refit: as `calibration_flops`.

    Without sensitivity, order and harms, which are kept: once through the blocks, second moments
    and one Cholesky factor a sublayer, n³/3.

    Args:
        shape: the model.
        lengths: tokens of each text.
    """
    total = _pass_flops(shape, lengths)
    for n in _moment_sizes(shape):
        total += shape.blocks * (2.0 * sum(lengths) * n**2 + n**3 / 3)
    return total


def _pass_flops(shape: ModelShape, lengths: Sequence[int]) -> float:
    squares = sum(length**2 for length in lengths)
    attention = shape.blocks * 4.0 * shape.query_heads * shape.head_dim * squares
    return attention + 2.0 * sum(lengths) * shape.block_parameters


def _moment_sizes(shape: ModelShape) -> tuple[int, int]:
    """Return how many features the output projections of an MLP and of an attention have."""
    return shape.mlp_channels, shape.query_heads * shape.head_dim


def adapter_size(shape: ModelShape, sizes: KeptSizes, mode: Mode) -> int:
    """Return how many numbers the submodel's adapter has: rank x (inputs + outputs) a layer.

    Where A is frozen, only the outputs' side (B) is trained and counted.
    """
    return mode.rank * sum(_adapter_sides(shape, sizes, freezes_a=mode.freezes_a))


@lru_cache(maxsize=8192)
def _adapter_sides(shape: ModelShape, sizes: KeptSizes, *, freezes_a: bool) -> tuple[int, ...]:
    """Return the length of each trained factor's vectors: inputs (A) and outputs (B) a layer."""
    found: list[int] = []
    for block in range(shape.blocks):
        for matrix in shape.matrices:
            sides = (matrix.inputs, matrix.outputs)
            lengths = [side.size(sizes.units(block, side.unit)) for side in sides]
            if all(lengths):
                found += lengths[freezes_a:]
    return tuple(found)


def payload_bits(
    shape: ModelShape, sizes: KeptSizes, mode: Mode, *, with_unit_indices: bool = True
) -> float:
    """Count the bits of an uplink message: adapter values, a bitmap of kept units, a header.

    Where the mode has `bits_per_scale`, each rank of A and of B in each layer has a scale; where it
    has control variates, there are twice as many values.
    """
    sides = _adapter_sides(shape, sizes, freezes_a=mode.freezes_a)
    values, scales = mode.rank * sum(sides), mode.rank * len(sides)
    values *= 2 if mode.control_variates else 1
    bits = HEADER_BITS + mode.bits_per_value * values + mode.bits_per_scale * scales
    if with_unit_indices:
        bits += shape.blocks * (shape.mlp_channels + shape.kv_heads)
    return float(bits)


@lru_cache(maxsize=8192)
def _activation_values(shape: ModelShape, sizes: KeptSizes) -> int:
    """Return what a token's inputs and outputs of linear layers and two norms' inputs are."""
    values = 2 * shape.hidden * shape.blocks
    for block, matrix in itertools.product(range(shape.blocks), shape.matrices):
        sides = (matrix.inputs, matrix.outputs)
        lengths = [side.size(sizes.units(block, side.unit)) for side in sides]
        values += sum(lengths) if all(lengths) else 0
    return values


def memory_bytes(
    shape: ModelShape,
    sizes: KeptSizes,
    step: StepTokens,
    mode: Mode,
    *,
    bytes_per_weight: int = 4,
    quantize: str | None = None,
) -> float:
    """Estimate the peak memory of a training step.

    Weights of the submodel and the embeddings; the adapter in float32 with its gradient and
    AdamW's two moments (16 bytes a value; 24 with a control variate and a sum of gradients); what
    the backward pass needs of each block: `ACTIVATION_FACTOR` times the inputs and outputs of its
    linear layers and two norms' inputs; logits in float32 with softmax and gradient (12 bytes).
    Not counted: the runtime itself, and one layer's weight unpacked, where weights are quantized.
    """
    embeddings = shape.vocab * shape.head_inputs * (1 if shape.tied else 2)
    in_blocks = bytes_per_weight if quantize is None else BYTES_PER_QUANTIZED_WEIGHT[quantize]
    weights = in_blocks * kept_parameters(shape, sizes) + bytes_per_weight * embeddings
    a_value = 24 if mode.control_variates else 16
    adapter = a_value * mode.rank * sum(_adapter_sides(shape, sizes, freezes_a=False))
    activations = _activation_values(shape, sizes)
    tokens = step.rows * step.length
    return float(
        weights
        + adapter
        + ACTIVATION_FACTOR * bytes_per_weight * tokens * activations
        + 12 * step.label_tokens * shape.vocab
    )
