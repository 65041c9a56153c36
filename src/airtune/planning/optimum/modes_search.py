"""The optimum over modes, pruning, bandwidth and absence, with a lower bound that proves it.

    minimise J = T·N(Q) over the deadline T, a choice per client, and bands b with Σ b <= B

Branch and bound. A node is an interval of deadlines with the choices left to each client; the
bound of pricing.py refutes it, or drops choices from it. What it cannot refute is split: where the
bound holds at T0 the part of the interval that the chord covers is done and the rest remains; where
it does not, prices leave a client undecided between two choices, and its choices are parted. With
``listen_s`` a node also holds a range of possible ends of the broadcast, which is halved first.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from airtune.errors import InputError
from airtune.planning.gaps import relative_excess
from airtune.planning.optimum.batch import batch_of
from airtune.planning.optimum.choices import Choices, choices_of
from airtune.planning.optimum.nodes import Node, Threshold, evaluate
from airtune.planning.optimum.polish import plan_at, polished
from airtune.planning.optimum.pricing import limits_at
from airtune.planning.problem import Plan, PlanningProblem

# How much of the tolerance the refuted intervals use; the rest is for the plan itself.
_SHARE = 0.9
# First intervals of T: wider ones are split anyway, narrower ones cost evaluations. At 1.03 and at
# 1.5 there are 17 % and 6 % more (benchmarks/constants.py, 20 random problems).
_FIRST_RATIO = 1.15
# In a wider interval T is split, in a narrower one a client's choices. At 1.002 half as many nodes
# more are evaluated; at 1.2 there is no difference.
_WIDE = 1.02
# Choices evaluated at once: some arrays of half a megabyte each.
_MAX_ROWS = 60_000
# The search ends after this many rows, whatever it has proved by then; the true gap is reported.
MAX_WORK = 2_000_000
# Relative: a bound equal to the least loss must not be missed by rounding.
_NO_LOSS = 1e-9


def exact_over_modes(
    problem: PlanningProblem, *, tolerance: float = 1e-6, max_work: int = MAX_WORK
) -> Plan:
    """Return the optimal plan and its certificate; ``gap`` says what is left unproved.

    Raises:
        InputError: no plan keeps every energy budget, or every plan has κ·Q of 1 or more.
    """
    began = perf_counter()
    search = _searched(_Search(problem, choices_of(problem), tolerance, max_work))
    best = search.best
    if best is None:
        raise _nothing_fits()
    lower = min(search.lower(), best.objective_s)
    gap = relative_excess(best.objective_s, lower)
    return replace(
        best,
        method="exact",
        lower_bound_s=lower,
        gap=gap,
        deadlines=search.evaluated,
        solve_s=perf_counter() - began,
    )


def better_over_modes(
    problem: PlanningProblem, known: Plan | None, *, tolerance: float = 1e-6
) -> tuple[Plan | None, float]:
    """Return a plan of a smaller objective than a known one's, or None, and a lower bound.

    The bound is on the smaller one of ``known.objective_s`` and this problem's optimum. What is no
    better than the known plan is refuted as such and not solved, which takes far less time.
    """
    search = _Search(problem, choices_of(problem), tolerance, MAX_WORK, known=known)
    search = _searched(search)
    incumbent = search.incumbent
    if incumbent is None:
        raise _nothing_fits()
    return search.best, min(search.lower(), incumbent.objective_s)


def _nothing_fits() -> InputError:
    return InputError(
        "clients: no plan in which someone takes part keeps every energy_budget_j, kappa·Q "
        "below 1 and max_pruning_loss; allowed: larger ones, or more bandwidth_hz"
    )


def _searched(search: _Search) -> _Search:
    # Choices that cannot be met have infinite values on their way through.
    with np.errstate(all="ignore"):
        _scan(search)
        _close(search)
    return search


@dataclass
class _Search:
    """What the search has found so far; ``known`` is a plan that it is to improve on."""

    problem: PlanningProblem
    choices: Choices
    tolerance: float
    max_work: int
    best: Plan | None = None
    known: Plan | None = None
    refuted_s: float = np.inf
    heap: list[tuple[float, int, Node]] = field(default_factory=list)
    evaluated: int = 0
    work: int = 0
    order: count = field(default_factory=count)

    def __post_init__(self) -> None:
        self.levels = np.zeros(1)
        if self.problem.listen_s is not None:
            present = ~self.choices.absent
            self.levels = np.unique(self.choices.listen_s[present])

    @property
    def limit(self) -> float | None:
        """Q_max, no less than what the least loss is up to rounding."""
        bound = self.problem.max_pruning_loss
        return None if bound is None else bound * (1.0 + _NO_LOSS)

    @property
    def incumbent(self) -> Plan | None:
        """The best plan of this problem, or, without one, the known plan."""
        return self.known if self.best is None else self.best

    @property
    def target(self) -> float:
        """What no plan is to beat."""
        incumbent = self.incumbent
        if incumbent is None:
            return np.inf
        return incumbent.objective_s * (1.0 - _SHARE * self.tolerance)

    @property
    def kappa(self) -> float:
        """κ, at least so much that a quotient by it is a number."""
        return max(self.problem.kappa, 1e-9)

    def threshold(self) -> Threshold:
        """The loss at which a deadline is no better than the target."""
        if self.limit is not None:
            return Threshold(self.limit, 0.0)
        return Threshold(1.0 / self.kappa, -1.0 / (self.kappa * self.target))

    def enough(self) -> float:
        """How precise a price has to be."""
        factor = 1.0 if self.incumbent is None else self.incumbent.rounds_factor
        return 0.03 * self.tolerance / max(self.kappa * factor, 1.0)

    def objective(self, deadline: float, loss: float) -> float:
        """T·N(Q)."""
        rest = 1.0 - self.kappa * loss
        return deadline / rest if rest > 0 else np.inf

    def halves(self, node: Node) -> tuple[float, float]:
        """Lower bounds on the objective before and after T0.

        Over a chord by its ends; or, because Q* falls as T grows, with the loss of the later end.
        """
        if self.limit is not None:
            return node.first_s, node.first_s
        times = (node.first_s, node.centre_s, node.last_s)
        ends = [self.objective(*pair) for pair in zip(times, node.bounds, strict=True)]
        whole = max(min(ends[0], ends[2]), self.objective(times[0], node.bounds[2]))
        left = max(min(ends[:2]), self.objective(times[0], node.bounds[1]), whole, node.floor_s)
        right = max(min(ends[1:]), self.objective(times[1], node.bounds[2]), whole, node.floor_s)
        return left, right

    def lower(self) -> float:
        """A lower bound on the objective over everything."""
        open_nodes = min((entry[0] for entry in self.heap), default=np.inf)
        return min(open_nodes, self.refuted_s)

    def run(self, nodes: list[Node]) -> None:
        """Evaluate nodes, take over a better plan, and put aside what is not refuted."""
        begin = 0
        while begin < len(nodes):
            end, rows = begin, 0
            while end < len(nodes) and (end == begin or rows + len(nodes[end].choices) < _MAX_ROWS):
                rows += len(nodes[end].choices)
                end += 1
            self._run(nodes[begin:end])
            self.work += rows
            begin = end

    def _run(self, nodes: list[Node]) -> None:
        target = self.target
        open_nodes = evaluate(
            nodes,
            self.choices,
            self.levels,
            self.problem.bandwidth_hz,
            self.threshold(),
            self.limit is not None,
            self.enough(),
        )
        self.evaluated += len(nodes)
        self.refuted_s = min(self.refuted_s, target)
        for node in sorted(open_nodes, key=self._promise):
            self._try(node)
        for node in open_nodes:
            node.candidate = None
            bound = node.floor_s = max(node.floor_s, min(self.halves(node)))
            if bound < self.target:
                heapq.heappush(self.heap, (bound, next(self.order), node))
            else:
                self.refuted_s = min(self.refuted_s, bound)

    def _ends(self, node: Node) -> tuple[float, float]:
        """Return a candidate's own deadline, and when its slowest listener has the broadcast."""
        if node.candidate is None:
            return np.inf, 0.0
        heard = float(self.choices.listen_s[node.candidate[1]].max())
        return node.centre_s - float(self.levels[node.low_level]) + heard, heard

    def _promise(self, node: Node) -> float:
        if node.candidate is None:
            return np.inf
        deadline = self._ends(node)[0]
        if self.limit is not None:
            return deadline if node.candidate[0] <= self.limit else np.inf
        rest = 1.0 - self.problem.kappa * node.candidate[0]
        return deadline / rest if rest > 0 else np.inf

    def _try(self, node: Node) -> None:
        if not self._promise(node) < self.target:
            return
        assert node.candidate is not None
        _, chosen, band = node.candidate
        deadline, heard = self._ends(node)
        made = plan_at(self.problem, self.choices, chosen, band, deadline - heard)
        self.take(made)
        if made is not None:
            self.take(polished(self.problem, self.choices, chosen, deadline, heard, self.tolerance))

    def take(self, made: Plan | None) -> None:
        """Take over a plan that is better than the best one."""
        if made is None or not np.isfinite(made.objective_s):
            return
        if self.limit is not None and made.pruning_loss > self.limit:
            return
        if self.incumbent is None or made.objective_s < self.incumbent.objective_s:
            self.best = made


