"""Merging rules: unequal updates of several clients become the next global adapter.

One function a rule, all with the same shape: the server's adapter and the contributions in,
the new adapter out. Values are float32, accumulated in float64, so that the order in which
clients answer cannot be seen in the result beyond rounding, and is fixed to client order.
What each is and where it is from: `airtune.merging`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from airtune.adapters.names import Adapter, leading, padded, rank_of
from airtune.merging.averages import fedit, fedmp, fedspallm, ffa_lora, heterofl, hetlora
from airtune.merging.contributions import Contribution, fault_of, normalised
from airtune.merging.products import flexlora, flora
from airtune.merging.rules import MERGING

Rule = Callable[[Adapter, Sequence[Contribution]], Adapter]

_FUNCTIONS: dict[str, Rule] = {
    "fedit": fedit,
    "hetlora": hetlora,
    "flora": flora,
    "flexlora": flexlora,
    "ffa-lora": ffa_lora,
    "heterofl": heterofl,
    "fedmp": fedmp,
    "fedspallm": fedspallm,
}

RULES: dict[str, tuple[Rule, str, str]] = {
    name: (_FUNCTIONS[name], entry.description, entry.source) for name, entry in MERGING.items()
}
"""Merging rules by name: function, what it does, where it is from."""

__all__ = [
    "RULES",
    "Adapter",
    "Contribution",
    "Rule",
    "fault_of",
    "fedit",
    "fedmp",
    "fedspallm",
    "ffa_lora",
    "flexlora",
    "flora",
    "heterofl",
    "hetlora",
    "leading",
    "normalised",
    "padded",
    "rank_of",
]
