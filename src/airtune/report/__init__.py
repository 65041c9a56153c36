"""What a record shows: one offline HTML page a run, a comparison of runs, console tables.

Everything shown is in the record or a sum, mean or ratio of what is; no model is evaluated
and no plan is made here.
"""

from __future__ import annotations

from airtune.report.comparison import write_comparison
from airtune.report.console import comparison_table, summary_table
from airtune.report.page import write_report
from airtune.report.summary import comparison_rows, loss_of_a_guess

__all__ = [
    "comparison_rows",
    "comparison_table",
    "loss_of_a_guess",
    "summary_table",
    "write_comparison",
    "write_report",
]
