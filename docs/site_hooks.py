"""What MkDocs lacks for this site: notebooks as pages, and names of files outside docs/."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let the navigation name the notebooks as they are on disk."""
    config.nav = _renamed(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put a Markdown page in the place of each notebook."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            notebook = json.loads(Path(str(file.abs_src_path)).read_text())
            uri = file.src_uri.removesuffix(".ipynb") + ".md"
            files.append(File.generated(config, uri, content=markdown_of(notebook)))
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write links that lead out of docs/ as the names of files; the site does not have them."""
    up = "../" * (page.file.src_uri.count("/") + 1)
    text = re.sub(rf"\[([^\]]+)\]\({re.escape(up)}([^)]+)\)", r"\1 (`\2`)", text)
    return re.sub(r"\.ipynb\)", ".md)", text)


def markdown_of(notebook: dict[str, Any]) -> str:
    """Return a notebook as Markdown: code, then what it printed or drew."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/svg+xml" in data:
                parts.append("".join(data["image/svg+xml"]))
            else:
                shown = "".join(output.get("text", data.get("text/plain", "")))
                parts.append(f"```text\n{shown.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def _renamed(nav: Any) -> Any:
    if isinstance(nav, dict):
        return {title: _renamed(inner) for title, inner in nav.items()}
    if isinstance(nav, list):
        return [_renamed(inner) for inner in nav]
    return re.sub(r"\.ipynb$", ".md", nav)
