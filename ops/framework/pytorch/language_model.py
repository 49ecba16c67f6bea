"""A torch causal language model as a run sees it: scoring, greedy generation, and the tensors to store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from slimrun.ops.calibration.base import Sample
from slimrun.ops.format.linear import Int8Table, QuantizedLinear, float_product
from slimrun.ops.format.products import fast_linears
from slimrun.ops.memory import Room
from slimrun.ops.model.output_head import output_layer
from slimrun.ops.model.text import CHECKSUM_PROMPTS, Prefixed, TextModel

from .as_module import AsModule, or_of_module
from .block_by_block import hidden_states, states_after
from .cached_steps import MORE, READ, CachedSteps
from .grouping import of_one_shape, padded
from .network import TorchNetwork
from .noise import noisy
from .storing import save_description, stored_tensors

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class TorchModel(AsModule, TextModel):
    """A causal language model of transformers with its tokenizer, in evaluation mode.

    Scores come from the base model's last hidden states and the output head apart, so that a caller runs the head
    only where it needs it. One prefix is run once for all its continuations; generation is one left-padded batch with
    a cache: both where the cache gives what a full pass gives. All results depend on the call's shapes alone, never on
    earlier calls. The module may be spread over several devices: `device` is where its inputs go, and results come
    back to it. Programs written for a model of transformers take it too: `AsModule`.
    """

    def __init__(
        self,
        module: Any,
        tokenizer: Any,
        name: str,
        fingerprint: str,
        device: torch.device | None = None,
        room: Room | None = None,
    ) -> None:
        super().__init__(tokenizer, module.config, getattr(module, "generation_config", None))
        self.module = module.eval()
        self.name, self.fingerprint = name, fingerprint
        self.room = room or Room()
        self.shapes = {key: tuple(tensor.shape) for key, tensor in self.module.state_dict().items()}
        self.device = device or torch.device(module.device)
        self._base = module.base_model
        self._steps = CachedSteps(self._base, module.config, self.device)

    @cached_property
    def _network(self) -> TorchNetwork:
        """The model block by block; its blocks are told once, which takes two runs of it."""
        return TorchNetwork(self.module, self._base, self.room)

    @property
    def _head(self) -> Any:
        """The output layer; a quantized one takes the place of the float one."""
        return output_layer(self.module)

    @torch.inference_mode()
    def hidden(self, ids: IntArray) -> FloatArray:
        """Hidden states [B, T, H] before the output head, of tokens [B, T]."""
        self.check_tokens(ids, "row")
        with self._fast_linears():
            states = self._base(input_ids=self._tensor(ids), use_cache=False).last_hidden_state
        return _float_array(states)

    def hiddens(self, batches: Sequence[IntArray]) -> Iterator[FloatArray]:
        """The same of each batch; all of them through a block before the next where memory has no room."""
        if not self.room.full or not batches:
            yield from super().hiddens(batches)
            return
        for ids in batches:
            self.check_tokens(ids, "row")
        samples: list[Sample] = [{"input_ids": self._tensor(ids), "use_cache": False} for ids in batches]
        with self._fast_linears():
            states = hidden_states(self._network, samples)
        for index in range(len(batches)):
            yield _float_array(states.take(index))

    def log_probs(self, hidden: FloatArray) -> FloatArray:
        """Log-probabilities [N, V] of hidden states [N, H]."""
        return self.output_head()(hidden)

    def output_head(self) -> Callable[[FloatArray], FloatArray]:
        """`log_probs` as a function that keeps nothing but the output head alive."""
        head, device, dtype = self._head, self.device, self.module.dtype

        @torch.inference_mode()
        def log_probs(hidden: FloatArray) -> FloatArray:
            with fast_linears(dtype, device, tall=True):
                logits = head(torch.from_numpy(hidden).to(device, dtype))
            return _float_array(torch.log_softmax(logits.float(), dim=-1))

        return log_probs

    def head_rows(self) -> FloatArray | None:
        """[V, H] whose float32 product with the states the logits are; None where that is not all, or not in memory."""
        return _plain_rows(self._head) if self.module.dtype == torch.float32 else None

    def continuations(self, prefix: Sequence[int], options: Sequence[Sequence[int]]) -> list[FloatArray]:
        """Token log-probabilities of each option after the prefix, which is run once."""
        return next(self.all_continuations([(prefix, options)]))

    @torch.inference_mode()
    def all_continuations(self, questions: Sequence[Prefixed]) -> Iterator[list[FloatArray]]:
        """The same of each, those of one shape together; all through a block before the next where memory is short."""
        self.check_tokens([prefix for prefix, _ in questions], "prefix")
        self.check_tokens([option for _, options in questions for option in options], "option")
        groups = of_one_shape(questions)
        texts = [tuple(map(self._tensor, padded([questions[i] for i in group]))) for group in groups]
        steps, streamed = self._cached_steps(), None
        if self.room.full and len(questions) > 1 and groups:
            with self._fast_linears():
                streamed = states_after(self._network, steps, [(prefix, rows[:, :-1]) for prefix, rows in texts])
        number_of = {index: number for number, group in enumerate(groups) for index in group}
        scored: dict[int, list[FloatArray]] = {}
        for index in range(len(questions)):
            if index not in scored and index in number_of:
                number = number_of[index]
                prefix, rows = texts[number]
                options = [questions[i][1] for i in groups[number]]
                with self._fast_linears():
                    states = streamed.take(number) if streamed else steps.after_prefix(prefix, rows[:, :-1])
                    scored |= zip(groups[number], _chosen(self._logits(states), rows, options))
            yield scored.pop(index, [])

    @or_of_module
    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy continuations of all prompts in one batch, stop token not included."""
        self.check_request(prompts, max_new_tokens)
        with self._fast_linears():
            return self._cached_steps().greedy(self._logits, prompts, max_new_tokens, self.stop_tokens())

    @contextmanager
    def disturbed(self) -> Iterator[bool]:
        """Meanwhile the embeddings give a little noise too, as another order of summation would in the end."""
        with noisy(self.module, seed=0):
            yield True

    @torch.inference_mode()
    def logits_checksum(self) -> str:
        """sha256 over the logits of a few fixed prompts."""
        digest = hashlib.sha256()
        for prompt in CHECKSUM_PROMPTS:
            with self._fast_linears():
                logits = self.module(input_ids=self._tensor([self.encode(prompt)]), use_cache=False).logits
            digest.update(np.ascontiguousarray(_float_array(logits)).tobytes())
        return digest.hexdigest()

    def quantized(self) -> list[str]:
        """Names of the quantized linears and tables, in module order."""
        return [name for name, module in self.module.named_modules() if isinstance(module, QuantizedLinear)]

    def tensors(self) -> dict[str, Tensor]:
        """What the bundle stores; see `stored_tensors`."""
        return stored_tensors(self.module)

    def save_description(self, folder: Path) -> None:
        """config.json (rope theta also at the top level, where older readers look) and the tokenizer's files."""
        save_description(self.module, self.tokenizer, folder)

    def _cached_steps(self) -> CachedSteps:
        """The base model with its cache, tried on first use.

        Quantized linears compute in floats meanwhile: static int8 differs as much between shapes as wrong states do.
        """
        steps = self._steps
        if not steps.tried:
            tokens = [*self.encode(CHECKSUM_PROMPTS[0]), 0] * (READ + MORE)
            with float_products(self.module):
                steps.try_out(tokens[: READ + MORE])
            self.notes += steps.lack
        return steps

    def _logits(self, states: Tensor) -> Tensor:
        with fast_linears(self.module.dtype, self.device, tall=True):
            logits: Tensor = self._head(states)
        return logits

    def _fast_linears(self) -> AbstractContextManager[object]:
        return fast_linears(self.module.dtype, self.device)

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.long, device=self.device)


