"""Merging rules: unequal updates of several clients become the next global adapter."""

from airtune.merging.rules import (
    MERGING,
    MergingRule,
    check_deployable,
    merging_rule,
    rule_of,
)

__all__ = ["MERGING", "MergingRule", "check_deployable", "merging_rule", "rule_of"]
