"""What a worker tells of the model and the clients, and what it measures."""

from __future__ import annotations

from dataclasses import dataclass

from airtune.models.devices import DeviceProfile
from airtune.models.workload import KeptSizes, ModelShape


@dataclass(frozen=True)
class ClientData:
    """What the server knows of one client's data before the first round."""

    examples: int
    labels: dict[str, int]
    """How many examples of each label."""
    pruning_cost: tuple[tuple[float, float], ...] | None
    """Measured learning cost of pruning, or None for the linear one."""
    calibration_flops: float = 0.0
    """What its device computes before it can be cut; 0 where others do it, or before the run."""
    rereading_flops: float = 0.0
    """What it computes whenever the calibration text is read again; 0 where it never is."""
    most_pruned: KeptSizes | None = None
    """Its submodel at pruning.max_pruning, where it has been calibrated: the line that planning
    draws through its FLOPs and bits then ends at its own cut."""


MeasuredCosts = tuple[tuple[tuple[float, float], ...], KeptSizes | None]
"""What pruning costs a client at each rate, and its submodel at pruning.max_pruning."""


@dataclass(frozen=True)
class Federation:
    """What planning and the record know of the model and the clients."""

    shape: ModelShape
    model_fingerprint: str
    model_parameters: int
    clients: tuple[ClientData, ...]
    profiles: tuple[DeviceProfile | None, ...] = ()
    """What real devices measured of themselves, a client each; None: as the scenario says."""
    text_fingerprint: str = ""
    """Names the training and test examples that the server reads; on real devices each has its own
    beside these."""


@dataclass(frozen=True)
class Evaluation:
    """What the full model with the adapter achieves."""

    loss: float
    """Per answer token, on the server's test set."""
    metrics: dict[str, float]
    """`accuracy` or `exact_match` (strict) and `exact_match_flexible`; `mean_client_loss` and
    `worst_client_loss` where clients hold data back."""
    client_losses: tuple[float, ...] = ()
    """Of the clients' own held-out text, in the order asked for; () where not measured."""
