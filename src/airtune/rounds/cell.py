"""A cell that is open for rounds: what stays the same over them, and the three hooks.

A hook is a plain function. The built-in ones are the defaults of `open_cell`:

- `draw(cell, round)` returns the round's `ChannelState`, of all clients of the scenario;
- `decide(cell, situation)` returns a `Decision`: a plan, and an assignment for each client;
- `merge(cell, adapter, contributions)` returns the next global adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from airtune import channel
from airtune.adapters.names import Adapter
from airtune.assignment import Assignment
from airtune.channel import ChannelState, Placement
from airtune.engines import Engine
from airtune.engines.local import LocalEngine
from airtune.merging.coverage import covered
from airtune.merging.functions import Contribution, normalised
from airtune.merging.functions import merge as merged_by
from airtune.merging.rules import normalizes_steps, rule_of
from airtune.merging.unbiased import unbiased
from airtune.models.devices import DeviceProfile, profile_of
from airtune.planning import METHODS, Plan
from airtune.planning.assigning import assignments_of
from airtune.planning.availability import Availability
from airtune.planning.cohorts import availability_of
from airtune.planning.costs import KnobCosts, costs_of
from airtune.planning.inputs import Situation
from airtune.planning.round_plan import plan_round
from airtune.planning.scheduling import check_parts
from airtune.randomness import generator
from airtune.record.temporary import TemporaryFolder
from airtune.rounds.observer import Observer
from airtune.scenario import Scenario
from airtune.training.worker import Federation


@dataclass(frozen=True, eq=False)
class Decision:
    """What was decided for a round, in the order of its cohort.

    Attributes:
        plan: its predicted times, pruning loss and certificate.
        assignments: one a client; None for one that sits the round out.
    """

    plan: Plan
    assignments: tuple[Assignment | None, ...]


@dataclass(frozen=True, eq=False)
class Cell:
    """What stays the same over the rounds of a run. Also a context manager that closes it."""

    scenario: Scenario
    federation: Federation
    """Model and clients, as the engine describes them."""
    profiles: tuple[DeviceProfile, ...]
    """One a client: as named in the scenario, or as a real device measured itself."""
    placement: Placement
    engine: Engine
    draw: DrawHook
    decide: DecideHook
    merge: MergeHook
    knob_costs: KnobCosts | None = None
    """What the knobs cost, read once; None without `planning.knobs`."""
    observer: Observer = field(default_factory=Observer)
    availability: Availability | None = None
    """When clients are there; None: always."""
    temporary: TemporaryFolder | None = None
    given_folder: Path | None = None
    owns_engine: bool = False
    """The engine was made for this cell, and is closed with it."""

    @property
    def folder(self) -> Path:
        """Where the clients' optimiser moments lie, if they are on disk."""
        if self.given_folder is not None:
            return self.given_folder
        assert self.temporary is not None
        return self.temporary.path

    def close(self) -> None:
        """Let go of the engine, where it was made for this cell, and of a temporary folder."""
        if self.temporary is not None:
            self.temporary.remove()
        if self.owns_engine:
            self.engine.close()

    def __enter__(self) -> Cell:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


DrawHook = Callable[[Cell, int], ChannelState]
DecideHook = Callable[[Cell, Situation], Decision]
MergeHook = Callable[[Cell, Adapter, Sequence[Contribution]], Adapter]


def draw(cell: Cell, round: int) -> ChannelState:
    """Draw the round's fading, or its window of the traces, for all clients."""
    scenario = cell.scenario
    return channel.draw(
        scenario.cell,
        scenario.client_devices,
        cell.placement,
        generator(scenario.seed, "fading", round=round),
        round=round,
    )


def decide(cell: Cell, situation: Situation) -> Decision:
    """Plan by the scenario's method, or every knob that it turns."""
    made = plan_round(cell.scenario, situation, cell.knob_costs)
    assignments = assignments_of(made.plan, made.modes, made.link, situation.cohort)
    return Decision(made.plan, assignments)


