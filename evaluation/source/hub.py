"""Data sets of the Hugging Face hub, through the library `datasets`."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache

from slimrun.evaluation.source.table import Rows

EXTRA = "pip install 'slimrun[hub]'"


@dataclass(frozen=True)
class Hub:
    """A split of a data set: its id on the hub, or a folder with the same files, at a revision (null: the newest)."""

    id: str
    subset: str | None = None
    split: str = "test"
    revision: str | None = None
    shots_split: str | None = None  # where examples come from

    def rows(self, split: str) -> Rows:
        """The rows of a split; ValueError, with what to do, when they cannot be had."""
        return _rows(self.id, self.subset, split, self.revision)

    def sha256(self, split: str) -> str:
        """Hash of a split's rows, in hex."""
        return _sha256(self.id, self.subset, split, self.revision)


@cache
def _sha256(name: str, subset: str | None, split: str, revision: str | None) -> str:
    text = json.dumps(_rows(name, subset, split, revision), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _rows(name: str, subset: str | None, split: str, revision: str | None) -> Rows:
    wanted = f"hub.id={name}"
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(f"{wanted} needs the library datasets: {EXTRA}; or give its file with path=FILE") from None
    try:
        rows = load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # of the network, of the library, of the data set
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{wanted} cannot be had ({reason}); set HF_ENDPOINT to a mirror of the hub (and HF_HUB_OFFLINE=0), or "
            f"fetch it elsewhere (modelscope download --dataset {name}) and give its file with path=FILE"
        ) from None
    return [(f"row {number} of {split}", dict(row)) for number, row in enumerate(rows, start=1)]
