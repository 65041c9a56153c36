"""A study: one scenario, several methods, several seeds, and a table that can be published.

`schema` and `loading` say what the user writes, `methods` holds the shipped sets, `jobs` turns a
study into runs and `keys` finds them again, `running` does them, `results` reads them back,
`statistics` and `comparison` say what they show, `tables`, `prints`, `charts` and `page` write it
down. No run is computed here: each is a process, or a task of Ray, with `airtune.rounds.apart`.
"""

from __future__ import annotations

from airtune.study.loading import builtin_studies, load_study, study_from, study_of
from airtune.study.schema import Budget, Search, Study, StudyAxis, StudyMethod

__all__ = [
    "Budget",
    "Search",
    "Study",
    "StudyAxis",
    "StudyMethod",
    "builtin_studies",
    "load_study",
    "study_from",
    "study_of",
]
