"""Running a model token by token with a cache of what it has read, where that gives what one pass over all gives.

It does where the cache holds keys and values. Recurrent models (Mamba, RWKV) go on as if each step were the first, or
take padding on the left for text, and hybrids have states that several tokens at once do not find again. What a model
does shows in what it computes: a few tokens are tried, and a cache that fails is not used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

READ, MORE = 6, 3  # tokens that are tried: read at once, and then step by step
ROOM = 64  # tokens that a cache has room for beyond those it was last moved with
SHORTER = 2  # tokens that the second of two prompts lacks
# distance of states, over their norm. Right ones on 48 random layers and SmolLM2: 1e-6, 4e-3, 2.4e-2; wrong ones of
# eight architectures: 2e-4 to 1, those of generation from 0.13 on
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
NO_CACHE = "the model's cache does not give what a pass over the whole text gives"
FAILURES = (AttributeError, TypeError, ValueError, RuntimeError, IndexError, KeyError, NotImplementedError)


class Batch(Protocol):
    """Prompts that grow by a token a step."""

    def last_states(self) -> Tensor:
        """States [B, H] of the last token of each."""

    def append(self, tokens: Tensor) -> None:
        """Add a token [B] to each prompt."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these prompts [b] only."""


class CachedSteps:
    """A base model that reads some tokens at a time. Until `try_out` says otherwise its cache is trusted."""

    def __init__(self, base: Any, config: Any, device: torch.device) -> None:
        self.base = base
        self.config = config
        self.device = device
        self.tried = False
        self.generates = True  # a batch of prompts, step by step
        self.keeps_prefix = True  # for several texts that begin with it
        # what transformers 5.24 calls cache was past_key_values before, and is in custom code
        self._name = "cache" if "cache" in inspect.signature(type(base).forward).parameters else "past_key_values"

    @torch.inference_mode()
    def try_out(self, tokens: Sequence[int]) -> None:
        """Compare steps with full passes on READ + MORE tokens."""
        self.tried = True
        self.generates = self._right(self._padded_states, tokens)
        recurrent = any(hasattr(layer, "conv_states") for layer in self.new_cache().layers)  # several tokens at once
        self.keeps_prefix = self.generates and not recurrent and self._right(self._prefix_states, tokens)

    @property
    def lack(self) -> list[str]:
        """What a reader of the scores must know of the cache, once it was tried."""
        if not self.generates:
            return [f"{NO_CACHE}: answers are generated without one, from the whole text for each token"]
        if not self.keeps_prefix:
            return [f"{NO_CACHE}, for several tokens at once: a prompt is read anew for each option"]
        return []

    def new_cache(self) -> DynamicCache:
        """An empty cache; without num_hidden_layers (custom code) it grows by what it is given."""
        if not hasattr(self.config, "num_hidden_layers"):
            return DynamicCache()
        cache = DynamicCache(config=self.config)
        cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        return cache

    def run(self, ids: Tensor, cache: DynamicCache, **named: Tensor) -> Tensor:
        """States [B, T, H] of the tokens [B, T] that come next."""
        out = self.base(input_ids=ids, use_cache=True, **{self._name: cache}, **named)
        states: Tensor = out.last_hidden_state
        return states

    def fill(self, cache: DynamicCache, tokens: int, layers: int) -> None:
        """Make empty layers of a cache as if each had read so many tokens: masks and positions follow."""
        stand_in = torch.zeros(1, 1, tokens, 1, device=self.device)
        for number in range(max(layers, len(cache.layers))):
            if not cache.get_seq_length(number):
                cache.update(stand_in, stand_in, number)

    def full(self, ids: Tensor) -> Tensor:
        """States [B, T, H] of all tokens [B, T] in one pass."""
        states: Tensor = self.base(input_ids=ids, use_cache=False).last_hidden_state
        return states

    def after_prefix(self, prefix: Tensor, later: Tensor) -> Tensor:
        """States [Q B, 1 + T, H] of the last tokens of prefixes [Q, P] and of tokens [Q B, T] after them, B each."""
        each = len(later) // len(prefix)
        if not self.keeps_prefix:
            return self.full(joined(prefix, later))[:, prefix.shape[1] - 1 :]
        cache = self.new_cache()
        states = self.run(prefix, cache)[:, -1:].repeat_interleave(each, dim=0)
        if later.shape[1]:
            cache.batch_repeat_interleave(each)
            states = torch.cat([states, self.run(later, cache)], dim=1)
        return states

    def batch(self, prompts: Sequence[Sequence[int]], more: int, filler: int) -> Batch:
        """The prompts in one batch, for `more` steps."""
        return PaddedBatch(self, prompts, more, filler) if self.generates else WholeBatch(self, prompts, filler)

    def greedy(
        self, head: Callable[[Tensor], Tensor], prompts: Sequence[Sequence[int]], length: int, stop: Collection[int]
    ) -> list[list[int]]:
        """The likeliest next tokens of all prompts in one batch, at most `length` each, without the one that ends them.

        `head` makes logits [B, V] of states [B, H].
        """
        if len(prompts) == 0 or length == 0:
            return [[] for _ in prompts]
        batch = self.batch(prompts, length, min(stop, default=0))
        answers: list[list[int]] = [[] for _ in prompts]
        going = answers
        for _ in range(length):
            tokens = head(batch.last_states()).argmax(dim=-1).to(self.device)
            rows = [row for row, token in enumerate(tokens.tolist()) if token not in stop]
            if not rows:
                break
            if len(rows) < len(going):
                going = [going[row] for row in rows]
                tokens = tokens[rows]
                batch.keep(torch.tensor(rows, device=self.device))
            for answer, token in zip(going, tokens.tolist()):
                answer.append(token)
            batch.append(tokens)
        return answers

    def _right(self, states: Any, tokens: Sequence[int]) -> bool:
        try:
            pairs = states(list(tokens))
        except torch.OutOfMemoryError:
            raise
        except FAILURES:  # each family of models fails in its own way on a cache that is not its own
            return False
        return all(
            float((stepped - expected).float().norm())
            <= TOLERANCE.get(expected.dtype, TOLERANCE[torch.bfloat16]) * float(expected.float().norm())
            for stepped, expected in pairs
        )

    def _padded_states(self, tokens: list[int]) -> list[tuple[Tensor, Tensor]]:
        """(stepped, full) states of two prompts in a batch, one padded, at each step."""
        starts = (0, SHORTER)
        full = [self.full(torch.tensor([tokens[start:]], device=self.device))[0] for start in starts]
        batch = PaddedBatch(self, [tokens[start:READ] for start in starts], MORE, tokens[0])
        pairs = []
        for step in range(MORE):
            states = batch.last_states()
            pairs += [(states[row], full[row][READ - 1 + step - start]) for row, start in enumerate(starts)]
            batch.append(torch.tensor([tokens[READ + step]] * 2, device=self.device))
        return pairs

    def _prefix_states(self, tokens: list[int]) -> list[tuple[Tensor, Tensor]]:
        """(stepped, full) states of two texts after a prefix."""
        prefix = torch.tensor([tokens[:READ]], device=self.device)
        later = torch.tensor([tokens[READ:], tokens[:MORE]], device=self.device)
        stepped = self.after_prefix(prefix, later)
        full = [self.full(torch.cat([prefix[0], row]).unsqueeze(0))[0, READ - 1 :] for row in later]
        return list(zip(stepped, full))


