"""The tables of a language model: where tokens are looked up, and what makes logits of states; one where they are tied.

What does more than look up or multiply stays float: rows that are scaled or cut to a norm inside the module.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import nn

from slimrun.ops.model.output_head import output_layer

MORE = "it does more than {}"


@dataclass(frozen=True)
class Table:
    """A matrix [V, H] and the modules that hold it, the first of which it is stored under."""

    places: tuple[str, ...]
    shape: tuple[int, int]
    kept: str = ""  # why it stays float
    looked_up: bool = True  # False of an output layer alone

    @property
    def name(self) -> str:
        """The name that the table is stored under."""
        return self.places[0]


def tables(model: nn.Module) -> list[Table]:
    """Embeddings and output layer, one table where they are tied; none when the model does not name its embeddings."""
    embeddings: Any = None
    with suppress(NotImplementedError, AttributeError):  # custom code rarely says
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
    names = {module: name for name, module in model.named_modules()}
    if embeddings not in names or getattr(embeddings, "weight", None) is None:
        return []
    looked_up = Table((names[embeddings],), tuple(embeddings.weight.shape), _more_than_lookup(embeddings))
    head = _head(model, looked_up.shape)
    if head not in names or head is embeddings:
        return [looked_up]
    if _tied(model, names[head], names[embeddings]):
        kept = looked_up.kept or _more_than_product(head)
        return [Table((names[embeddings], names[head]), looked_up.shape, kept)]
    return [looked_up, Table((names[head],), tuple(head.weight.shape), _more_than_product(head), looked_up=False)]


def table_shapes(model: nn.Module, types: Mapping[str, str], quant_type: str) -> dict[str, tuple[int, int]]:
    """Name -> shape [V, H] of those tables that are stored as `quant_type`."""
    return {table.name: table.shape for table in tables(model) if types.get(table.name) == quant_type}


def _head(model: Any, shape: tuple[int, int]) -> Any:
    """What the model calls its output layer, else its last linear if it has the shape; None when it has neither."""
    with suppress(NotImplementedError, AttributeError, ValueError):
        own = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        head = own or output_layer(model)
        return head if own is not None or tuple(head.weight.shape) == shape else None
    return None


def _tied(model: Any, head: str, embeddings: str) -> bool:
    """Whether both are one, as transformers says (parameters on disk are not told apart) or the parameters show."""
    said = getattr(model, "all_tied_weights_keys", {})
    one, other = f"{head}.weight", f"{embeddings}.weight"
    if said.get(one) == other or said.get(other) == one:
        return True
    return model.get_submodule(head).weight is model.get_submodule(embeddings).weight


def _more_than_lookup(module: Any) -> str:
    plain = isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward
    return "" if plain and module.max_norm is None else MORE.format("look up")


def _more_than_product(module: Any) -> str:
    plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    return "" if plain else MORE.format("multiply")
