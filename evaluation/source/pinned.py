"""The pinned sets; evaluation/data/README.md says where each is from."""

from pathlib import Path


def pinned(name: str) -> Path:
    """The file of a pinned set, e.g. `wikipedia_evaluation`."""
    return Path(__file__).parents[1] / "data" / f"{name}.jsonl"
