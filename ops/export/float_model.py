"""The tensors of the float model that a bundle was made of, by which everything exported is counted.

The bundle's manifest says what they were when the model was loaded. Of an older bundle transformers' code is asked,
which takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimrun.ops.bundle.description import named
from slimrun.ops.bundle.manifest import float_shapes
from slimrun.ops.bundle.references import CONFIG, check_references

Shapes = dict[str, tuple[int, ...]]


def float_model(
    folder: Path, config: Mapping[str, Any], manifest: Mapping[str, Any] | None, most: float
) -> Shapes | None:
    """The shape of every tensor of the float model by name; None when the model brings its own code.

    ValueError when config.json asks for more than `most` parameters.
    """
    said = None if manifest is None else float_shapes(manifest)
    if said is not None or config.get("auto_map"):
        return said
    from slimrun.ops.model.auto import AutoConfig
    from slimrun.ops.model.skeleton import shapes_of

    check_references(folder, trust_remote_code=False)
    with named(folder / CONFIG):
        read = AutoConfig.from_pretrained(folder, local_files_only=True)
        return {key: tuple(tensor.shape) for key, tensor in shapes_of(read, most).stored.items()}
