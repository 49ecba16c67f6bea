"""A torch causal language model as a run sees it: scoring, greedy generation, and the tensors to store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache

from .int8_linear import Int8Linear

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

CHECKSUM_PROMPTS = ("The capital of France is", "def add(a, b):\n    return", "中国的首都在哪里？")


class TorchModel:
    """A causal language model of transformers with its tokenizer, in evaluation mode.

    Scores come from the base model's last hidden states and the output head apart, so that a caller runs the head
    only where it needs it. One prefix is run once for all its continuations; generation is one left-padded batch
    with a KV cache. All results depend on the call's shapes alone, never on earlier calls.
    """

    def __init__(self, module: Any, tokenizer: Any, name: str, fingerprint: str) -> None:
        self.module = module.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.fingerprint = fingerprint
        self.device = torch.device(module.device)
        self._base = module.base_model
        self._head = module.get_output_embeddings()

    @property
    def context(self) -> int:
        """Longest window in tokens."""
        return int(getattr(self.module.config, "max_position_embeddings", 2048))

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, no special ones."""
        return list(self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])

    def encode_prompt(self, text: str) -> list[int]:
        """Tokens of a user's turn: through the chat template when the tokenizer has one, else plain text."""
        if self.tokenizer.chat_template is None:
            return list(self.tokenizer(text)["input_ids"])
        turn = [{"role": "user", "content": text}]
        rendered = self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return self.encode(rendered)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, special ones skipped."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    @torch.inference_mode()
    def hidden(self, ids: IntArray) -> FloatArray:
        """Hidden states [B, T, H] before the output head, of tokens [B, T]."""
        states = self._base(input_ids=self._tensor(ids), use_cache=False).last_hidden_state
        return _float_array(states)

    def log_probs(self, hidden: FloatArray) -> FloatArray:
        """Log-probabilities [N, V] of hidden states [N, H]."""
        return self.output_head()(hidden)

    def output_head(self) -> Callable[[FloatArray], FloatArray]:
        """`log_probs` as a function that keeps nothing but the output head alive."""
        head, device, dtype = self._head, self.device, self.module.dtype

        @torch.inference_mode()
        def log_probs(hidden: FloatArray) -> FloatArray:
            logits = head(torch.from_numpy(hidden).to(device, dtype))
            return _float_array(torch.log_softmax(logits.float(), dim=-1))

        return log_probs

    @torch.inference_mode()
    def continuations(self, prefix: Sequence[int], options: Sequence[Sequence[int]]) -> list[FloatArray]:
        """Token log-probabilities of each option after the prefix, which is run once."""
        cache = DynamicCache(config=self.module.config)
        first = self._base(input_ids=self._tensor([list(prefix)]), past_key_values=cache, use_cache=True)
        start = first.last_hidden_state[:, -1:]
        count, length = len(options), max(len(option) for option in options)
        padded = self._tensor([[*option, *[0] * (length - len(option))] for option in options])
        states = start.expand(count, -1, -1)
        if length > 1:
            cache.batch_repeat_interleave(count)
            later = self._base(input_ids=padded[:, :-1], past_key_values=cache, use_cache=True).last_hidden_state
            states = torch.cat([states, later], dim=1)
        scores = torch.log_softmax(self._head(states).float(), dim=-1)
        chosen = scores.gather(2, padded.unsqueeze(2)).squeeze(2)
        return [_float_array(row[: len(option)]) for row, option in zip(chosen, options)]

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy continuations of all prompts in one batch, stop token not included."""
        stop = self._stop_tokens()
        filler = min(stop, default=0)
        longest = max(len(prompt) for prompt in prompts)
        ids = self._tensor([[*[filler] * (longest - len(prompt)), *prompt] for prompt in prompts])
        lengths = self._tensor([len(prompt) for prompt in prompts])
        columns = torch.arange(longest + max_new_tokens, device=self.device)
        mask = (columns >= longest - lengths.unsqueeze(1)).long()
        cache = DynamicCache(config=self.module.config)
        positions = (mask[:, :longest].cumsum(1) - 1).clamp_min(0)
        produced: list[Tensor] = []
        finished = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        for step in range(max_new_tokens):
            out = self._base(
                input_ids=ids,
                attention_mask=mask[:, : longest + step],
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            token = self._head(out.last_hidden_state[:, -1]).argmax(dim=-1)
            finished |= torch.isin(token, self._tensor(sorted(stop)))
            produced.append(torch.where(finished, torch.full_like(token, -1), token))
            if bool(finished.all()):
                break
            ids, positions = token.unsqueeze(1), lengths.unsqueeze(1) + step
        rows = torch.stack(produced, dim=1).tolist()
        return [[token for token in row if token >= 0] for row in rows]

    @torch.inference_mode()
    def logits_checksum(self) -> str:
        """sha256 over the logits of a few fixed prompts."""
        digest = hashlib.sha256()
        for prompt in CHECKSUM_PROMPTS:
            ids = self._tensor([self.encode(prompt)])
            logits = self.module(input_ids=ids, use_cache=False).logits
            digest.update(np.ascontiguousarray(_float_array(logits)).tobytes())
        return digest.hexdigest()

    def quantized(self) -> list[str]:
        """Names of the quantized linears, in module order."""
        return [name for name, module in self.module.named_modules() if isinstance(module, Int8Linear)]

    def tensors(self) -> dict[str, Tensor]:
        """What the bundle stores: quantized linears in their file format, the rest untouched, tied ones once."""
        quantized = {name: self.module.get_submodule(name) for name in self.quantized()}
        stored = {
            f"{name}.{suffix}": tensor
            for name, linear in quantized.items()
            for suffix, tensor in linear.stored().items()
        }
        seen: set[tuple[int, int]] = set()
        for key, tensor in self.module.state_dict().items():
            identity = (tensor.data_ptr(), tensor.numel())
            if key.rpartition(".")[0] in quantized or identity in seen:
                continue
            seen.add(identity)
            stored[key] = tensor
        return {key: tensor.detach().cpu().contiguous() for key, tensor in stored.items()}

    def save_description(self, folder: Path) -> None:
        """config.json (rope theta also at the top level, where older readers look) and the tokenizer's files."""
        config = self.module.config
        theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta")
        if theta is not None:
            config.rope_theta = theta
        config.save_pretrained(folder)
        if self.module.can_generate():
            self.module.generation_config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _stop_tokens(self) -> set[int]:
        stop: set[int] = set()
        for holder in (self.module.generation_config, self.module.config, self.tokenizer):
            ids = getattr(holder, "eos_token_id", None)
            stop.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
        return stop

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.long, device=self.device)


def check_output_head(model: TorchModel) -> None:
    """Refuse an architecture whose logits are not simply its head applied to its last hidden states."""
    module: Any = model.module
    ids = torch.tensor([[1, 2, 3, 4]], device=model.device)
    with torch.inference_mode():
        logits = module(input_ids=ids, use_cache=False).logits
        states = module.base_model(input_ids=ids, use_cache=False).last_hidden_state
        apart = module.get_output_embeddings()(states)
    if logits.shape != apart.shape or not torch.allclose(logits, apart, rtol=1e-3, atol=1e-3):
        raise ValueError(f"{type(module).__name__} changes its logits after the output layer; this is not supported")


def _float_array(tensor: Tensor) -> FloatArray:
    return np.asarray(tensor.detach().to(torch.float32).cpu().numpy())