def _scan(search: _Search) -> None:
    """Cover the deadlines from the earliest on, until later ones are worse for their length."""
    everyone = np.arange(len(search.choices.owner))
    earliest = _earliest(search)
    least = float(search.problem.weight @ search.problem.least_losses())
    floor = 1.0 if search.limit is not None else 1.0 - search.problem.kappa * least
    edge, size = earliest, max(1, min(12, _MAX_ROWS // max(len(everyone), 1)))
    y = np.log(search.choices.snr_hz * search.problem.clients / search.problem.bandwidth_hz)
    price = -np.log(search.problem.bandwidth_hz * search.problem.clients)
    for _ in range(400):
        cells = edge * _FIRST_RATIO ** np.arange(size + 1)
        nodes = [
            Node(low, min(high, 1e300), everyone, price, y, 0, len(search.levels) - 1)
            for low, high in pairwise(cells.tolist())
            if low / floor < search.target
        ]
        if not nodes:
            return
        search.run(nodes)
        edge = float(cells[-1])


def _earliest(search: _Search) -> float:
    """Return a deadline before which not even the least bands of all clients fit."""
    choices = search.choices
    everyone = np.arange(len(choices.owner))
    broadcast = search.levels[:1]
    batch = batch_of(choices, [everyone], broadcast, search.problem.bandwidth_hz)
    others = ~choices.absent

    def fits(deadline: float) -> bool:
        limits = limits_at(batch, np.array([deadline]))
        band = np.where(limits.sends, choices.snr_hz * np.exp(-limits.least), 0.0)
        band = np.where(limits.alive, band, np.inf)
        # Someone has to take part.
        if not (band[others] < np.inf).any():
            return False
        return float(batch.least(band).sum()) <= search.problem.bandwidth_hz * (1.0 + 1e-12)

    high = 1e-3 + float((choices.ready + choices.compute)[others].max(initial=0.0))
    for _ in range(400):
        if fits(high):
            break
        high *= 4.0
    low = high
    for _ in range(200):
        if not fits(low) or low < 1e-12:
            break
        low, high = low / 4.0, low
    while high > low * 1.01:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if fits(middle) else (middle, high)
    return low


def _close(search: _Search) -> None:
    """Split what is open, the least bound first, until nothing is below the target."""
    while search.heap and search.work < search.max_work:
        children: list[Node] = []
        rows = 0
        while search.heap and rows < _MAX_ROWS:
            bound, _, node = heapq.heappop(search.heap)
            if bound >= search.target:
                search.refuted_s = min(search.refuted_s, bound)
                continue
            parts = _split(search, node)
            children += parts
            rows += sum(len(part.choices) for part in parts)
            if search.incumbent is None or len(children) >= 64:
                break
        if children:
            search.run(children)


def _part(node: Node, **changes: object) -> Node:
    return replace(node, undecided=None, candidate=None, **changes)  # type: ignore[arg-type]


def _split(search: _Search, node: Node) -> list[Node]:
    if node.low_level < node.high_level:
        return _split_levels(search, node)
    if search.limit is not None:
        last = min(node.last_s, search.target)
        if last < node.first_s:
            return []
        if node.last_s > last or node.undecided is None:
            if node.last_s > last:
                return [_part(node, last_s=last)]
            middle = float(np.sqrt(node.first_s * last))
            return [_part(node, last_s=middle), _part(node, first_s=middle)]
        return _split_choices(node)
    left, right = search.halves(node)
    threshold = search.threshold()
    times = np.array([node.first_s, node.centre_s, node.last_s])
    spare = np.array(node.bounds) - threshold.loss(times)
    narrow = node.last_s <= node.first_s * _WIDE
    if spare[1] < 0 and node.undecided is not None and narrow:
        return _split_choices(node)
    search.refuted_s = min(search.refuted_s, search.target)
    parts = []
    # Around T0 the bound holds as far as its chord to either end stays above the threshold; before
    # T0, also where the threshold is below the loss at T0.
    edges = [node.centre_s, node.centre_s]
    if spare[1] >= 0:
        for side, end in enumerate((0, 2)):
            share = spare[1] / (spare[1] - spare[end]) if spare[end] < 0 else 1.0
            edges[side] = float(times[1] + share * (times[end] - times[1]))
        reach = search.target * (1.0 - search.kappa * node.bounds[1])
        edges[0] = min(edges[0], max(reach, node.first_s))
    if left < search.target and edges[0] > node.first_s:
        parts.append(_part(node, last_s=edges[0], floor_s=left))
    if right < search.target and edges[1] < node.last_s:
        parts.append(_part(node, first_s=edges[1], floor_s=right))
    return parts


def _split_choices(node: Node) -> list[Node]:
    split: NDArray = np.asarray(node.undecided)
    parts = []
    for side in (1, 0):
        stays = split != 1 - side
        parts.append(_part(node, choices=node.choices[stays], y=node.y[stays]))
    return parts


def _split_levels(search: _Search, node: Node) -> list[Node]:
    middle = (node.low_level + node.high_level) // 2
    parts = []
    for low, high in ((node.low_level, middle), (middle + 1, node.high_level)):
        listen = search.choices.listen_s[node.choices]
        stays = search.choices.absent[node.choices] | (listen <= search.levels[high])
        owners = search.choices.owner[node.choices]
        if len(np.unique(owners[stays])) == len(np.unique(owners)):
            parts.append(
                _part(node, choices=node.choices[stays], y=node.y[stays], low_level=low,
                      high_level=high)
            )  # fmt: skip
    return parts
