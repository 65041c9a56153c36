"""Make train.csv and test.csv of CLINC150 by domain from the data set's own files.

    python experiments/clinc150_data.py oos-eval/data FOLDER

The source is the folder `data` of github.com/clinc/oos-eval (Larson et al., An Evaluation Dataset
for Intent Classification and Out-of-Scope Prediction, EMNLP 2019; CC BY 3.0). `data_full.json` has
texts with their intents, `domains.json` the fifteen intents of each of the ten domains. Training
and validation texts make the train part; each intent is replaced by its domain, and texts without
one (out of scope) are left out. At the end the two files are compared with those of the studies.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

PARTS = {"train": ("train", "val"), "test": ("test",)}
"""Which parts of data_full.json make which file."""
STUDIED = {
    "train": (18_000, "80a8f6e72f6b7bb6d6b1813783a1c7b1fbf308b7de17030357e18d9d60952580"),
    "test": (4_500, "50b9140f8f5d0cc1f24ce2cab2310c08b27ee903092b45b7cb6fab04b0ca4429"),
}
"""Texts and SHA-256 of the files that the studies were run with."""


def write_parts(source: Path, folder: Path) -> dict[str, tuple[int, str]]:
    """Write the two files; return the number of texts and the SHA-256 of each."""
    texts = json.loads((source / "data_full.json").read_text(encoding="utf-8"))
    domains = json.loads((source / "domains.json").read_text(encoding="utf-8"))
    domain_of = {intent: domain for domain, intents in domains.items() for intent in intents}
    folder.mkdir(parents=True, exist_ok=True)
    return {
        name: _write([pair for part in parts for pair in texts[part]], domain_of, folder, name)
        for name, parts in PARTS.items()
    }


def _write(
    texts: Sequence[tuple[str, str]], domain_of: Mapping[str, str], folder: Path, name: str
) -> tuple[int, str]:
    path = folder / f"{name}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["prompt", "answer", "label"])
        for text, intent in texts:
            domain = domain_of[intent]
            writer.writerow([text, domain.replace("_", " "), domain])
    return len(texts), hashlib.sha256(path.read_bytes()).hexdigest()


def main(source: Path, folder: Path) -> None:
    """Write the two files and end with an error where they are not those of the studies."""
    for name in ("data_full.json", "domains.json"):
        if not (source / name).is_file():
            raise SystemExit(f"no {name} in '{source}': give the folder data of clinc/oos-eval")
    other = [name for name, made in write_parts(source, folder).items() if made != STUDIED[name]]
    if other:
        names = " and ".join(f"{name}.csv" for name in other)
        raise SystemExit(f"{names} in '{folder}': not the texts that the studies were run with")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("source", type=Path, help="folder with data_full.json and domains.json")
    parser.add_argument("folder", type=Path, help="where train.csv and test.csv go")
    given = parser.parse_args()
    main(given.source, given.folder)
