"""Write docs/scenario.md: every key of a scenario, from the models that check it.

python docs/scenario_keys.py          # `make docs` calls it; a test compares the page
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from airtune.scenario import Scenario

PAGE = Path(__file__).with_name("scenario.md")
UNITS = {
    "_dbm_hz": "dBm/Hz",
    "_dbm": "dBm",
    "_db": "dB",
    "_hz": "Hz",
    "_m": "m",
    "_bytes": "byte",
    "_efficiency": "bit/s/Hz",
    "_tokens": "token",
    "_examples": "example",
    "_steps": "step",
    "_bits": "bit",
    "_s": "s",
    "_j": "J",
    "_w": "W",
    "_bits_per_value": "bit",
}
HEAD = """# Every key of a scenario

A scenario is a TOML file. `airtune scenarios show demo` prints a complete one, and `--set
section.key=value` changes one key. The tables below are generated from the models that check a
scenario (`docs/scenario_keys.py`). A key without a default must be given, and an unknown key is an
error. *Not set* is a key that may be left out; the text then says what is used. A range is written
with `[` and `]` where the bound is allowed, with `(` and `)` where it is not.
"""


def page() -> str:
    """Return the page: one table a section, in the order of the models."""
    tables = [HEAD, _table("Top of the file", "", Scenario)]
    for name, field in Scenario.model_fields.items():
        if section := _section(field.annotation):
            title = f"`[[{name}]]`" if name == "devices" else f"`[{name}]`"
            tables.append(_table(title, f"{name}.", section))
    return "\n".join(tables)


def keys() -> list[str]:
    """Return every key with its section, e.g. `cell.radius_m`."""
    found = []
    for name, field in Scenario.model_fields.items():
        section = _section(field.annotation)
        found += [f"{name}.{key}" for key in section.model_fields] if section else [name]
    return found


def limits(field: FieldInfo) -> tuple[float | None, bool, float | None, bool]:
    """Return (low, low is allowed, high, high is allowed) of a number; None where unbounded."""
    low: tuple[float, bool] | None = None
    high: tuple[float, bool] | None = None
    for check in _metadata(field):
        if isinstance(check, Ge | Gt):
            bound = (float(getattr(check, "ge", getattr(check, "gt", 0))), isinstance(check, Ge))
            low = max(low or bound, bound, key=lambda one: (one[0], not one[1]))
        elif isinstance(check, Le | Lt):
            bound = (float(getattr(check, "le", getattr(check, "lt", 0))), isinstance(check, Le))
            high = min(high or bound, bound, key=lambda one: (one[0], one[1]))
        elif isinstance(check, AfterValidator):  # made by scenario.bounds.between
            held = inspect.getclosurevars(check.func).nonlocals
            bound = (float(held["low"]), True)
            low = max(low or bound, bound, key=lambda one: (one[0], not one[1]))
            bound = (float(held["high"]), True)
            high = min(high or bound, bound, key=lambda one: (one[0], one[1]))
    return (*(low or (None, False)), *(high or (None, False)))


def _table(title: str, prefix: str, section: type[BaseModel]) -> str:
    described = _docstrings(section)
    lines = [f"## {title}", "", inspect.getdoc(section) or "", ""]
    lines += ["| key | unit | default | allowed | meaning |", "| --- | --- | --- | --- | --- |"]
    for name, field in section.model_fields.items():
        if _section(field.annotation):
            continue
        cells = (
            f"`{prefix}{name}`",
            "" if _is_yes_or_no(field) else _unit(name),
            _default(field),
            _allowed(field),
            described.get(name, ""),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _unit(name: str) -> str:
    return next((unit for end, unit in UNITS.items() if f"_{name}".endswith(end)), "")


def _is_yes_or_no(field: Any) -> bool:
    return bool in (field.annotation, *get_args(field.annotation))


def _section(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a table of the file, or of an array of tables."""
    inner = [annotation, *get_args(annotation)]
    return next((a for a in inner if inspect.isclass(a) and issubclass(a, BaseModel)), None)


def _metadata(field: FieldInfo) -> list[Any]:
    """Return a field's checks, also those inside `Annotated[...] | None`."""
    checks = list(field.metadata)
    for part in _parts(field.annotation):
        checks += _unpacked(part)[1]
    flat = []
    for check in checks:
        flat += list(check.metadata) if isinstance(check, FieldInfo) else [check]
    return flat


def _parts(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return [part for part in get_args(annotation) if part is not NoneType]
    return [annotation]


def _unpacked(annotation: Any) -> tuple[Any, list[Any]]:
    if get_origin(annotation) is Annotated:
        kind, *checks = get_args(annotation)
        return kind, checks
    return annotation, []


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.default
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value:g}`"


def _allowed(field: FieldInfo) -> str:
    pattern = next((c.pattern for c in _metadata(field) if getattr(c, "pattern", None)), None)
    if pattern:
        return f"text that matches `{pattern}`"
    kinds = [_kind(_unpacked(part)[0]) for part in _parts(field.annotation)]
    low, low_in, high, high_in = limits(field)
    if low is None and high is None:
        return " or ".join(kinds)
    begin = f"{'[' if low_in else '('}{'−∞' if low is None else _number(low)}"
    end = f"{'∞' if high is None else _number(high)}{']' if high_in else ')'}"
    return f"{' or '.join(kinds)} in {begin}, {end}"


def _number(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else str(int(value))


def _kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f'`"{v}"`' if isinstance(v, str) else f"`{v}`" for v in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list of: {_kind(_unpacked(get_args(kind)[0])[0])}"
    return {
        str: "text", bool: "`true`, `false`", int: "whole number", float: "number"
    }[kind]  # fmt: skip


def _docstrings(section: type[BaseModel]) -> dict[str, str]:
    """Return each field's own text: the string that follows it in the source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr):
            assert isinstance(before.target, ast.Name)
            found[before.target.id] = " ".join(ast.literal_eval(after.value).split())
    return found


if __name__ == "__main__":
    PAGE.write_text(page())
