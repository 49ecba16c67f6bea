"""Where a model comes from: what every source answers, the same for every framework."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from slimrun.ops.model.text import TextModel

DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Outline:
    """What is known of a model without loading a weight."""

    linears: dict[str, tuple[int, int]]  # name -> shape [n, k], in module order
    parameters: int  # numbers in all its tensors, tied ones once
    float_bytes: int  # of the parameters, in the dtype the model is loaded in
    notes: tuple[str, ...] = ()  # what a person must know of it before it loads, one line each
    experts: int = 0  # numbers in weights of experts that are no linear
    kept: Mapping[str, str] = field(default_factory=dict)  # linears that stay float whatever the method, and why
    tables: int = 0  # numbers in embeddings and output layer that can be quantized, tied ones once
    dtype: str = "float32"  # in which the model is loaded
    missing: str = ""  # why it cannot be loaded although all this is known: its weights are not there


class Model(ABC):
    """Which model, as conf/model says it: one class a source.

    A source has its weights in files (`fetch`), draws them (`drawn`), or brings a network of its own (`own`). It
    answers once it is opened.
    """

    cache: Path  # where slimrun keeps things,
    seed: int  # what random weights are drawn from: both are known once the model is opened
    name: str
    dtype: str = "auto"  # of DTYPES; auto: the checkpoint's, else float32
    revision: str | None = None  # of a hub id
    trust_remote_code: bool = False  # whether the Python code that the model brings may run
    download_bytes: int = 0  # what has to be fetched first, when `folder` is not there
    notes: tuple[str, ...] = ()  # what a reader of the scores must know of the float weights, one line each

    @property
    def runs_code(self) -> bool:
        """Whether the user allowed code that is not the framework's: the model's own, or the loader they named."""
        return self.trust_remote_code

    def open(self, cache: Path, seed: int = 0) -> Self:
        """This model, which keeps things in `cache` and draws random weights from `seed`."""
        opened = copy(self)
        vars(opened).update(cache=cache, seed=seed)  # they are no part of what a yaml describes
        return opened

    def origin(self) -> str:
        """Where the weights come from, for a person."""
        return str(self.folder())

    def folder(self) -> Path | None:
        """The folder here that the model is loaded from; None when there is none (yet)."""
        return None

    def fetch(self) -> Path | str:
        """The folder or hub id that weights are loaded from, fetched first if it must be."""
        raise TypeError(f"{type(self).__name__} has no weight files")

    def drawn(self) -> Any | None:
        """The transformers module with random weights; None unless that is what it is."""
        return None

    def own(self) -> tuple[Any, Any] | None:
        """(network, tokenizer) that the user's function makes; None unless that is what it is."""
        return None

    @abstractmethod
    def config(self) -> Any:
        """The transformers config; Unavailable says in one line why there is none."""

    def sketch(self) -> Any:
        """What the config says, where that is enough without transformers' own."""
        return self.config()

    @abstractmethod
    def tokenizer(self) -> Any:
        """The transformers tokenizer; Unavailable says in one line why it cannot be used."""

    @abstractmethod
    def outline(self, formats: Collection[str]) -> Outline:
        """The outline, without loading a weight; `formats` are the suffixes of the weight files that may be loaded.

        Unavailable says in one line why the model cannot be loaded: no such folder, truncated weights...
        """

    @abstractmethod
    def fingerprint(self, *, read: bool = True) -> str | None:
        """Hash of the float weights and everything that shapes their outputs, without loading them.

        None when `read` is false and weights would have to be read for it.
        """

    @abstractmethod
    def key(self) -> str | None:
        """Hash of everything but the weights: config, code, tokenizer; None where it is not known without asking."""

    def reader(self) -> TextModel | None:
        """How the model reads text; None when its tokenizer is not here yet.

        Unavailable says in one line why its tokenizer cannot be used.
        """
        from slimrun.ops.model.tokenizer import reader

        return reader(self.tokenizer(), self.config(), str(self.folder() or f"model={self.name}"))


def check_dtype(dtype: str) -> None:
    """ValueError names the key, the value and what is allowed."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype} is not known; allowed: {', '.join(DTYPES)}")
