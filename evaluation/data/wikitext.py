"""Wikitext to clean prose by selection, not by repair.

A template in the middle of a sentence (a conversion, a pronunciation, a date) cannot be rendered without its
wiki. Rather than leave a hole, the whole paragraph is dropped: an article has enough others.
"""

import re
from collections.abc import Iterator

import mwparserfromhell
from mwparserfromhell.nodes import Comment, ExternalLink, Heading, Tag, Template, Wikilink

DROP = "\0"  # stands where something was that cannot become text; its paragraph goes
SILENT = re.compile(  # templates that show nothing, or a superscript, in running text
    r"cit|sfn|harv|refn|efn|ref|page|rp|clarify|when|who|which|dubious|fact|verif|note|anchor|use |pp-|nbsp|"
    r"better source|failed|according|by whom|where|vague|dead|original|update|context|as of|why|importance",
    re.IGNORECASE,
)
SHORTEST = 200  # characters; below it are captions, notes and list remains
LEFTOVER = re.compile(r"[\[\]{}|<>=\0\u00b0]|\(\s*[,;)]|''|&\w+;|__|https?:| [,.;)]|:$")


def prose(source: str) -> Iterator[str]:
    """Yield the paragraphs of an article that are whole sentences and nothing else, one line each."""
    for line in inner(mwparserfromhell.parse(source)).split("\n"):
        paragraph = " ".join(line.replace("&nbsp;", " ").replace("&ndash;", "\u2013").split())
        if len(paragraph) >= SHORTEST and paragraph[-1] in '.!?"' and not LEFTOVER.search(paragraph):
            yield paragraph


def rendered(node: object) -> str:
    """The text of one top-level node as a reader of the page would see it."""
    match node:
        case Comment():
            return ""
        case Template():
            return "" if SILENT.match(str(node.name).strip()) else DROP
        case Heading():
            return "\n"
        case Wikilink():
            title = str(node.title)
            if re.match(r"\s*(file|image|category):", title, re.IGNORECASE):
                return ""
            return title.lstrip(":") if node.text is None else inner(node.text)
        case ExternalLink():
            return inner(node.title) if node.title is not None else ""
        case Tag():
            return tagged(node)
        case _:
            return str(node)


def tagged(node: Tag) -> str:
    """Emphasis keeps its words, a reference vanishes, anything else (list, table, formula) drops its line."""
    name = str(node.tag).lower()
    if name in ("b", "i", "small", "span", "sub", "sup"):
        return inner(node.contents)
    return "" if name == "ref" else DROP


def inner(code: object) -> str:
    """Render all nodes of a piece of wikitext."""
    return "".join(rendered(node) for node in code.nodes)  # type: ignore[attr-defined]
