"""Tasks and their data: examples, tokens, the split over clients, batches."""

from airtune.data.batches import (
    IGNORED,
    Batch,
    Encoded,
    answer_tokens,
    collate,
    drawn,
    encode,
    eval_batches,
    local_batches,
    prompt_tokens,
    text_fingerprint,
    turn_tokens,
)
from airtune.data.examples import Example, Task, Turn
from airtune.data.partition import partition
from airtune.data.tasks import load_task

__all__ = [
    "IGNORED",
    "Batch",
    "Encoded",
    "Example",
    "Task",
    "Turn",
    "answer_tokens",
    "collate",
    "drawn",
    "encode",
    "eval_batches",
    "load_task",
    "local_batches",
    "partition",
    "prompt_tokens",
    "text_fingerprint",
    "turn_tokens",
]
