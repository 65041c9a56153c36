"""What a client's own steps add to the gradient of its loss: FedProx's term, SCAFFOLD's correction.

FedProx (Li et al., MLSys 2020) adds mu/2 |w - w_t|^2 to the client's loss, so mu (w - w_t) to its
gradient, w_t being the adapter that the round began with. It belongs to the loss and is clipped
with it.

SCAFFOLD (Karimireddy et al., ICML 2020) steps along g - c_k + c. The client's new control variate
is the mean of its gradients g: what the paper's option II, c_k - c + (w_t - w)/(K lr), comes to
under SGD, and what it stands for under AdamW, whose steps are not gradients. g is the clipped
gradient; the correction is added after clipping.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from airtune.adapters.names import Adapter
from airtune.scenario import TrainingSection


def local_optimizer(
    section: TrainingSection, named: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """Return the optimiser of a client's steps over the trained adapter entries."""
    kind = torch.optim.SGD if section.optimizer == "sgd" else torch.optim.AdamW
    return kind(named.values(), lr=section.learning_rate, weight_decay=section.weight_decay)


class LocalTerms:
    """Changes the gradients of one client's steps in place; with nothing asked, nothing.

    Args:
        named: the trained adapter entries by name, as the round begins.
        mu: of FedProx; 0 for none.
        correction: c - c_k by name; None without control variates.
    """

    def __init__(
        self, named: Mapping[str, nn.Parameter], mu: float = 0.0, correction: Adapter | None = None
    ) -> None:
        self._named = named
        self._mu = mu
        self._start = {n: p.detach().clone() for n, p in named.items()} if mu > 0 else {}
        self._correction: Adapter | None = None
        self._sums: Adapter = {}
        if correction is not None:
            self._correction = {n: correction[n].to(p) for n, p in named.items()}
            self._sums = {n: torch.zeros_like(p) for n, p in named.items()}

    def before_clipping(self) -> None:
        """Add mu (w - w_t) to the gradients."""
        for name, start in self._start.items():
            parameter = self._named[name]
            assert parameter.grad is not None
            parameter.grad.add_(parameter.detach() - start, alpha=self._mu)

    def after_clipping(self) -> None:
        """Note the gradients, and add the correction to them."""
        for name, correction in (self._correction or {}).items():
            gradient = self._named[name].grad
            assert gradient is not None
            self._sums[name].add_(gradient)
            gradient.add_(correction)

    def control(self, steps: int) -> Adapter | None:
        """Return the new control variate of what is trained; None without a correction.

        Args:
            steps: how many gradients were noted.
        """
        if self._correction is None:
            return None
        return {name: (total / steps).cpu() for name, total in self._sums.items()}


def with_untrained(control: Adapter | None, adapter: Adapter) -> Adapter | None:
    """Return a control variate with zeros for the adapter's entries that were not trained."""
    if control is None:
        return None
    return {name: control.get(name, torch.zeros_like(v)) for name, v in adapter.items()}
