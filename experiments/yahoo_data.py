"""Make the files of the study on Yahoo Answers from one file of labelled texts.

    python experiments/yahoo_data.py TEXTS FOLDER

The terms of the data do not allow to pass it on, so none of it is here. TEXTS has a class, 0 to 9,
a tab and a text on each line; or, below the header `sentence<tab>label`, a text, quoted as in CSV,
a tab and the class. One text of five goes to the test part, chosen by a hash of the text: a text
that is there twice is never on both sides.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path

HEADER = ["sentence", "label"]

STUDIED = {
    "train": "32d1525425a0f287a41497f4803e507cdc2c5e8c354f8155b4c0f6d6e1806f2a",
    "test": "6337fb88d03b36900e86d94a97238e30420883cea47afd921d71697899157230",
}
"""SHA-256 of the study's files."""


def texts_of(source: Path) -> Iterator[tuple[str, int]]:
    """Yield each text of a file, and its class from 0 on."""
    with source.open(encoding="utf-8", newline="") as lines:
        if lines.readline().rstrip().split("\t") == HEADER:
            for text, topic in csv.reader(lines, delimiter="\t"):
                yield text, int(topic)
            return
    with source.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            topic, _, text = line.rstrip("\n").partition("\t")
            yield text, int(topic)


def write_parts(source: Path, folder: Path) -> dict[str, str]:
    """Write the two parts, with the classes 1 to 10 that the task reads; return their SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {part: folder / f"{part}.csv" for part in STUDIED}
    with (
        paths["train"].open("w", encoding="utf-8", newline="") as train,
        paths["test"].open("w", encoding="utf-8", newline="") as test,
    ):
        writers = {"train": csv.writer(train), "test": csv.writer(test)}
        for writer in writers.values():
            writer.writerow(["text", "label"])
        for text, topic in texts_of(source):
            first = hashlib.sha256(text.encode()).digest()[0]
            writers["test" if first % 5 == 0 else "train"].writerow([text, topic + 1])
    return {part: hashlib.sha256(path.read_bytes()).hexdigest() for part, path in paths.items()}


def main(source: Path, folder: Path) -> None:
    """Write the two files and end with an error where they are not those of the study."""
    if write_parts(source, folder) != STUDIED:
        raise SystemExit(f"'{folder}': made, but these are not the texts of the study")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("source", type=Path, metavar="TEXTS", help="a file of labelled texts")
    parser.add_argument("folder", type=Path, help="where train.csv and test.csv go")
    given = parser.parse_args()
    main(given.source, given.folder)
