"""Something is done once another package is imported, which nothing here imports for it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_imported(module: str, do: Callable[[], object]) -> None:
    """Call `do` after the module has run: now, where it has, else whenever somebody imports it."""
    if module in sys.modules:
        do()
    else:
        sys.meta_path.insert(0, _Watch(module, do))


class _Watch(MetaPathFinder):
    """Finds one module as the others find it, and lets it be followed by a call."""

    def __init__(self, module: str, do: Callable[[], object]) -> None:
        self._module, self._do = module, do
        self._asks = False  # the others, which are asked through all finders, this one too

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's place; None for any other module."""
        if fullname != self._module or self._asks:
            return None
        self._asks = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asks = False
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_call(module: ModuleType) -> None:
                run(module)
                sys.meta_path.remove(self)
                self._do()

            spec.loader.exec_module = run_and_call  # type: ignore[method-assign]
        return spec
