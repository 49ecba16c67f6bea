"""Reading: every refusal names file, line and what is allowed. And the pinned files are the ones of the README."""

import json
import re
from pathlib import Path

import pytest

from slimrun.evaluation import data, statistics
from slimrun.evaluation.source import items
from slimrun.evaluation.source.file import read_prompts, sha256
from slimrun.evaluation.source.pinned import pinned
from slimrun.evaluation.source.table import read_parallel, read_rows, read_rows_or_text

DATA = Path(data.__file__).parent
PINNED = re.findall(r"^\| `(\w+)\.jsonl` \| (\d+) \|.*\| `([0-9a-f]{64})` \|$", (DATA / "README.md").read_text(), re.M)


def written(folder: Path, data: bytes, name: str = "own.txt") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("name", "count", "digest"), PINNED)
def test_pinned_files_are_those_of_the_readme(name: str, count: str, digest: str) -> None:
    assert sha256(pinned(name)) == digest
    assert len(read_rows(pinned(name))) == int(count)


def test_every_pinned_file_is_in_the_readme() -> None:
    assert {name for name, _, _ in PINNED} == {path.stem for path in DATA.glob("*.jsonl")}
    assert sum(path.stat().st_size for path in DATA.iterdir() if path.is_file()) < 1_500_000


def test_calibration_and_evaluation_share_no_text() -> None:
    texts = [
        "\n".join(row["text"] for _, row in read_rows(pinned(f"wikipedia_{half}")))
        for half in ("calibration", "evaluation")
    ]
    assert statistics.overlap(*texts) == 0
    assert not re.search(r"[\[\]{}|<>]|\(\)|''|thumb\b(?!')", texts[1])


def test_prompts_one_a_line(tmp_path: Path) -> None:
    assert read_prompts(written(tmp_path, "eins\r\n中国\n".encode())) == ["eins", "中国"]
    assert read_prompts(written(tmp_path, b"\xef\xbb\xbfa\x0cb\n")) == ["a\x0cb"]  # a form feed is no line end


ROWS = [{"text": "a\nb", "id": 1}, {"text": "中"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize("name", ["own.jsonl", "own.JSONL", "own.json", "own.ndjson", "own.txt", "own"])
@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES.replace("\n", "\r\n"),
        LINES.replace("\n", "\r"),
        LINES.replace("\n", "\n\n"),
        json.dumps(ROWS),
        "\ufeff" + json.dumps(ROWS, indent=2, ensure_ascii=False),
        "".join(json.dumps(row, indent=1) for row in ROWS),
        json.dumps([row["text"] for row in ROWS]),
    ],
    ids=["lines", "dos", "mac", "spaced", "array", "pretty", "values", "strings"],
)
def test_json_is_told_by_its_content(tmp_path: Path, name: str, content: str) -> None:
    path = written(tmp_path, content.encode(), name)
    assert read_prompts(path) == ["a\nb", "中"]
    assert [row["text"] for _, row in read_rows(path)] == ["a\nb", "中"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "lines",
    [
        ["[INST] hi [/INST]", "{name}, hello"],
        ["[[Link]] is one", "[1] Smith et al."],
        ["{{system}} hello", "{}"],
        ['"Yes," she said', '"No," he said'],
        ["Yes, please", "No, thanks"],
        ["one, two", "three"],
        ["a\tb", "no tab"],
        ["42", "43"],
        ["text,with,commas", "and a line without"],
    ],
)
def test_plain_text_is_one_prompt_a_line(tmp_path: Path, lines: list[str], end: str) -> None:
    path = written(tmp_path, "".join(line + end for line in lines).encode())
    assert read_prompts(path) == lines
    assert read_rows_or_text(path) == "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"", "own.txt", r" is empty; allowed: UTF-8 text"),
        (b" \n\n", "own.txt", r" is empty"),
        (b"a\nb\xe9\n", "own.txt", r", line 2 is not UTF-8 \(byte 0xe9 at offset 3\); allowed: UTF-8"),
        (b"a\0b\n", "own.txt", r" holds zero bytes"),
        (b'{"text": "a"}\n{"txt": 1, "id": 2}\n', "own.txt", r", line 2 has no text, it has txt, id; allowed: .* text"),
        (b'{"data": [{"text": "a"}]}', "own.json", r", line 1 has no text, it has data"),
        (b'[{"text": "a"}, {}]', "own.json", r", item 2 has no text, it has nothing"),
        (b'{"text": 3}\n', "own.jsonl", r", line 1: text is no str"),
        (b'{"text": " "}\n', "own.jsonl", r", line 1: text is empty"),
        (b'{"text"\n', "own.jsonl", r", line 1 is not JSON"),
        (b'{"text": "a"}\n{"text": "b"\n', "own.txt", r", line 2 is not JSON"),
        (b'[\n {"text": "a"},\n {"text": "b" \n', "own.txt", r", line 3 is not JSON"),
        (b"prose\n", "own.json", r", line 1 is not JSON"),
        (b"[1]\n", "own.jsonl", r", item 1 is no JSON object"),
        (b"[]\n", "own.json", r" holds an empty array"),
        (b"[" * 100_000, "own.json", r", line 1 is not JSON that can be read"),
        (b'{"text": "a"}\n{"text": "\\ud800"}\n', "own.jsonl", r", line 2 holds half a character \(\\ud800, "),
        (b"anything\n", "own.CSV", r" is a table, columns separated by commas; allowed: .*; write the column"),
        (b"anything\n", "own.tsv", r" is a table, columns separated by tabs"),
        (b'id,prompt\n1,"What is it, and why?"\n', "own.txt", r" is a table, columns separated by commas"),
        (b"id,prompt\n1,What is it, and why?\n", "own.txt", r" is a table, columns separated by commas"),
        ("编号;问题\n1;水？\n".encode(), "own.txt", r" is a table, columns separated by semicolons"),
        (b"What is it?\tWater.\nAnd that?\tWine.\n", "own.txt", r" is a table, columns separated by tabs"),
        (b'1,"What is it?"\n2,"And, that?"\n', "own.txt", r" is a table, columns separated by commas"),
    ],
)
def test_refusals(tmp_path: Path, data: bytes, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^path=.*{name}{message}") as refused:
        read_prompts(written(tmp_path, data, name))
    assert "\n" not in str(refused.value)


def test_an_empty_line_is_no_prompt_and_those_at_the_end_are_nothing(tmp_path: Path) -> None:
    assert read_prompts(written(tmp_path, b"a \nb\n\n  \n\n")) == ["a ", "b"]
    with pytest.raises(ValueError, match=r"own.txt, line 2 is empty; allowed: one prompt a line, or JSON"):
        read_prompts(written(tmp_path, b"a\n\nb\n"))


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"plain\n", "own.txt", r", line 1 is no JSON object; allowed: items as JSON \(lines or an array\) of objects"),
        (b'[{"a": ["\\udfff"]}]', "own.json", r", item 1 holds half a character"),
        (b"[1]", "own.json", r", item 1 is no JSON object"),
        (b"a,b\n1,2\n3\n", "own.csv", r", line 3 has 1 columns, the header 2"),
        (b"a,b\n", "own.csv", r" holds a header and no row"),
        (b'a,b\n"' + b"x" * 200_000 + b'",1\n', "own.csv", r", line 2 cannot be read \(field larger than"),
        (b"PAR1", "own.parquet", r" cannot be read \("),
        (b"\xff", "own.csv", r", line 1 is not UTF-8"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path: Path, data: bytes, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^path=.*{name}{message}") as refused:
        read_rows(written(tmp_path, data, name))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "mark"), [("own.csv", ","), ("own.csv", ";"), ("own.csv", "\t"), ("own.tsv", "\t"), ("own.tsv", ",")]
)
def test_a_table_is_rows_of_its_columns(tmp_path: Path, name: str, mark: str) -> None:
    text = f'id{mark}text\n1{mark}"a{mark} ""b""\nc"\n\n2{mark}中\n'
    rows = read_rows(written(tmp_path, text.encode(), name))
    assert read_rows(written(tmp_path, b"id;text\n1;a\n", "own.txt")) == [("line 2", {"id": "1", "text": "a"})]
    assert rows == [("line 3", {"id": "1", "text": f'a{mark} "b"\nc'}), ("line 5", {"id": "2", "text": "中"})]


