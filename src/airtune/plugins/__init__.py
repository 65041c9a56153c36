"""Parts by name, one registry a kind, and the loading of plugins that add to them."""

from airtune.plugins.loading import load_entry_points, load_plugins, provenance
from airtune.plugins.registry import Registry, called, explained, is_built_in, loaded

__all__ = [
    "Registry",
    "called",
    "explained",
    "is_built_in",
    "load_entry_points",
    "load_plugins",
    "loaded",
    "provenance",
]
