"""The methods of the core experiment: what each changes in the shared scenario, nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from airtune.models.devices import profile_of
from airtune.scenario import Scenario


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        settings: overrides of the scenario.
        kind: `joint` (ours); `baseline`, whose best sets the target loss; `rival`, a baseline with
            the joint plans' few bits; `ablation`.
        unequal_ranks: slower devices get a lower rank.
        rounds_factor: rounds, as a multiple of the scenario's: plans whose rounds are short are
            followed for longer, to be seen at the times and losses of the others. Baselines, which
            set the target, all have the scenario's rounds.
        tuned_as: another method whose learning rate and rank it takes; None: its own search, as
            whatever is followed for longer has: a rate that is best for six rounds swings later.
    """

    settings: tuple[str, ...]
    kind: str = "baseline"
    unequal_ranks: bool = False
    rounds_factor: float = 1.0
    tuned_as: str | None = None


def _method(
    planning: str,
    rule: str = "fedit",
    *more: str,
    kind: str = "baseline",
    unequal_ranks: bool = False,
    rounds_factor: float = 1.0,
    tuned_as: str | None = None,
) -> Method:
    settings = (f"planning.method={planning}", f"aggregation.rule={rule}", *more)
    return Method(settings, kind, unequal_ranks, rounds_factor, tuned_as)


_PLAIN_CUT = "pruning.refit=false"
_MEASURED = ("pruning.cost=measured", "planning.kappa=1.2")
"""κ: of benchmarks/pruning_quality.py, where half of the blocks cost one client 1.1 e(0.5)."""
_UNDONE = "planning.kappa=1.0"
"""Work that is not done is progress that is not made."""
_OR_OUT = ("participation.rule=deadline", f"participation.left_out_cost={1.0 / 1.2:.4f}")
"""A plan that prunes may also leave out, at the price that the rivals pay: κ e = 1."""
_FEW_BITS = "aggregation.uplink_change_bits=4"


def _less_work(
    participation: str,
    *more: str,
    kind: str = "baseline",
    rounds_factor: float = 1.0,
    tuned_as: str | None = "fedit",
) -> Method:
    """Return a method that leaves the model whole and asks slow clients for less work."""
    settings = (f"participation.rule={participation}", _UNDONE, *more)
    return _method(
        "bandwidth-only",
        "fedit",
        *settings,
        kind=kind,
        rounds_factor=rounds_factor,
        tuned_as=tuned_as,
    )


METHODS: dict[str, Method] = {
    "exact": _method("exact", "fedit", *_MEASURED, kind="joint"),
    "bcd": _method("bcd", "fedit", *_MEASURED, kind="joint", tuned_as="exact"),
    "exact-or-out": _method(
        "exact", "fedit", *_MEASURED, *_OR_OUT, kind="joint", rounds_factor=2.0
    ),
    "exact-4-bit": _method("exact", "fedit", *_MEASURED, _FEW_BITS, kind="joint", tuned_as="exact"),
    "exact-flexlora": _method(
        "exact", "flexlora", *_MEASURED, kind="joint", unequal_ranks=True, tuned_as="flexlora"
    ),
    "exact-combined": _method(
        "exact",
        "flexlora",
        *_MEASURED,
        _FEW_BITS,
        kind="joint",
        unequal_ranks=True,
        rounds_factor=2.0,
    ),
    "exact-combined-or-out": _method(
        "exact",
        "flexlora",
        *_MEASURED,
        *_OR_OUT,
        _FEW_BITS,
        kind="joint",
        unequal_ranks=True,
        rounds_factor=3.0,
    ),
    "fedit": _method("none"),
    "bandwidth-only": _method("bandwidth-only", tuned_as="fedit"),
    "bandwidth-only-4-bit": _method(
        "bandwidth-only", "fedit", _FEW_BITS, kind="rival", tuned_as="fedit"
    ),
    "pruning-only": _method("pruning-only", "fedit", *_MEASURED, tuned_as="exact"),
    "uniform": _method("uniform", "fedit", *_MEASURED, tuned_as="exact"),
    "hetlora": _method("none", "hetlora", unequal_ranks=True),
    "flora": _method("none", "flora", unequal_ranks=True),
    "flexlora": _method("none", "flexlora", unequal_ranks=True),
    "flexlora-4-bit": _method(
        "bandwidth-only",
        "flexlora",
        _FEW_BITS,
        kind="rival",
        unequal_ranks=True,
        tuned_as="flexlora",
    ),
    "ffa-lora": _method("none", "ffa-lora"),
    "heterofl": _method("pruning-only", "heterofl", _PLAIN_CUT),
    "fedmp": _method("pruning-only", "fedmp", _PLAIN_CUT, tuned_as="heterofl"),
    "fedspallm": _method("pruning-only", "fedspallm", _PLAIN_CUT, tuned_as="heterofl"),
    "partial": _less_work("partial"),
    "partial-fednova": _less_work("partial-fednova"),
    "deadline": _less_work("deadline"),
    "deadline-4-bit": _less_work(
        "deadline", _FEW_BITS, kind="rival", rounds_factor=2.0, tuned_as=None
    ),
    "in-turn": _less_work("in-turn"),
    "exact-without-refit": _method(
        "exact", "fedit", *_MEASURED, _PLAIN_CUT, kind="ablation", tuned_as="exact"
    ),
    "exact-linear-cost": _method("exact", kind="ablation", tuned_as="exact"),
    "exact-fitted-kappa": _method(
        "exact",
        "fedit",
        "pruning.cost=measured",
        "planning.fit_kappa=true",
        kind="ablation",
        tuned_as="exact",
    ),
    "exact-guessed-kappa": _method(
        "exact", "fedit", "pruning.cost=measured", kind="ablation", tuned_as="exact"
    ),
}

RANK_SHARES = ((0.5, 1.0), (0.1, 0.5), (0.0, 0.25))
"""From this share of the fastest device's speed on, a device gets this share of the rank."""


def rank_settings(scenario: Scenario, rank: int) -> list[str]:
    """Give slower devices lower ranks, as HetLoRA, FLoRA and FlexLoRA are made for."""
    speeds = [profile_of(device).effective_flops for device in scenario.devices]
    settings = []
    for index, speed in enumerate(speeds):
        share = next(share for least, share in RANK_SHARES if speed >= least * max(speeds))
        settings.append(f"devices.{index}.lora_rank={max(1, round(share * rank))}")
    return settings
