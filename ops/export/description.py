"""config.json, the tokenizer's files and code, in words that transformers 4 and 5 and the engines on them read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from slimrun.ops.bundle.manifest import NAME as MANIFEST
from slimrun.ops.bundle.references import CONFIG

from .plan import Change
from .source import Source

TOKENIZER_CONFIG = "tokenizer_config.json"
ROUTING = {  # what transformers has in its code, and vLLM looks for in config.json: without it experts are others
    "deepseek_v3": {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
}
OWN = ("quant_model_", MANIFEST, CONFIG, TOKENIZER_CONFIG)  # how names of files begin that are not copied


def write_description(source: Source, dtype: torch.dtype, folder: Path, **more: Any) -> list[Change]:
    """Write all files beside the weights, with `more` keys in config.json; what differs from the bundle's."""
    for file in source.folder.iterdir():
        if not file.name.startswith(OWN):
            copy = shutil.copytree if file.is_dir() else shutil.copyfile
            copy(file, folder / file.name)
    config = config_of(source, dtype) | more
    _write(folder / CONFIG, config)
    new = sorted(config.keys() - source.config.keys())
    changes = (
        [Change(f"{CONFIG} says more", ", ".join(new), "readers of transformers 4, or of the engine")] if new else []
    )
    if config.get("tie_word_embeddings") != source.config.get("tie_word_embeddings"):
        changes.append(Change("tie_word_embeddings -> false", CONFIG, "the output layer has integers of its own"))
    return changes + _tokenizer(source.folder / TOKENIZER_CONFIG, folder / TOKENIZER_CONFIG)


def config_of(source: Source, dtype: torch.dtype) -> dict[str, Any]:
    """The model's config in the words of transformers 5 and of 4."""
    name = str(dtype).removeprefix("torch.")
    config = source.config | {"dtype": name, "torch_dtype": name}
    config.pop("quantization_config", None)  # the bundle's own reader
    if "tie_word_embeddings" in config:
        config["tie_word_embeddings"] = source.tied
    for key, value in ROUTING.get(str(config.get("model_type")), {}).items():
        config.setdefault(key, value)
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_type" in rope:
        config["rope_theta"] = rope.get("rope_theta", config.get("rope_theta"))
        if rope["rope_type"] != "default":
            config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return config


def _tokenizer(source: Path, target: Path) -> list[Change]:
    """Write tokenizer_config.json with names that transformers 4 knows too."""
    if not source.is_file():
        return []
    content = json.loads(source.read_text(encoding="utf-8"))
    changes = []
    if content.get("tokenizer_class") == "TokenizersBackend":
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
        changes.append("tokenizer_class -> PreTrainedTokenizerFast")
    if isinstance(content.get("extra_special_tokens"), list):
        content["additional_special_tokens"] = content.pop("extra_special_tokens")
        changes.append("extra_special_tokens -> additional_special_tokens")
    _write(target, content)
    return [Change(change, TOKENIZER_CONFIG, "transformers 4 does not know the other name") for change in changes]


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
