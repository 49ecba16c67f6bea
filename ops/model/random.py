"""A model of random weights, of the shape that `architecture` describes, with a tokenizer of bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from slimrun.ops.model.base import Model, Outline, check_dtype
from slimrun.ops.model.outline import architecture_key, config_of, outline_of


@dataclass(frozen=True)
class Random(Model):
    """A transformers model drawn from a seed; `architecture` holds the keys of its config."""

    name: str
    dtype: str = "float32"
    architecture: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        check_dtype(self.dtype)
        if not self.architecture:
            raise ValueError("architecture is empty; it needs model_type and the keys of that config of transformers")

    def origin(self) -> str:
        """Where the weights come from, for a person."""
        return "a seed"

    def drawn(self) -> Any:
        """The transformers module with random weights, equal for equal seeds."""
        import torch

        from slimrun.ops.model.auto import AutoModelForCausalLM
        from slimrun.ops.model.experts import unstack

        dtype = torch.float32 if self.dtype == "auto" else getattr(torch, self.dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            module = AutoModelForCausalLM.from_config(config_of(self.architecture), dtype=dtype)
        unstack(module)
        return module

    def config(self) -> Any:
        """The transformers config of the architecture."""
        return config_of(self.architecture)

    def tokenizer(self) -> Any:
        """A tokenizer of bytes."""
        from slimrun.ops.model.tokenizer import byte_tokenizer

        return byte_tokenizer()

    def outline(self, formats: Collection[str]) -> Outline:
        """The outline of the architecture."""
        return outline_of(self)

    def fingerprint(self, *, read: bool = True) -> str:
        """Hash of the architecture and the seed; torch draws, so its version counts."""
        import torch

        described = json.dumps([self.architecture, self.seed, torch.__version__], sort_keys=True)
        return f"{hashlib.sha256(described.encode()).hexdigest()}:{self.dtype}"

    def key(self) -> str:
        """Hash of the architecture."""
        return architecture_key(self, self.architecture)
