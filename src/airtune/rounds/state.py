"""The state between two rounds, and its form in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from airtune.adapters.names import Adapter
from airtune.errors import InputError
from airtune.merging.server import ServerMoments
from airtune.planning.cohorts import DrawMemory
from airtune.planning.fairness import Contributed
from airtune.record import Checkpoint
from airtune.rounds.cell import Cell
from airtune.rounds.control import Controls
from airtune.rounds.flight import Flight, flight_payload, restored_flight
from airtune.rounds.moments import StoredMoments
from airtune.scenario import Scenario
from airtune.training.client import OptimizerState, Refit


@dataclass(frozen=True)
class State:
    """All that the next round depends on, and so what a checkpoint holds."""

    round: int
    elapsed_s: float
    adapter: Adapter
    optimizer_states: Mapping[int, OptimizerState]
    """By client; on disk where not every client takes part in every round."""
    losses: tuple[float | None, ...] = ()
    """Test loss before training and after each round; None where it was not measured."""
    pruning_losses: tuple[float, ...] = ()
    """Q of each round."""
    speeds: tuple[float | None, ...] = ()
    """FLOP/s that real devices have kept in the rounds so far, a client each; None: not known."""
    missed_bits: tuple[float, ...] = ()
    """What each client lacks, where clients merge all updates into their base: those of the rounds
    since it last took part; () before the first round."""
    queues: tuple[float, ...] = ()
    """What `participation.floor` still owes each client; empty without a floor."""
    contributed: Contributed = field(default_factory=Contributed)
    """What the clients have contributed, where `participation.fairness` looks at it."""
    draws: DrawMemory = field(default_factory=DrawMemory)
    """What the rule that draws cohorts remembers."""
    held: Adapter | None = None
    """The adapter that the last broadcast left at its listeners, where changes of it are sent."""
    held_ranks: tuple[int, ...] = ()
    """How many of its ranks each client has: 0 for one that did not hear the round; () before."""
    server_moments: ServerMoments = field(default_factory=dict)
    """Of `aggregation.server_optimizer`; empty without one."""
    controls: Controls = field(default_factory=Controls)
    """SCAFFOLD's control variates; empty without `training.scaffold`."""
    flight: Flight = field(default_factory=Flight)
    """What is under way, where `schedule.kind` is not `synchronous`."""
    refit: Refit | None = None
    """When the calibration text was last read again, with `pruning.refit_every_rounds`."""

    def is_last(self, scenario: Scenario) -> bool:
        """Whether the run ends here: no round, or no time on the virtual clock, is left."""
        budget_s = scenario.time_budget_s
        over = budget_s is not None and self.round > 0 and self.elapsed_s >= budget_s
        return over or self.round >= scenario.rounds


def packed(state: State) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Flatten the state into arrays and JSON for a checkpoint."""
    arrays = {f"adapter/{name}": value.numpy() for name, value in state.adapter.items()}
    arrays |= {f"held/{name}": value.numpy() for name, value in (state.held or {}).items()}
    stored: dict[str, Any] = {}
    if isinstance(state.optimizer_states, StoredMoments):
        stored["moments"] = {str(k): n for k, n in state.optimizer_states.written.items()}
        stored["draws"] = asdict(state.draws)
    else:
        for client, moments in state.optimizer_states.items():
            arrays |= {f"optimizer/{client}/{key}": value.numpy() for key, value in moments.items()}
    for prefix, adapter in _adapters_beside(state).items():
        arrays |= {f"{prefix}/{name}": value.numpy() for name, value in adapter.items()}
    return arrays, {
        "elapsed_s": state.elapsed_s,
        "losses": list(state.losses),
        "pruning_losses": list(state.pruning_losses),
        "speeds": list(state.speeds),
        "missed_bits": list(state.missed_bits),
        "queues": list(state.queues),
        "contributed": asdict(state.contributed),
        "held_ranks": list(state.held_ranks),
        "flight": flight_payload(state.flight),
        **stored,
    }


def _adapters_beside(state: State) -> dict[str, Adapter]:
    """Return what has the shapes of an adapter, beside the adapter itself, by its prefix."""
    found = {f"server/{moment}": values for moment, values in state.server_moments.items()}
    found["control/server"] = state.controls.server
    found |= {f"control/{k}": values for k, values in state.controls.clients.items()}
    if state.refit is not None:
        found[f"refit/{state.refit.round}"] = state.refit.adapter
    found |= {f"began/{merges}": adapter for merges, adapter in state.flight.adapters.items()}
    return found


def restored(checkpoint: Checkpoint | None, cell: Cell) -> State | None:
    """Return the state that `packed` flattened; None where there is no checkpoint."""
    if checkpoint is None:
        return None
    adapter: Adapter = {}
    held: Adapter = {}
    moments: dict[int, OptimizerState] = {}
    beside: dict[str, dict[str, Adapter]] = {}
    for key, array in checkpoint.tensors.items():
        kind, _, rest = key.partition("/")
        value = torch.from_numpy(array.copy())
        if kind in ("adapter", "held"):
            (adapter if kind == "adapter" else held)[rest] = value
            continue
        owner, _, entry = rest.partition("/")
        if kind == "optimizer":
            moments.setdefault(int(owner), {})[entry] = value
        else:
            beside.setdefault(kind, {}).setdefault(owner, {})[entry] = value
    controls = beside.get("control", {})
    payload = checkpoint.payload
    lacks = not {"losses", "pruning_losses", "speeds"} <= payload.keys()
    # Once it was not known which clients had the stacked updates.
    if lacks or payload.get("stacked_bits") is not None:
        raise InputError(
            f"the checkpoint of round {checkpoint.round} is an earlier version's: it cannot be "
            "resumed; begin anew with --replace or another --out"
        )
    stored = no_moments(cell)
    if isinstance(stored, StoredMoments):
        stored = replace(stored, written={int(k): n for k, n in payload["moments"].items()})
    draws = payload.get("draws", {})
    so_far = payload.get("contributed", {})
    return State(
        checkpoint.round,
        payload["elapsed_s"],
        adapter,
        stored if isinstance(stored, StoredMoments) else moments,
        tuple(payload["losses"]),
        tuple(payload["pruning_losses"]),
        tuple(payload["speeds"]),
        tuple(payload.get("missed_bits", ())),
        tuple(payload.get("queues", ())),
        Contributed(tuple(so_far.get("total", ())), tuple(so_far.get("rounds", ()))),
        DrawMemory(draws.get("next", 0), tuple(draws.get("mean_rate_bps", ()))),
        held or None,
        tuple(payload.get("held_ranks", ())),
        beside.get("server", {}),
        Controls(controls.pop("server", {}), {int(k): own for k, own in controls.items()}),
        restored_flight(payload.get("flight", {}), beside.get("began", {})),
        next((Refit(int(r), of) for r, of in beside.get("refit", {}).items()), None),
    )


def no_moments(cell: Cell) -> Mapping[int, OptimizerState]:
    """Return the optimiser moments before the first round: none, and where they will be kept."""
    if not cell.scenario.participation.draws:
        return {}
    return StoredMoments(cell.folder, {})
