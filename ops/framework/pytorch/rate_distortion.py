"""Rate-distortion optimized quantization of a torch model: measure, fold, search the slope, round, fix the ranges."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ops.compress.compressor import Compressor
from ops.compress.native import Native
from ops.framework.base import Arrays, Layer, Progress, Remember, call
from ops.framework.calibrator import FLOAT_SAMPLES, Sample, Watcher, weight_error
from ops.framework.int8_linear import quantized_linear
from ops.quant.base import ActivationGrid, QuantizedWeight, quantize_activation, round_to_grid
from ops.quant.rdoq import (
    RDOQ,
    SCALE_BITS,
    Importance,
    code_lengths,
    feedback,
    importance,
    row_steps,
    smoothing_scale,
)

from .fisher import FisherStatistics
from .folding import Fold, find_folds, fold
from .network import Calibrator, TorchNetwork

log = logging.getLogger(__name__)

WEIGHTS_ALONE = "W8A16"  # the format of a linear whose input stays float
TOLERANCE = 0.004  # of the bits that a search may miss
PASSES = 10  # of rounding, at most


class RateDistortionCalibrator(Calibrator):
    """Quantizes `model` in place so that its linears take `quantizer.target_bits`, coded, a weight."""

    quantizer: RDOQ
    network: TorchNetwork

    def __init__(
        self,
        model: nn.Module,
        quantizer: RDOQ,
        samples: Sequence[Sample],
        forward: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(model, quantizer, samples, forward)
        self.model = model
        self._token_weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def quantize(self, remember: Remember = call) -> None:
        """Replace every selected linear by its integers."""
        shapes = self.network.linears()
        self.layers = {name: Layer(name, shape, quantized=False) for name, shape in shapes.items()}
        if not self.samples:
            raise ValueError("static activations need calibration samples, and there are none")
        ignored = self.quantizer.ignored(list(shapes))
        selected = [name for name in shapes if name not in ignored]
        folds = find_folds(self.network, [partial(self._run, 0)])
        if self.quantizer.smooth_alpha is None:
            folds = []
        known = remember(partial(self._measure, selected))
        moments, rows = self._fold(folds, known, selected)
        costs = self._importances(known, selected, moments, rows)
        for name, weight in self._search(selected, costs).items():
            self._replace(name, weight)
        self._token_weights = {  # of each linear, times its mean squared gradient
            name: torch.from_numpy(known[f"{selected[int(known[f'{name}.first'])]}.weights"]) * rows[name].mean()
            for name in selected
        }

    @torch.no_grad()
    def calibrate(self, progress: Progress = lambda done, total: None) -> list[Layer]:
        """Fix every input grid, then leave the inputs float that lose most on theirs."""
        weights = dict(self._weights)
        layers = super().calibrate(progress)
        losses = self._input_losses(weights)
        for name, loss in losses.items():
            self.layers[name].input_loss = loss
        worst = sorted(losses, key=lambda name: -losses[name])[: int(self.quantizer.max_share * len(losses))]
        for name in worst:
            linear: Any = self.model.get_submodule(name)
            self.network.replace(name, quantized_linear(WEIGHTS_ALONE, weights[name], linear.bias, linear.dtype))
            self.layers[name].fallback = True
        return layers

    def _input_losses(self, weights: Mapping[str, QuantizedWeight]) -> dict[str, float]:
        """Fisher estimate of what the input grid of each linear costs, over the first samples."""
        losses = dict.fromkeys(weights, 0.0)
        done = 0

        def measure(name: str) -> Watcher:
            module: Any = self.model.get_submodule(name)
            grid: ActivationGrid = module.grid
            steps = weights[name].scale

            def watch(x: Tensor) -> None:
                rows = x.float().flatten(0, -2)
                error = (quantize_activation(rows, grid).float() - grid.offset) * grid.scale - rows
                moved = (error @ weights[name].values.float().t()) * steps.t()
                tokens = self._token_weights[name][done : done + len(rows)]
                losses[name] += float(moved.square().sum(dim=1).cpu() @ tokens)

            return watch

        with self.network.watching({name: measure(name) for name in weights}):
            for index, sample in enumerate(self.samples[:FLOAT_SAMPLES]):
                self._run(index)
                assert isinstance(sample, dict)
                done += sample["input_ids"].shape[1]
        return losses

    def _measure(self, selected: list[str]) -> Arrays:
        """The Fisher statistics of the float model."""
        statistics = FisherStatistics(self.model, selected)
        generator = torch.Generator().manual_seed(0)
        for sample in self.samples:
            assert isinstance(sample, dict)
            statistics.add(partial(self._logits, sample), generator)
        return statistics.arrays()

    def _logits(self, sample: dict[str, Any]) -> Tensor:
        logits = self.model(**sample).logits
        assert isinstance(logits, Tensor)
        return logits

    def _fold(
        self, folds: Sequence[Fold], known: Arrays, selected: list[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Smooth the inputs of all folds; moments of inputs and squared gradients of rows of the smoothed model."""
        tensors = {key: torch.from_numpy(array) for key, array in known.items()}
        moments = {key.removesuffix(".moment"): tensor for key, tensor in tensors.items() if key.endswith(".moment")}
        rows = {key.removesuffix(".rows"): tensor.clone() for key, tensor in tensors.items() if key.endswith(".rows")}
        scales: list[tuple[Fold, Tensor]] = []
        for one in folds:
            readers = [name for name in one.readers if name in rows]
            if not readers or len(readers) < len(one.readers):
                continue
            first = selected[int(tensors[f"{readers[0]}.first"])]
            weights = [self.network.affine(name)[0] for name in readers]
            weight_reach = torch.stack([weight.abs().amax(dim=0).float().cpu() for weight in weights]).amax(dim=0)
            reach = one.per_producer(tensors[f"{first}.reach"])
            assert self.quantizer.smooth_alpha is not None
            scale = smoothing_scale(reach, one.per_producer(weight_reach), self.quantizer.smooth_alpha)
            scales.append((one, scale))
            moments[first] = moments[first] / scale / scale.unsqueeze(1)
            if one.producer in rows:  # its outputs are divided, so their gradients grow
                by_row = torch.ones_like(rows[one.producer])
                by_row[one.of] = scale.square()
                rows[one.producer] *= by_row
        fold(self.network, scales, partial(self._run, 0))
        return moments, rows

    def _importances(
        self, known: Arrays, selected: list[str], moments: dict[str, Tensor], rows: dict[str, Tensor]
    ) -> dict[str, Importance]:
        """What errors cost, by linear; inputs that are shared are factored once."""
        found: dict[str, Importance] = {}
        for name in selected:
            first, device = selected[int(known[f"{name}.first"])], self.network.affine(name)[0].device
            own = rows[name].to(device)
            if first == name:
                found[name] = importance(moments.pop(first).to(device), own, self.quantizer.damping)
            else:
                found[name] = Importance(found[first].factor, found[first].order, own)
        return found

    def _search(self, selected: list[str], costs: dict[str, Importance]) -> dict[str, QuantizedWeight]:
        """Round everything at the slope whose coded size meets the target."""
        weights = {name: self.network.affine(name)[0].detach().float() for name in selected}
        count = sum(weight.numel() for weight in weights.values())
        overhead = SCALE_BITS * sum(weight.shape[0] for weight in weights.values()) / count
        level = self._first_level(weights, costs, self.quantizer.target_bits - overhead)
        lengths: dict[str, Tensor] = {}
        for attempt in range(PASSES):
            compressor = Compressor(Native())
            found: dict[str, QuantizedWeight] = {}
            for name, weight in weights.items():
                steps = row_steps(costs[name].slope, weight, level)
                bits = lengths.get(name)
                if bits is None:
                    bits = code_lengths(round_to_grid(weight, steps))
                values = feedback(weight, steps, costs[name], bits, self.quantizer.price, level)
                lengths[name] = code_lengths(values)
                found[name] = QuantizedWeight(values, steps)
                compressor.add(name, values.cpu().numpy())
            size = sum(part.nbytes for parts in compressor.finish().values() for part in parts.values())
            reached = 8 * size / count + overhead
            log.info("rounding %d: level %.4g gives %.4f bits a weight", attempt + 1, level, reached)
            miss = reached - self.quantizer.target_bits
            if abs(miss) <= TOLERANCE * self.quantizer.target_bits:
                break
            level *= 2**miss  # twice the step, a bit less
        return found

    def _first_level(self, weights: dict[str, Tensor], costs: dict[str, Importance], target: float) -> float:
        """The level at which gaussian rows would have the target's entropy."""
        total = bits = 0.0
        for name, weight in weights.items():
            spread = weight.std(dim=1).clamp_min(1e-30)
            slope = costs[name].slope.clamp_min(1e-30)
            bits += float((spread * slope.sqrt()).log2().sum()) * weight.shape[1]
            total += weight.numel()
        gaussian = 0.5 * math.log2(2 * math.pi * math.e)
        return float(2 ** (bits / total + gaussian - target))

    def _replace(self, name: str, quantized: QuantizedWeight) -> None:
        with self.network.linear(name) as (weight, bias):
            layer = self.layers[name]
            layer.quantized = True
            layer.sqnr_db, layer.clipped = weight_error(weight, quantized)
            linear = quantized_linear(self.quantizer.quant_type, quantized, bias, weight.dtype)
        self._weights[name], self._linears[name] = quantized, linear
        self.network.replace(name, linear)
