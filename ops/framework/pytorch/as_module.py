"""What a TorchModel answers where a program expects the model of transformers that it holds, as lm-eval does."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class AsModule:
    """Calls, and what the class has no name for, go to the module."""

    module: Any

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """What the module gives."""
        return self.module(*arguments, **keywords)

    if not TYPE_CHECKING:  # a misspelt name shall be noticed

        def __getattr__(self, name: str) -> Any:
            if name == "module":  # not there yet
                raise AttributeError(name)
            return getattr(self.module, name)


def or_of_module(method: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The method, unless it is called with transformers' keyword `input_ids`: then the module's of that name."""

    @wraps(method)
    def called(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        if "input_ids" not in keywords:
            return method(*arguments, **keywords)
        model: Any = arguments[0]
        result: Result = getattr(model.module, method.__name__)(*arguments[1:], **keywords)
        return result

    return called