def merge(cell: Cell, adapter: Adapter, contributions: Sequence[Contribution]) -> Adapter:
    """Merge by the scenario's rule."""
    scenario = cell.scenario
    if normalizes_steps(scenario):
        contributions = normalised(adapter, contributions)
    merged = merged_by(scenario.aggregation.rule, adapter, contributions)
    if scenario.aggregation.coverage_power:
        merged = covered(adapter, merged, contributions, scenario.aggregation.coverage_power)
    if scenario.participation.weights == "inclusion":
        return unbiased(adapter, merged, sum(one.weight for one in contributions))
    return merged


def open_cell(
    scenario: Scenario,
    *,
    engine: Engine | Callable[[Scenario], Engine] = LocalEngine,
    draw: DrawHook = draw,
    decide: DecideHook = decide,
    merge: MergeHook = merge,
    observer: Observer | None = None,
    folder: Path | None = None,
) -> Cell:
    """Load model and data and place the clients: everything that comes before a first round.

        with at.open_cell(scenario) as cell:
            state = at.begin(cell)
            state, record = at.step(cell, state)

    Args:
        scenario: what to run.
        engine: who does the clients' work: an engine, which stays open, or what makes one,
            which is closed with the cell. Default: this process.
        draw: draws a round's channel.
        decide: plans a round and assigns the clients' work.
        merge: merges a round's updates.
        observer: told of progress.
        folder: where the clients' optimiser moments go if not every client takes part in every
            round; None: a temporary folder, which goes with the cell.

    Raises:
        InputError: the scenario cannot be run.
    """
    read, draws = read_files(scenario), scenario.participation.draws
    used = engine(scenario) if callable(engine) else engine
    try:
        federation = used.federation()
    except BaseException:
        if callable(engine):
            used.close()
        raise
    return Cell(
        scenario=scenario,
        federation=federation,
        profiles=_measured(federation, read.profiles),
        placement=read.placement,
        engine=used,
        draw=draw,
        decide=decide,
        merge=merge,
        knob_costs=read.knob_costs,
        observer=observer or Observer(),
        availability=read.availability,
        temporary=TemporaryFolder() if draws and folder is None else None,
        given_folder=folder,
        owns_engine=callable(engine),
    )


@dataclass(frozen=True, eq=False)
class Files:
    """What a run reads besides model and data: `Cell` has each of them."""

    profiles: tuple[DeviceProfile, ...]
    placement: Placement
    knob_costs: KnobCosts | None
    availability: Availability | None


def read_files(scenario: Scenario) -> Files:
    """Read device profiles, traces or the channel's table, costs and availability.

    Raises:
        InputError: one cannot be used, or the scenario names a part that is not known.
    """
    rng = generator(scenario.seed, "placement")
    return Files(
        profiles=checked_profiles(scenario),
        placement=channel.place(scenario.cell, scenario.client_devices, rng),
        knob_costs=costs_of(scenario),
        availability=availability_of(scenario),
    )


def profiles_now(cell: Cell) -> tuple[DeviceProfile, ...]:
    """Return each client's profile; a real device may have joined since the cell was opened."""
    if not cell.federation.profiles:  # simulated clients do not change
        return cell.profiles
    return _measured(cell.engine.federation(), cell.profiles)


def _measured(
    federation: Federation, named: tuple[DeviceProfile, ...]
) -> tuple[DeviceProfile, ...]:
    """Return the profiles with what real devices measured of themselves in their place."""
    if not federation.profiles:
        return named
    pairs = zip(federation.profiles, named, strict=True)
    return tuple(_known(own, kind) for own, kind in pairs)


def _known(measured: DeviceProfile | None, named: DeviceProfile) -> DeviceProfile:
    """Return what a device measured of itself, with the powers of its kind, which it does not."""
    if measured is None:
        return named
    return replace(measured, power_w=named.power_w, idle_power_w=named.idle_power_w)


def checked_profiles(scenario: Scenario) -> tuple[DeviceProfile, ...]:
    """Return each client's device profile.

    Raises:
        InputError: the scenario names a method, rule, channel model or profile that is not known,
            or its availability file cannot be used.
    """
    METHODS.find(scenario.planning.method)
    channel.CHANNEL_MODELS.find(channel.model_name(scenario.cell))
    rule_of(scenario)
    check_parts(scenario)
    availability_of(scenario)
    kinds = {device: profile_of(device) for device in scenario.devices}
    return tuple(kinds[device] for device in scenario.client_devices)
