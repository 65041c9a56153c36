"""Submodels: calibrate once, then choose, cut, and carry adapters there and back.

statistics = calibrate(model, shape, batches)
structure = choose(statistics, shape, pruning=0.5)
submodel = cut(model, shape, structure, statistics)
adapter = gather_adapter(full_adapter, structure, shape)
...train...
values, held = scatter_adapter(adapter, structure, shape)
"""

from airtune.pruning.cache import cached_calibration
from airtune.pruning.calibration import calibrate
from airtune.pruning.choice import choose, cost_curve
from airtune.pruning.statistics import Statistics, text_hash
from airtune.pruning.store import load_statistics
from airtune.pruning.submodel import cut

__all__ = [
    "Statistics",
    "cached_calibration",
    "calibrate",
    "choose",
    "cost_curve",
    "cut",
    "load_statistics",
    "text_hash",
]