def test_two_files_line_beside_line(tmp_path: Path) -> None:
    one, two = written(tmp_path, b"a\nb\n", "one"), written(tmp_path, "甲\n乙\n".encode(), "two")
    assert read_parallel(one, two)[1] == ("line 2", {"source": "b", "target": "乙"})
    with pytest.raises(ValueError, match=r"one has 2 lines, target_path=.*three 1; allowed: one text a line, in both"):
        read_parallel(one, written(tmp_path, b"a\n", "three"))
    for content, message in (
        (b"a\n\nb\n", ", line 2 is empty"),
        (b"\xff\n", ", line 1 is not UTF-8"),
        (b"", " is empty"),
    ):
        with pytest.raises(ValueError, match=f"^target_path=.*three{message}"):
            read_parallel(one, written(tmp_path, content, "three"))


def test_missing_file(tmp_path: Path) -> None:
    for read in (read_prompts, read_rows, sha256):
        with pytest.raises(ValueError, match=r"^path=.*absent.txt cannot be read \(No such file or directory\)"):
            read(tmp_path / "absent.txt")
    for name in ("absent.parquet", "absent.csv"):
        with pytest.raises(ValueError, match=r"^path=.*absent.* cannot be read"):
            read_rows(tmp_path / name)


def test_items_are_spread_and_no_more_than_there_are(tmp_path: Path) -> None:
    own = items.of_file(written(tmp_path, json.dumps([{"n": n} for n in range(10)]).encode(), "x.json"))
    assert [row["n"] for _, row in own.selected(5).rows] == [0, 2, 4, 6, 8]
    assert own.selected(None) == own
    with pytest.raises(ValueError, match=r"^limit=11 is out of range; allowed: 1 to 10, the items of x.json"):
        own.selected(11)


def test_articles_are_long_enough_for_a_window() -> None:
    rows = [json.loads(line) for line in pinned("wikipedia_evaluation").read_text("utf-8").splitlines()]
    assert len(rows) >= 32
    assert min(len(row["text"].split()) for row in rows) > 512  # a token is at most a word
