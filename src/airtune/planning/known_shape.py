"""A model's sizes before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from airtune.errors import InputError
from airtune.models.shapes import check_context
from airtune.models.workload import SHAPES, ModelShape
from airtune.scenario import Scenario


def shape_of_model(scenario: Scenario) -> ModelShape:
    """Return the model's sizes without loading it: a built-in model, or a folder's config.json.

    Raises:
        InputError: the model is neither, or cannot read texts of task.max_tokens.
    """
    name = scenario.model.id
    if name in SHAPES:
        return SHAPES[name]
    config = Path(name) / "config.json"
    try:
        values = json.loads(config.read_text(encoding="utf-8-sig"))
        if not isinstance(values, dict):
            raise ValueError("no object")
    except (OSError, ValueError, RecursionError):
        raise InputError(
            f"model.id = '{name}': planning without loading the model needs a built-in model "
            f"({', '.join(SHAPES)}) or a folder with a readable config.json"
        ) from None
    shape = ModelShape.of_config(values)
    check_context(values, scenario.task.max_tokens, name=name)
    return shape
