"""Plant small faults (mutants) in the code that joins the rooms, and count those that tests see.

    python benchmarks/mutants.py                       # every group; hours
    python benchmarks/mutants.py merging bills         # two groups
    python benchmarks/mutants.py loop --sample 100     # 100 mutants of the group, drawn by --seed
    python benchmarks/mutants.py inputs --minutes 8    # as many as are tried by then
    python benchmarks/mutants.py inputs --again        # the survivors, after tests were added

mutmut (the extra `mutants`) makes the mutants and runs, for each of them, those of the group's
tests that reach its function, until one fails. A group works in a copy of its own below
`build/mutants`, so that results stay there and a second call goes on. `--show` prints the
survivors' diffs. Figures and reasons are in docs/mutants.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import get_mutant_name

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "mutants"
KILLED = {"killed", "timeout", "segfault", "suspicious"}


@dataclass(frozen=True)
class Group:
    """Modules below src/airtune, and the files below tests that are aimed at them."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


GROUPS = {
    "merging": Group(
        (
            "merging/averages.py",
            "merging/contributions.py",
            "merging/functions.py",
            "merging/products.py",
            "merging/rules.py",
            "adapters/names.py",
        ),
        ("test_merging.py", "test_merging_faults.py", "test_merging_exact.py"),
    ),
    "few-bits": Group(("adapters/few_bits.py",), ("test_few_bits.py", "test_broadcast.py")),
    "bills": Group(
        ("rounds/bills.py", "rounds/state.py"),
        ("test_rounds_bills.py", "test_rounds_state.py", "test_energy.py"),
    ),
    "costs": Group(
        (
            "planning/assigning.py",
            "planning/costs.py",
            "planning/floor.py",
            "planning/participation.py",
        ),
        ("test_planning_costs.py", "test_planning_floor.py", "test_planning_knobs.py"),
    ),
    "inputs": Group(
        ("planning/inputs.py", "planning/round_plan.py", "planning/broadcast.py"),
        (
            "test_planning_inputs.py",
            "test_planning_broadcast.py",
            "test_round_plan_wiring.py",
            "test_round_plan.py",
            "test_broadcast.py",
            "test_cohorts.py",
        ),
    ),
    "loop": Group(
        (
            "rounds/loop.py",
            "rounds/situation.py",
            "rounds/answers.py",
            "rounds/cell.py",
            "rounds/description.py",
        ),
        (
            "test_rounds_step.py",
            "test_rounds_opening.py",
            "test_rounds_cell.py",
            "test_rounds_wiring.py",
        ),
    ),
    "worker": Group(
        ("training/worker.py",),
        ("test_worker.py", "test_worker_training.py"),
    ),
}


def prepared(name: str, group: Group) -> Path:
    """Copy what a group needs below build/mutants, with mutmut's settings, and return the folder.

    Files that did not change keep their time, by which mutmut knows its mutants to be current.
    """
    folder = BUILD / name
    for part in ("src", "tests", "examples"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / part, folder / part, dirs_exist_ok=True, ignore=ignored)
    tests = [f"tests/{test}" for test in group.tests if (ROOT / "tests" / test).is_file()]
    settings = {
        "source_paths": ["src"],
        "only_mutate": [f"src/airtune/{module}" for module in group.modules],
        "also_copy": ["examples"],
        "pytest_add_cli_args_test_selection": tests,
        # A failure that ends a run in between leaves its folder; names of tests stay the same.
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "--timeout=300"],
        "use_git_change_detection": False,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    project = (ROOT / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text("\n".join([project, "[tool.mutmut]", *lines, ""]))
    # Python passes over a folder of PYTHONPATH that is not there when it starts.
    (folder / "mutants" / "src").mkdir(parents=True, exist_ok=True)
    return folder


def mutants_of(group: Group) -> list[str]:
    """Return the names of all mutants of a group."""
    names = []
    for module in group.modules:
        path = Path("src/airtune") / module
        made = mutate_file_contents(str(path), (ROOT / path).read_text())
        names += [get_mutant_name(path, name) for name in made.mutant_names]
    return names


def verdicts(folder: Path, group: Group) -> dict[str, dict[str, str]]:
    """Return what became of each mutant that was tried, by module."""
    found = {}
    for module in group.modules:
        meta = folder / "mutants" / "src" / "airtune" / f"{module}.meta"
        codes = json.loads(meta.read_text())["exit_code_by_key"] if meta.is_file() else {}
        found[module] = {
            key: status_by_exit_code[code] for key, code in codes.items() if code is not None
        }
    return found


def tried(folder: Path, group: Group) -> dict[str, str]:
    """Return what became of each mutant of the modules that have not changed since."""
    found = {}
    for module, verdict in verdicts(folder, group).items():
        meta = folder / "mutants" / "src" / "airtune" / f"{module}.meta"
        if (
            meta.is_file()
            and (ROOT / "src/airtune" / module).stat().st_mtime < meta.stat().st_mtime
        ):
            found |= verdict
    return found


def mutmut(
    folder: Path, *arguments: str, minutes: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run mutmut in a group's folder, on its copy of the code, and stop it after `minutes`."""
    environment = os.environ | {
        "PYTHONPATH": str(folder / "mutants" / "src"),
        "OMP_NUM_THREADS": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / ".hypothesis"),
    }
    command = [str(Path(sys.executable).parent / "mutmut"), *arguments]
    if minutes is not None:  # it keeps what it knows when it is interrupted
        command = ["timeout", "--signal=INT", f"{minutes}m", *command]
    wanted = arguments[0] == "show"
    return subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", default=list(GROUPS), help=", ".join(GROUPS))
    parser.add_argument("--sample", type=int, help="mutants of each group; all without it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--children", type=int, default=1)
    parser.add_argument("--only", help="a regular expression that mutants' names contain")
    parser.add_argument("--minutes", type=float, help="stop then; a second call goes on")
    parser.add_argument("--again", action="store_true", help="try earlier survivors again")
    parser.add_argument("--show", action="store_true", help="print the survivors of earlier calls")
    given = parser.parse_args()
    for name in given.groups:
        group = GROUPS[name]
        folder = BUILD / name if given.show else prepared(name, group)
        if not given.show:
            names = mutants_of(group)
            if given.only:
                names = [one for one in names if re.search(given.only, one)]
            if given.sample is not None and given.sample < len(names):
                names = sorted(random.Random(given.seed).sample(names, given.sample))
            drawn = set(names)
            part = given.sample is not None or given.only is not None or given.again
            if part:
                known = tried(folder, group)
                # mutmut tries again whatever it is given by name.
                wanted = {one for one, status in known.items() if status not in KILLED}
                names = [
                    one for one in names if (one in wanted if given.again else one not in known)
                ]
            if given.again and not names:
                print(f"{name:9} no earlier survivor is known here: a changed module begins anew")
            children = ("--max-children", str(given.children))
            if names or not part:  # without names it tries all that were not tried
                mutmut(folder, "run", *children, *(names if part else ()), minutes=given.minutes)
        for module, found in verdicts(folder, group).items():
            if not given.show:
                found = {key: status for key, status in found.items() if key in drawn}
            counts = Counter(found.values())
            killed = sum(counts[status] for status in KILLED)
            print(f"{name:9} {module:28} {killed:4} of {len(found):4} killed  {dict(counts)}")
            for mutant, status in sorted(found.items()):
                if given.show and status not in KILLED:
                    print(f"# {status}: {mutant}\n{mutmut(folder, 'show', mutant).stdout}")


if __name__ == "__main__":
    main()
