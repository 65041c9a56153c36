"""FedProx and SCAFFOLD on quadratics, whose answers are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from airtune.training.local_terms import LocalTerms

NAME = "w"


def local_steps(
    start: float,
    curvature: float,
    target: float,
    *,
    steps: int,
    rate: float = 0.1,
    mu: float = 0.0,
    correction: float | None = None,
) -> tuple[float, float | None]:
    """Return w after SGD on a/2 (w - t)^2 with the terms, and the new control variate."""
    w = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    given = None if correction is None else {NAME: torch.tensor([correction], dtype=torch.float64)}
    terms = LocalTerms({NAME: w}, mu, given)
    optimizer = torch.optim.SGD([w], lr=rate)
    for _ in range(steps):
        loss = 0.5 * curvature * (w - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        terms.before_clipping()
        terms.after_clipping()
        optimizer.step()
    control = terms.control(steps)
    return float(w.detach()), None if control is None else float(control[NAME])


def test_fedprox_ends_at_the_minimum_of_the_loss_with_its_term() -> None:
    """argmin a/2 (w - t)^2 + mu/2 (w - w0)^2 = (a t + mu w0)/(a + mu)."""
    w, _ = local_steps(1.0, 2.0, 5.0, steps=400, mu=3.0)
    assert w == pytest.approx((2.0 * 5.0 + 3.0 * 1.0) / 5.0)


def test_mu_0_and_no_correction_leave_the_steps_as_they_are() -> None:
    w, control = local_steps(1.0, 2.0, 5.0, steps=3)
    assert w == pytest.approx(5.0 - 4.0 * 0.8**3)
    assert control is None


def test_a_correction_of_zero_is_plain_sgd_and_notes_its_mean_gradient() -> None:
    """Option II of the paper: c_k = (w_0 - w_K)/(K lr) where c = c_k = 0."""
    w, control = local_steps(1.0, 2.0, 5.0, steps=3, correction=0.0)
    assert w == local_steps(1.0, 2.0, 5.0, steps=3)[0]
    assert control == pytest.approx((1.0 - w) / (3 * 0.1))


def test_scaffold_reaches_the_joint_optimum_that_averaging_misses() -> None:
    """Two clients with other curvatures: min of the sum is (a1 t1 + a2 t2)/(a1 + a2) = 2."""
    clients = [(1.0, -4.0), (3.0, 4.0)]
    averaged = 0.0
    for _ in range(200):
        averaged = sum(local_steps(averaged, a, t, steps=10)[0] for a, t in clients) / 2
    w, c, own = 0.0, 0.0, [0.0, 0.0]
    for _ in range(200):
        ends = []
        for k, (a, t) in enumerate(clients):
            end, control = local_steps(w, a, t, steps=10, correction=c - own[k])
            assert control is not None
            assert control == pytest.approx(own[k] - c + (w - end) / (10 * 0.1))
            ends.append((end, control))
        w = sum(end for end, _ in ends) / 2
        c += sum(control - own[k] for k, (_, control) in enumerate(ends)) / 2
        own = [control for _, control in ends]
    assert w == pytest.approx(2.0, abs=1e-9)
    assert abs(averaged - 2.0) > 0.3
