"""What a weight error costs, measured: second moments of the inputs and squared gradients of the outputs.

One forward and one backward pass a prompt, on labels that the model itself draws (so it is the Fisher information;
the text's own labels would give the empirical one: Kunstner et al. 2019). No weight's gradient is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ops.framework.base import Arrays

POWER = 0.5  # of the squared gradients: with 1 a few dozen of 8000 tokens make up the sums, and steps go astray


class FisherStatistics:
    """Sums over samples; an input that several linears read is kept once, under the first of them."""

    def __init__(self, model: nn.Module, linears: Sequence[str]) -> None:
        self.model = model
        self.linears = list(linears)
        self.first: dict[str, str] = {}  # linear -> the first that reads the same input
        self.moments: dict[str, Tensor] = {}  # first -> float32 [k, k], tokens weighted by squared gradients
        self.weights: dict[str, Tensor] = {}  # first -> float32 [tokens of all samples], their weights
        self.reach: dict[str, Tensor] = {}  # first -> float32 [k], max|x|
        self.rows: dict[str, Tensor] = {}  # linear -> float32 [n], squared gradients
        self._inputs: dict[str, Tensor] = {}  # of this sample
        self._sample: dict[str, Tensor] = {}
        self._read: dict[int, tuple[str, Tensor]] = {}  # keeps the tensors alive, so that no id is used twice

    def add(self, sample: Callable[[], Tensor], generator: torch.Generator) -> None:
        """One sample: a call that gives logits [1, T, V]."""
        with torch.enable_grad(), self._watching():
            logits = sample().float().flatten(0, -2)
            with torch.no_grad():
                drawn = torch.multinomial(logits.softmax(dim=-1).cpu(), 1, generator=generator)
                labels = drawn.squeeze(1).to(logits.device)
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            torch.autograd.backward(loss)
        for name, x in self._inputs.items():
            weights = self._sample.pop(name)
            moment = (x * weights.unsqueeze(1)).t() @ x
            self.moments[name] = self.moments[name].add_(moment) if name in self.moments else moment
            self.weights[name] = torch.cat([self.weights.get(name, weights[:0]), weights])
            reach = x.abs().amax(dim=0)
            self.reach[name] = torch.maximum(self.reach.get(name, reach), reach)
        self._inputs.clear()
        self._read.clear()

    def arrays(self) -> Arrays:
        """Everything as numpy arrays: `moment`, `weights`, `reach` of inputs, `rows` and `first` of linears."""
        found: dict[str, Tensor] = {}
        for name in self.linears:
            if name in self.rows:
                first = self.first[name]
                found[f"{name}.rows"] = self.rows[name]
                found[f"{name}.first"] = torch.tensor(self.linears.index(first))
                if first == name:
                    total = self.weights[name].sum().clamp_min(1e-30)
                    found[f"{name}.moment"] = self.moments[name] / total
                    found[f"{name}.weights"] = self.weights[name] / total
                    found[f"{name}.reach"] = self.reach[name]
        return {key: tensor.cpu().numpy() for key, tensor in found.items()}

    @contextmanager
    def _watching(self) -> Iterator[None]:
        model: Any = self.model
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
        handles = [
            model.get_submodule(name).register_forward_hook(
                lambda _, given, out, name=name: self._forward(name, given[0], out)
            )
            for name in self.linears
        ]
        # gradients begin behind the embeddings, whose table needs none
        handles.append(model.get_input_embeddings().register_forward_hook(lambda _, __, out: out.requires_grad_()))
        for parameter in wanted:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter in wanted:
                parameter.requires_grad_(True)

    def _forward(self, name: str, x: Tensor, out: Tensor) -> None:
        first = self._read.setdefault(id(x), (name, x))[0]
        self.first[name] = first
        if first == name:
            self._inputs[name] = x.detach().float().flatten(0, -2)
        tensor: Any = out  # torch leaves register_hook untyped
        tensor.register_hook(lambda gradient: self._backward(name, first, gradient))

    def _backward(self, name: str, first: str, gradient: Tensor) -> None:
        squared = gradient.detach().float().flatten(0, -2).square()
        lengths = squared.sum(dim=1).clamp_min(1e-30)
        rows, weights = lengths.pow(POWER - 1) @ squared, lengths.pow(POWER)
        self.rows[name] = self.rows[name] + rows if name in self.rows else rows
        self._sample[first] = self._sample[first] + weights if first in self._sample else weights