@contextmanager
def float_products(module: nn.Module) -> Iterator[None]:
    """Meanwhile quantized linears leave their inputs float."""
    linears = [child for child in module.modules() if isinstance(child, QuantizedLinear)]
    linears = [child for child in linears if not isinstance(child, Int8Table)]  # which leaves them float anyway
    # accelerate's hooks, which move inputs between devices, keep what they call under another name
    places = [(vars(linear), "_old_forward" if hasattr(linear, "_hf_hook") else "forward") for linear in linears]
    own = [place.get(name) for place, name in places]
    for linear, (place, name) in zip(linears, places):
        place[name] = partial(float_product, linear)
    try:
        yield
    finally:
        for (place, name), before in zip(places, own):
            if before is None:
                del place[name]
            else:
                place[name] = before


def check_output_head(model: TorchModel) -> None:
    """Refuse an architecture whose logits are not simply its head applied to its last hidden states."""
    module: Any = model.module
    ids = torch.tensor([[1, 2, 3, 4]], device=model.device)
    with torch.inference_mode():
        logits = module(input_ids=ids, use_cache=False).logits
        states = getattr(module.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
        if states is None or states.shape[:2] != ids.shape:
            raise ValueError(
                f"{type(module).__name__} has no base model that gives last_hidden_state [batch, tokens, channels] "
                "apart from its output layer; this is not supported"
            )
        apart = output_layer(module)(states).to(logits.device)
    if not bool(torch.isfinite(logits).all()):
        raise ArithmeticError("the float model's logits are not finite numbers; its weights or model.dtype are wrong")
    if logits.shape != apart.shape or not torch.allclose(logits, apart, rtol=1e-3, atol=1e-3):
        raise ValueError(f"{type(module).__name__} changes its logits after the output layer; this is not supported")


def _plain_rows(head: Any) -> FloatArray | None:
    """The rows [V, H] of a head that is a float32 product in main memory and nothing else."""
    if type(head) is not nn.Linear or head.bias is not None:
        return None
    weight = head.weight.detach()
    return weight.numpy() if weight.device.type == "cpu" and weight.dtype == torch.float32 else None


def _chosen(logits: Tensor, rows: Tensor, options: Sequence[Sequence[Sequence[int]]]) -> Iterator[list[FloatArray]]:
    """The log-probabilities of each question's options, given the logits [B, T, V] before each of their tokens."""
    scores = torch.log_softmax(logits.to(rows.device).float(), dim=-1)
    chosen = iter(scores.gather(2, rows.unsqueeze(2)).squeeze(2))
    return ([_float_array(next(chosen)[: len(option)]) for option in several] for several in options)


def _float_array(tensor: Tensor) -> FloatArray:
    return np.asarray(tensor.detach().to(torch.float32).cpu().numpy())
