"""Make train.csv and test.csv of Yahoo Answers from a file of labelled texts.

    python experiments/yahoo_data.py test.csv FOLDER

The terms of the data do not allow to pass it on, so none of it is here. Each line of the source is
a class, 0 to 9, a tab and a text. One text of five goes to the test part, chosen by a hash of the
text: a text that is there twice is never on both sides.
"""

from __future__ import annotations

import csv
import hashlib
import sys
from pathlib import Path


def main(source: Path, folder: Path) -> None:
    """Write the two parts, with the classes 1 to 10 that the task reads."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        source.open(encoding="utf-8", newline="\n") as lines,
        (folder / "train.csv").open("w", encoding="utf-8", newline="") as train,
        (folder / "test.csv").open("w", encoding="utf-8", newline="") as test,
    ):
        writers = {part: csv.writer(file) for part, file in (("train", train), ("test", test))}
        for writer in writers.values():
            writer.writerow(["text", "label"])
        for line in lines:
            topic, _, text = line.rstrip("\n").partition("\t")
            first = hashlib.sha256(text.encode()).digest()[0]
            writers["test" if first % 5 == 0 else "train"].writerow([text, int(topic) + 1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
