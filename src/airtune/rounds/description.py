"""What run.json says of the cell, the clients and the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from airtune.models.devices import compute_s
from airtune.models.workload import adapter_size, full_sizes
from airtune.planning.costs import described
from airtune.planning.inputs import modes_of
from airtune.record import ClientSite, RunDescription
from airtune.rounds.cell import Cell
from airtune.training.worker import Evaluation


def description_of(cell: Cell, untrained: Evaluation, may_be_cut: Sequence[bool]) -> RunDescription:
    """Gather what run.json says of the cell, the clients and the start.

    Args:
        cell: the run's.
        untrained: what the model achieves before the first round.
        may_be_cut: for each client whether it may be pruned: then its calibration is billed.
    """
    scenario, federation, profiles, placement = (
        cell.scenario,
        cell.federation,
        cell.profiles,
        cell.placement,
    )
    clients = tuple(
        ClientSite(
            name=name,
            profile=profile.name,
            x_m=float(placement.positions_m[k, 0]),
            y_m=float(placement.positions_m[k, 1]),
            distance_m=float(placement.distance_m[k]),
            is_los=bool(placement.is_los[k]),
            path_loss_db=float(placement.path_loss_db[k]),
            shadowing_db=float(placement.shadowing_db[k]),
            effective_flops=profile.effective_flops,
            memory_bytes=profile.memory_bytes,
            examples=federation.clients[k].examples,
            labels=federation.clients[k].labels,
        )
        for k, (name, profile) in enumerate(zip(scenario.client_names, profiles, strict=True))
    )
    setup_flops = [
        client.calibration_flops if may else 0.0
        for client, may in zip(federation.clients, may_be_cut, strict=True)
    ]
    return RunDescription(
        clients=clients,
        setup_s=max(compute_s(f, p) for f, p in zip(setup_flops, profiles, strict=True)),
        setup_flops=sum(setup_flops),
        knob_costs=""
        if cell.knob_costs is None
        else described(cell.knob_costs, scenario.planning.costs),
        initial_eval_loss=untrained.loss,
        initial_metrics=untrained.metrics,
        model_fingerprint=federation.model_fingerprint,
        text_fingerprint=federation.text_fingerprint,
        model_parameters=federation.model_parameters,
        vocabulary=federation.shape.vocab,
        adapter_values=adapter_size(
            federation.shape,
            full_sizes(federation.shape),
            replace(modes_of(scenario)[0], rank=scenario.training.lora_rank),
        ),
    )
