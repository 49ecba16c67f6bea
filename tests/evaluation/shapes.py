"""Small files with the columns of the data sets that conf/task names, each in a format of its own."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

Rows = list[dict[str, Any]]
LETTERS = "ABCD"
LINES = (
    "".join(f"第{i}句说天气很好。\n" for i in range(6)),
    "".join(f"Sentence {i} says the weather is fine.\n" for i in range(6)),
)


def _exam(question: str, answer: str, **more: str) -> Rows:
    """Four options in columns of their own, the answer a letter."""
    return [
        {
            question: f"第{i}题：一加{i}等于几？",
            **{letter: str(i + k) for k, letter in enumerate(LETTERS)},
            answer: "B",
            **more,
        }
        for i in range(6)
    ]


SHAPES: dict[str, tuple[str, Rows]] = {
    "ceval": ("csv", _exam("question", "answer", explanation="")),
    "cmmlu": ("tsv", _exam("Question", "Answer")),
    "mmlu": (
        "parquet",
        [
            {
                "question": f"What is {i} + 1?",
                "subject": f"s{i % 2}",
                "choices": [str(i + k) for k in range(4)],
                "answer": 1,
            }
            for i in range(6)
        ],
    ),
    "boolq": (
        "jsonl",
        [{"question": f"is {i} even", "passage": f"The number {i}.", "answer": i % 2 == 0} for i in range(6)],
    ),
    "arc": (
        "json",
        [
            {
                "id": str(i),
                "question": f"Which is the metal, {i}?",
                "choices": {"text": ["wood", "iron", "wool"], "label": list(labels)},
                "answerKey": labels[1],
            }
            for i, labels in enumerate(["ABC", "123"] * 3)
        ],
    ),
    "hellaswag": (
        "parquet",
        [
            {
                "activity_label": "Cooking",
                "ctx_a": f"A man cooks {i} eggs.",
                "ctx_b": "he",
                "endings": ["eats them.", "flies away.", "sings.", "sleeps."],
                "label": "0",
            }
            for i in range(6)
        ],
    ),
    "winogrande": (
        "jsonl",
        [
            {
                "sentence": f"Ann thanked Eve {i} times because _ had helped.",
                "option1": "Ann",
                "option2": "Eve",
                "answer": "2",
            }
            for i in range(6)
        ],
    ),
    "lambada": ("jsonl", [{"text": f"The cat saw {i} mice, and soon there was no mouse"} for i in range(6)]),
    "gsm8k": (
        "jsonl",
        [
            {"question": f"Ann has {i} eggs and gets 1000 more.", "answer": f"{i} + 1000\n#### 1,00{i}"}
            for i in range(6)
        ],
    ),
    "xsum": (
        "csv",
        [
            {"document": f'A long story,\n"quoted", number {i}.', "summary": f"Story {i}.", "id": str(i)}
            for i in range(6)
        ],
    ),
    "wmt_zhen": ("jsonl", [{"translation": {"zh": zh, "en": en}} for zh, en in zip(*(x.splitlines() for x in LINES))]),
    "wmt_enzh": ("jsonl", [{"translation": {"zh": zh, "en": en}} for zh, en in zip(*(x.splitlines() for x in LINES))]),
    "wikitext2": (
        "parquet",
        [{"text": text} for text in ["", " = Head = ", "words of a long text " * 30, "and more. " * 40]],
    ),
}


def written(folder: Path, name: str, rows: Rows | None = None) -> Path:
    """The file of a data set's shape."""
    kind, shape = SHAPES[name]
    content, path = rows or shape, folder / f"{name}.{kind}"
    match kind:
        case "jsonl":
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), "utf-8")
        case "json":
            path.write_text(json.dumps(content), "utf-8")
        case "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(content), path)
        case _:
            with path.open("w", encoding="utf-8", newline="") as stream:
                writer = csv.DictWriter(stream, list(content[0]), delimiter="\t" if kind == "tsv" else ",")
                writer.writeheader()
                writer.writerows(content)
    return path


def others(rows: Rows) -> Rows:
    """Rows to make examples of: no item is among them."""
    return [row | {key: f"Before: {row[key]}" for key in ("question", "Question") if key in row} for row in rows]


def examples(folder: Path, name: str) -> Path:
    """Another file of a data set's shape, of other rows."""
    (folder / "examples").mkdir(exist_ok=True)
    return written(folder / "examples", name, others(SHAPES[name][1]))
