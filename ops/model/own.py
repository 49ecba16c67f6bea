"""The user's own network, made by a function of theirs; only framework=mindspore runs one."""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from slimrun.ops.errors import Unavailable
from slimrun.ops.model.base import Model, Outline


@dataclass(frozen=True)
class Own(Model):
    """`loader` ("package.function") returns network and tokenizer."""

    name: str
    loader: str | None = None

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        if self.loader is None or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", self.loader):
            raise ValueError(f"loader={self.loader or 'null'} names no function; allowed: PACKAGE.FUNCTION")

    @property
    def runs_code(self) -> bool:
        """The function is the user's."""
        return True

    def origin(self) -> str:
        """Where the weights come from, for a person."""
        return str(self.loader)

    def own(self) -> tuple[Any, Any]:
        """(network, tokenizer) of the user's function; Unavailable says what is wrong with it."""
        try:
            function = getattr(self._module(), str(self.loader).rpartition(".")[2])
        except (ImportError, AttributeError) as error:
            raise Unavailable(f"model.loader={self.loader} cannot be imported: {error}") from error
        made = function()
        if not isinstance(made, tuple) or len(made) != 2:
            kind = type(made).__name__
            raise Unavailable(f"model.loader={self.loader} gives {kind}; expected (mindspore.nn.Cell, tokenizer)")
        return made

    def config(self) -> Any:
        """An own network has none."""
        raise self._for_mindspore()

    def tokenizer(self) -> Any:
        """The one that the function returns."""
        return self.own()[1]

    def outline(self, formats: Collection[str]) -> Outline:
        """Unavailable: only the framework that runs the network knows its outline."""
        raise self._for_mindspore()

    def fingerprint(self, *, read: bool = True) -> str | None:
        """Hash of the Python files beside the one with the function; the framework adds what the parameters hold."""
        if not read:
            return None
        digest = hashlib.sha256()
        source = Path(str(self._module().__file__)).parent
        for file in sorted(source.glob("*.py")):
            digest.update(file.name.encode() + file.read_bytes())
        return digest.hexdigest()

    def key(self) -> None:
        """None: the function may read whatever it likes."""

    def reader(self) -> None:
        """None: the tokenizer is not here before the network is made."""

    def _module(self) -> ModuleType:
        """The module with the function, from where slimrun was started too; a console script does not look there."""
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
        return importlib.import_module(str(self.loader).rpartition(".")[0])

    def _for_mindspore(self) -> Unavailable:
        return Unavailable(f"model.loader={self.loader} is for framework=mindspore; take model=hf model.path=DIR")
