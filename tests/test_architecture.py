"""The documented tree is the real one, and imports only point upwards in it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "airtune"
LINE = re.compile(r"^      (\S+?)(\.py|/)\s{2,}\S")


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def documented() -> tuple[list[str], int]:
    """Return the names of the tree in docs/architecture.md, in order, and where torch begins."""
    names: list[str] = []
    torch_line = None
    for line in ARCHITECTURE.splitlines():
        if match := LINE.match(line):
            names.append(match[1])
        elif "below this line torch" in line:
            torch_line = len(names)
    assert torch_line is not None
    return names, torch_line


NAMES, TORCH_LINE = documented()


def test_the_documented_tree_is_the_real_one() -> None:
    """Files as files and folders as folders, each once, and no folder without code in it."""
    lines = [match for line in ARCHITECTURE.splitlines() if (match := LINE.match(line))]
    files = {path.name for path in PACKAGE.glob("[a-z]*.py")}
    folders = {f"{path.name}/" for path in PACKAGE.iterdir() if any(path.glob("*.py"))}
    assert sorted(match[1] + match[2] for match in lines) == sorted(files | folders)


def test_what_the_documents_name_inside_the_tree_is_there() -> None:
    lines = [(match[1], line) for line in ARCHITECTURE.splitlines() if (match := LINE.match(line))]
    inside = [(room, name) for room, line in lines for name in re.findall(r"; (\w+)/:", line)]
    assert ("planning", "optimum") in inside
    missing = [
        (room, name) for room, name in inside if not any((PACKAGE / room / name).glob("*.py"))
    ]
    assert not missing


@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_files_that_the_documents_name_are_there(document: Path) -> None:
    if document.name == "log.md":
        pytest.skip("the log names what there was")
    named = set(re.findall(r"`([\w/]+/\w+\.py|[a-z]\w+\.py)`", document.read_text()))
    places = (PACKAGE, PACKAGE.parent, ROOT)
    assert not [name for name in sorted(named) if not any((at / name).is_file() for at in places)]


def imports_of(module: Path) -> set[str]:
    """Return the airtune modules that a file imports, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "airtune":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("airtune."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("airtune.")}
    return found


def typing_only(module: Path) -> set[str]:
    """Return what is imported under `if TYPE_CHECKING:` alone: names, not a dependency."""
    tree = ast.parse(module.read_text())
    guarded = [
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("airtune.")
    ]
    return {str(node.module).split(".")[1] for node in guarded}


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_upwards(module: Path) -> None:
    own = module.relative_to(PACKAGE).parts[0].removesuffix(".py")
    known = imports_of(module) - typing_only(module) - {own, "__version__"}
    assert known <= set(NAMES)
    below = {name for name in known if NAMES.index(name) > NAMES.index(own)}
    assert not below


@pytest.mark.parametrize(
    "module",
    [
        *modules(),
        *sorted((ROOT / "tests").glob("*.py")),
        *sorted((ROOT / "benchmarks").glob("*.py")),
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_files_stay_readable(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= 400


def test_nothing_above_the_line_loads_torch() -> None:
    names = NAMES[:TORCH_LINE]
    code = "import sys\n" + "".join(f"import airtune.{name}\n" for name in names)
    code += "heavy = {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\nprint(heavy)\n"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
