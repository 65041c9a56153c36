"""Split the training examples over the clients."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from airtune.errors import InputError
from airtune.scenario import PartitionSection, Scenario

Array = np.ndarray


def partition(
    labels: Sequence[int] | Array,
    clients: int,
    section: PartitionSection,
    rng: np.random.Generator,
    *,
    held_out: int = 0,
    reserved: Mapping[int, Collection[int]] | None = None,
) -> tuple[Array, ...]:
    """Return each client's examples as indices into `labels`, every example in at most one.

    * `iid`: a shuffle, cut into parts whose sizes differ by at most one.
    * `dirichlet`: sizes as for `iid`, and each client has its own mixture of labels
      q_k ~ Dirichlet(α·p), p the labels' shares in the data (Hsu, Qi and Brown 2019,
      "Measuring the effects of non-identical data distribution for federated visual
      classification", arXiv 1909.06335). Its examples are drawn one after another from q_k
      without replacement; a label that has run out is taken out of q_k. The clients draw in
      random order, so that the leftovers do not always fall to the last.
    * `quantity`: a shuffle, cut into parts of sizes n_k = m + (N − K·m)·w_k, rounded so that
      they sum to N, with w ~ Dirichlet(α, …, α) and m the smallest size allowed.

    A small example: six examples labelled 0 0 0 1 1 1, two clients, `dirichlet`. With α = 1000
    both have q ≈ (½, ½), and three examples of about equal labels. With α = 0.01 the first
    client to draw has q ≈ (1, 0) or (0, 1), hence all examples of one label, and the other
    client gets all of the other label.

    Args:
        labels: (N,) the class of each example.
        clients: K.
        section: kind, α and `min_examples`.
        rng: the generator of this partition.
        held_out: examples that each client will put aside for evaluation; they come on top
            of `min_examples`.
        reserved: for `dirichlet`, the clients that alone hold a label. Each gets an equal part of
            it, as far as its size goes, and draws the rest from the labels that all may hold.

    Returns:
        K index arrays, each in random order: the first `held_out` of a client's indices are a
        fair sample of its data.

    Raises:
        InputError: there are fewer than K·(min_examples + held_out) examples, or reserved labels
            leave a client fewer than that.
    """
    values = np.asarray(labels)
    smallest = section.min_examples + held_out
    if len(values) < clients * smallest:
        raise InputError(
            f"{len(values)} training examples are too few for {clients} clients with at least "
            f"{smallest} each: raise task.train_examples or lower partition.min_examples"
        )
    if section.kind == "quantity":
        sizes = _uneven_sizes(len(values), clients, section.alpha, smallest, rng)
    else:
        sizes = np.full(clients, len(values) // clients)
        sizes[rng.permutation(clients)[: len(values) % clients]] += 1
    if section.kind == "dirichlet":
        parts = _by_label(values, sizes, section.alpha, rng, reserved or {})
        if (least := min(map(len, parts))) < smallest:
            raise InputError(
                f"devices.only_labels leaves a client {least} training examples, of at least "
                f"{smallest} that each has: labels that few hold are more than these can take; "
                "let more devices hold them"
            )
        return parts
    cuts = np.cumsum(sizes)[:-1]
    return tuple(np.split(rng.permutation(len(values)), cuts))


def holders_of(scenario: Scenario, names: Mapping[int, str]) -> dict[int, set[int]]:
    """Return the clients that alone hold a label, for the labels of `devices.only_labels`.

    Args:
        scenario: its devices.
        names: of the training examples' labels, by label.

    Raises:
        InputError: no training example has a label of that name.
    """
    labels = {name: label for label, name in names.items()}
    reserved: dict[int, set[int]] = {}
    for client, device in enumerate(scenario.client_devices):
        for name in device.only_labels:
            if name not in labels:
                raise InputError(
                    f"devices.only_labels: no training example has the label '{name}'; there are: "
                    f"{', '.join(sorted(labels))}"
                )
            reserved.setdefault(labels[name], set()).add(client)
    return reserved


def _uneven_sizes(
    examples: int, clients: int, alpha: float, smallest: int, rng: np.random.Generator
) -> Array:
    weights = rng.dirichlet(np.full(clients, alpha))
    ideal = (examples - clients * smallest) * weights
    sizes = np.floor(ideal).astype(int)
    # Largest remainder: the examples lost to rounding go to those who lost most.
    missing = examples - clients * smallest - int(sizes.sum())
    sizes[np.argsort(sizes - ideal, kind="stable")[:missing]] += 1
    return sizes + smallest


def _by_label(
    labels: Array,
    sizes: Array,
    alpha: float,
    rng: np.random.Generator,
    reserved: Mapping[int, Collection[int]],
) -> tuple[Array, ...]:
    classes, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
    pools = [rng.permutation(np.flatnonzero(members == c)) for c in range(len(classes))]
    left = counts.copy()
    shares: list[Array] = [np.empty(0, dtype=int)] * len(sizes)
    # (clients, labels): what a client gets of the labels that few may hold, before it draws.
    own = np.zeros((len(sizes), len(classes)), dtype=int)
    shared = np.ones(len(classes), dtype=bool)
    for label, holders in reserved.items():
        column = int(np.flatnonzero(classes == label)[0])
        shared[column] = False
        own[sorted(holders), column] = counts[column] // len(holders)
    for client in rng.permutation(len(sizes)):
        mixture = np.zeros(len(classes))
        mixture[shared] = rng.dirichlet(alpha * counts[shared] / counts[shared].sum())
        taken = _capped(own[client], int(sizes[client]))
        drawable = np.where(shared, left, 0)
        need = min(int(sizes[client] - taken.sum()), int(drawable.sum()))
        taken += _draw_counts(need, mixture, drawable, rng)
        parts = [pools[c][left[c] - taken[c] : left[c]] for c in range(len(classes))]
        left -= taken
        shares[client] = rng.permutation(np.concatenate(parts))
    return tuple(shares)


def _capped(counts: Array, size: int) -> Array:
    """Return the counts, scaled down where they are more than `size` together."""
    total = int(counts.sum())
    return counts.copy() if total <= size else counts * size // total


def _draw_counts(need: int, mixture: Array, left: Array, rng: np.random.Generator) -> Array:
    """Draw `need` labels from the mixture, at most `left` of each.

    Drawing all at once, cutting off what is not there and drawing the rest again from what
    remains has the same distribution as drawing one by one.
    """
    taken = np.zeros_like(left)
    while need:
        weights = np.where(left > taken, mixture, 0.0)
        if weights.sum() <= 1e-12:  # nothing left of what this client wanted
            weights = (left - taken).astype(float)
        drawn = rng.multinomial(need, weights / weights.sum())
        drawn = np.minimum(drawn, left - taken)
        taken += drawn
        need -= int(drawn.sum())
    return taken