def joined(prefix: Tensor, later: Tensor) -> Tensor:
    """Tokens [Q B, P + T]: each of the prefixes [Q, P] before B rows of [Q B, T]."""
    return torch.cat([prefix.repeat_interleave(len(later) // len(prefix), dim=0), later], dim=1)


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers brings no types for it
    """A layer of a cache with room ahead, so that a step writes its token and does not copy all that were before."""

    def __init__(self) -> None:
        super().__init__()
        self._room: tuple[Tensor, Tensor] | None = None  # [B, heads, more than there are, channels]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens, the new ones last."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, new = self.get_seq_length(), key_states.shape[-2]
        if not start:  # a text that is read once needs no room
            self.keys, self.values = key_states.contiguous(), value_states.contiguous()
            return self.keys, self.values
        halves = ((self.keys, key_states), (self.values, value_states))
        # whoever selects, repeats or crops has put other tensors in place of the room's
        if self._room is None or self.keys.data_ptr() != self._room[0].data_ptr() or not self._fits(start + new):
            self._room = (_with_room(*halves[0]), _with_room(*halves[1]))
        else:
            for half, (before, states) in zip(self._room, halves):
                half[..., before.shape[-2] : start + new, :] = states
        self.keys, self.values = (half[..., : start + new, :] for half in self._room)
        return self.keys, self.values

    def _fits(self, tokens: int) -> bool:
        return self._room is not None and tokens <= self._room[0].shape[-2] and len(self.keys) == len(self._room[0])


def _with_room(before: Tensor, new: Tensor) -> Tensor:
    """The states of tokens and of new ones after them, in a tensor that holds ROOM more."""
    length = before.shape[-2] + new.shape[-2]
    room = new.new_empty(*new.shape[:-2], length + ROOM, new.shape[-1])
    room[..., : before.shape[-2], :] = before
    room[..., before.shape[-2] : length, :] = new
    return room


class PaddedBatch:
    """Prompts padded on the left with `filler`; each token is read once."""

    def __init__(self, steps: CachedSteps, prompts: Sequence[Sequence[int]], more: int, filler: int) -> None:
        self.steps = steps
        self.cache = steps.new_cache()
        self.longest = self.width = max(map(len, prompts))
        rows = [[*[filler] * (self.longest - len(prompt)), *prompt] for prompt in prompts]
        self.ids = torch.tensor(rows, device=steps.device)
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=steps.device)
        columns = torch.arange(self.longest + more, device=steps.device)
        self.mask = (columns >= self.longest - self.lengths.unsqueeze(1)).long()
        self.positions = (self.mask[:, : self.longest].cumsum(1) - 1).clamp_min(0)

    def last_states(self) -> Tensor:
        """States [B, H] of the last token of each."""
        mask = self.mask[:, : self.width]
        return self.steps.run(self.ids, self.cache, attention_mask=mask, position_ids=self.positions)[:, -1]

    def append(self, tokens: Tensor) -> None:
        """Add a token [B] to each prompt."""
        self.ids = tokens.unsqueeze(1)
        self.positions = (self.lengths + self.width - self.longest).unsqueeze(1)
        self.width += 1

    def keep(self, rows: Tensor) -> None:
        """Go on with these prompts [b] only."""
        self.cache.batch_select_indices(rows)
        self.lengths, self.mask = self.lengths[rows], self.mask[rows]


class WholeBatch:
    """Prompts padded on the right, which nothing before it sees; all of them are read anew at each step."""

    def __init__(self, steps: CachedSteps, prompts: Sequence[Sequence[int]], filler: int) -> None:
        self.steps = steps
        self.rows = [list(prompt) for prompt in prompts]
        self.filler = filler

    def last_states(self) -> Tensor:
        """States [B, H] of the last token of each."""
        longest = max(map(len, self.rows))
        padded = [[*row, *[self.filler] * (longest - len(row))] for row in self.rows]
        states = self.steps.full(torch.tensor(padded, device=self.steps.device))
        return states[torch.arange(len(self.rows)), torch.tensor([len(row) - 1 for row in self.rows])]

    def append(self, tokens: Tensor) -> None:
        """Add a token [B] to each prompt."""
        for row, token in zip(self.rows, tokens.tolist()):
            row.append(token)

    def keep(self, rows: Tensor) -> None:
        """Go on with these prompts [b] only."""
        self.rows = [self.rows[row] for row in rows.tolist()]
