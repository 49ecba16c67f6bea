"""Reading: every refusal names file, line and what is allowed. And the pinned files are the ones of the README."""

import json
import re
from pathlib import Path

import pytest

from evaluation import statistics, text

DATA = Path(text.__file__).with_name("data")
PINNED = re.findall(r"^\| `(\w+)\.jsonl` \| (\d+) \|.*\| `([0-9a-f]{64})` \|$", (DATA / "README.md").read_text(), re.M)


def written(folder: Path, data: bytes, name: str = "own.txt") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("name", "items", "digest"), PINNED)
def test_pinned_files_are_those_of_the_readme(name: str, items: str, digest: str) -> None:
    assert text.sha256(text.pinned(name)) == digest
    assert len(text.read_jsonl(text.pinned(name), {})) == int(items)


def test_every_pinned_file_is_in_the_readme() -> None:
    assert {name for name, _, _ in PINNED} == {path.stem for path in DATA.glob("*.jsonl")}
    assert sum(path.stat().st_size for path in DATA.iterdir() if path.is_file()) < 1_500_000


def test_calibration_and_evaluation_share_no_text() -> None:
    texts = [
        "\n".join(row["text"] for row in text.read_jsonl(text.pinned(f"wikipedia_{half}"), {"text": str}))
        for half in ("calibration", "evaluation")
    ]
    assert statistics.overlap(*texts) == 0
    assert not re.search(r"[\[\]{}|<>]|\(\)|''|thumb\b(?!')", texts[1])


def test_prompts_one_a_line(tmp_path: Path) -> None:
    assert text.read_prompts(written(tmp_path, "eins\r\n中国\n".encode())) == ["eins", "中国"]
    assert text.read_prompts(written(tmp_path, b"\xef\xbb\xbfa\x0cb\n")) == ["a\x0cb"]  # a form feed is no line end


def test_prompts_of_jsonl(tmp_path: Path) -> None:
    assert text.read_prompts(written(tmp_path, b'{"text": "a\\nb"}\n', "own.jsonl")) == ["a\nb"]


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"", "own.txt", r"own.txt is empty; allowed: UTF-8 text"),
        (b" \n\n", "own.txt", r"own.txt is empty"),
        (b"a\n\nb\n", "own.txt", r"own.txt, line 2 is empty; allowed: one prompt a line, or .jsonl"),
        (b"a\nb\xe9\n", "own.txt", r"line 2 is not UTF-8 \(byte 0xe9 at offset 3\); allowed: UTF-8"),
        (b'{"text": "a"}\n{"txt": 1}\n', "own.jsonl", r"line 2 has no text; allowed: one JSON object a line with text"),
        (b'{"text": 3}\n', "own.jsonl", r"line 1: text is no str"),
        (b'{"text": " "}\n', "own.jsonl", r"line 1: text is empty"),
        (b'{"text"\n', "own.jsonl", r"line 1 is not JSON"),
        (b"[1]\n", "own.jsonl", r"line 1 is no JSON object"),
    ],
)
def test_refusals(tmp_path: Path, data: bytes, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^path=.*{message}"):
        text.read_prompts(written(tmp_path, data, name))


def test_missing_file(tmp_path: Path) -> None:
    for read in (text.read_prompts, text.read_text, text.sha256):
        with pytest.raises(ValueError, match=r"^path=.*absent.txt cannot be read \(No such file or directory\)"):
            read(tmp_path / "absent.txt")


def test_select_spreads_and_refuses_more_than_there_is() -> None:
    assert text.select(range(10), 5, "x.jsonl") == [0, 2, 4, 6, 8]
    with pytest.raises(ValueError, match=r"^limit=11 is out of range; allowed: 1 to 10, the items of x.jsonl"):
        text.select(range(10), 11, "x.jsonl")


def test_articles_are_long_enough_for_a_window() -> None:
    rows = [json.loads(line) for line in text.pinned("wikipedia_evaluation").read_text("utf-8").splitlines()]
    assert len(rows) >= 32
    assert min(len(row["text"].split()) for row in rows) > 512  # a token is at most a word
