"""A study: one scenario, several methods, several seeds, and a table that can be published.

`schema` and `loading` say what the user writes, `methods` holds the shipped sets, `jobs` turns a
study into runs, `running` does them, `results` reads them back, `statistics` and `comparison` say
what they show, `tables`, `figures` and `page` write it down. No run is computed here: each is a
process, or a task of Ray, that `airtune.cli.studying` hands in.
"""

from __future__ import annotations

from airtune.study.loading import builtin_studies, load_study, study_from, study_of
from airtune.study.schema import Axis, Budget, Method, Search, Study

__all__ = [
    "Axis",
    "Budget",
    "Method",
    "Search",
    "Study",
    "builtin_studies",
    "load_study",
    "study_from",
    "study_of",
]
