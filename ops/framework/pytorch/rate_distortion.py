"""Rate-distortion optimized quantization of a torch model: measure, fold, search the slope, round, fix the ranges."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from slimrun.ops.format.arithmetic import ActivationGrid, QuantizedWeight, quantize_activation
from slimrun.ops.format.linear import FORMATS, WeightOnlyLinear, quantized_linear
from slimrun.ops.framework.base import Arrays, Layer, Progress, Remember, call, silent
from slimrun.ops.framework.calibrator import FLOAT_SAMPLES, Sample, Watcher, weight_error
from slimrun.ops.framework.smoothing import skipped
from slimrun.ops.memory import give_back
from slimrun.ops.quant.rdoq import BITS, RDOQ, importance

from .attribution import AttributedLinear, corrections, loss_shares
from .factors import Factors
from .fisher import FisherStatistics, Statistics, first_readers
from .folding import find_folds, smooth_inputs
from .gradients import gradients, multiply
from .language_model import output_layer
from .moments import packed_size
from .network import Calibrator, TorchNetwork
from .probe import Fold
from .search import KL_TOLERANCE, PASSES, Search, next_level
from .tuning import TunedLinear, tuned_steps

log = logging.getLogger(__name__)

FAR = 0.1  # of the loss: a target missed by more is out of reach
HELD_OUT = 4  # one prompt in so many is held out to measure the loss on, where it is the target
GLANCE = 32  # tokens to see how the model is wired
MOMENTS = 2**30  # bytes of moments in memory at once,
SHARE = 0.5  # or this much of the model as float32, if that is more


class RateDistortionCalibrator(Calibrator):
    """Quantizes `model` in place so that its linears take the bits, or lose what the quantizer allows.

    With a loss to aim at a part of the samples is held out to measure it on.
    """

    quantizer: RDOQ
    network: TorchNetwork

    def __init__(
        self,
        model: nn.Module,
        quantizer: RDOQ,
        samples: Sequence[Sample],
        forward: Callable[..., Any] | None = None,
    ) -> None:
        count = 0
        if quantizer.target_kl is not None:
            if len(samples) < 2:
                raise ValueError(
                    f"target_kl={quantizer.target_kl} is measured on prompts held out: 2 or more are needed, "
                    f"not {len(samples)}"
                )
            count = max(1, len(samples) // HELD_OUT)
        super().__init__(model, quantizer, samples[: len(samples) - count], forward)
        self.held_out = samples[len(samples) - count :]
        self._floats: dict[str, Tensor] = {}
        self._biases: dict[str, Tensor | None] = {}
        self._targets: list[Tensor] = []  # last hidden states of the float model, by sample
        self._float_head: Any = None
        self._token_weights: dict[str, Tensor] = {}
        self._calibrated = False

    @torch.no_grad()
    def quantize(self, remember: Remember = call, progress: Progress = silent) -> None:
        """Replace every selected linear by its integers."""
        if not self.samples:
            raise ValueError("what errors cost is measured on calibration samples, and there are none")
        selected = self.select()
        folds = self._folds(selected)
        statistics = self._measure(selected, remember, progress)
        head = output_layer(self.model)
        folded = any(self.model.get_submodule(name) is head for name in selected)
        self._float_head = deepcopy(head) if folded else head
        smooth_inputs(self.network, folds, statistics, self.quantizer)
        for name in selected:
            self._floats[name], self._biases[name] = self.network.affine(name)
        self._token_weights = {  # of each linear, times its mean squared gradient
            name: statistics[f"{statistics.first[name]}.weights"] * rows.mean()
            for name, rows in statistics.rows.items()
        }
        factors = self._factors(statistics)
        del statistics
        if self.quantizer.measured_prompts and self.quantizer.grid is None:
            self._correct(factors, progress)
        if self.quantizer.target_kl is not None:
            self._meet_loss(Search(self.quantizer, self._floats, factors, progress), self.quantizer.target_kl, progress)
        else:
            weights = self._rounded(Search(self.quantizer, self._floats, factors, progress))
            del factors  # memory that tuning needs
            self._install(weights, progress)
        self._floats.clear()
        self._leave_files()

    @torch.no_grad()
    def calibrate(self, progress: Progress = silent) -> list[Layer]:
        """Fix every input grid, then leave the inputs float that lose most on theirs."""
        if not self._calibrated and FORMATS[self.quantizer.quant_type].has_grid:
            weights = dict(self._weights)
            super().calibrate(progress)
            weights = {name: weight for name, weight in weights.items() if not self.layers[name].fallback}
            for name, loss in self._input_losses(weights).items():
                self.layers[name].input_loss = loss
            ranked = sorted(weights, key=lambda name: -self.layers[name].input_loss)
            for name in ranked[: int(self.quantizer.fallback.max_share * len(ranked))]:
                linear: Any = self.model.get_submodule(name)
                alone = quantized_linear(WeightOnlyLinear.quant_type, weights[name], linear.bias, linear.dtype)
                self.network.replace(name, alone)
                self.layers[name].fallback, self.layers[name].note = True, ""
            self._renew_notes()
        self._calibrated = True
        return list(self.layers.values())

    def _folds(self, selected: list[str]) -> list[Fold]:
        """Where scales of inputs go; notes say where they cannot."""
        if self.quantizer.smooth_alpha is None:
            return []
        folds, places = find_folds(self.network, self._glance, selected)
        self.notes += skipped(f"smooth_alpha={self.quantizer.smooth_alpha}", places)
        return folds

    def _input_losses(self, weights: dict[str, QuantizedWeight]) -> dict[str, float]:
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
                moved = multiply(error, weights[name].values) * steps.reshape(1, -1)
                tokens = self._token_weights[name][done : done + len(rows)]
                losses[name] += float(moved.square().sum(dim=1).cpu() @ tokens)

            return watch

        with self.network.watching({name: measure(name) for name in weights if name in self._token_weights}):
            for index, sample in enumerate(self.samples[:FLOAT_SAMPLES]):
                self._run(index)
                done += _inputs(sample)["input_ids"].shape[1]
        return losses

    def _measure(self, selected: list[str], remember: Remember, progress: Progress) -> Statistics:
        """The Fisher statistics of the float model, in as many passes as their moments need memory."""
        first = first_readers(self.model, selected, self._glance)
        shapes = {name: self.layers[name].shape for name in selected}
        model_bytes = 4 * sum(parameter.numel() for parameter in self.model.parameters())
        parts: list[list[str]] = [[]]
        size = 0
        for name in dict.fromkeys(first.values()):
            moment = 4 * packed_size(shapes[name][1])
            if parts[-1] and size + moment > max(MOMENTS, SHARE * model_bytes):
                parts.append([])
                size = 0
            parts[-1].append(name)
            size += moment

        def measure(index: int) -> Arrays:
            readers = [name for name in first if first[name] in parts[index]]
            statistics = FisherStatistics(self.model, readers, first)
            generator = torch.Generator().manual_seed(0)
            for number, sample in enumerate(self.samples):
                statistics.add(partial(self._states, sample), output_layer(self.model), generator)
                progress(index * len(self.samples) + number + 1, len(parts) * len(self.samples))
            return statistics.arrays()

        found = [remember(partial(measure, index), f"part {index}") for index in range(len(parts))]
        give_back()
        self._targets = [torch.from_numpy(found[0][f"states.{number}"]) for number in range(len(self.samples))]
        return Statistics(first, found)

    def _glance(self) -> Any:
        """The whole model on the first tokens, for what any tokens show."""
        sample = _inputs(self.samples[0])
        return self.model(**{**sample, "input_ids": sample["input_ids"][:, :GLANCE]})

    def _states(self, sample: Sample) -> Tensor:
        """The last hidden states [1, T, H]."""
        base: Any = self.model.base_model
        states = base(**_inputs(sample)).last_hidden_state
        assert isinstance(states, Tensor)
        return states

    def _factors(self, statistics: Statistics) -> Factors:
        """What errors cost, by linear; inputs that are shared are factored once."""
        factors = Factors()
        for name, rows in statistics.rows.items():
            first, device = statistics.first[name], self.network.affine(name)[0].device
            if first == name or first not in factors:
                factors[first] = importance(statistics.moment(first).to(device), rows, self.quantizer.damping)
            factors.rows[name] = (first, rows.to(device))
        give_back()
        return factors

    def _correct(self, factors: Factors, progress: Progress) -> None:
        """Correct what errors are estimated to cost by what a first rounding, at about the target, is seen to lose."""
        search = Search(self.quantizer, self._floats, factors, progress)
        rounded = search.at(search.first_level(self.quantizer.bits or BITS))
        exact: dict[str, nn.Module] = {name: self.model.get_submodule(name) for name in factors.rows}
        linears = {name: AttributedLinear(rounded[name], self._floats[name], self._biases[name]) for name in exact}
        for name, linear in linears.items():
            self.network.replace(name, linear)
        chosen = range(0, len(self.samples), math.ceil(len(self.samples) / self.quantizer.measured_prompts))
        samples = [partial(self._states, self.samples[index]) for index in chosen]
        heads = output_layer(self.model), self._float_head
        with gradients(self.model, [linear.more for linear in linears.values()]):
            shares = loss_shares(linears, samples, [self._targets[index] for index in chosen], heads, progress)
        for name, module in exact.items():
            self.network.replace(name, module)
        factors.corrections = corrections(shares, {name: self._floats[name].numel() for name in shares})

    def _rounded(self, search: Search) -> dict[str, QuantizedWeight]:
        """At the bits asked for, or on the steps of the grid."""
        return search.at_bits(self.quantizer.bits) if self.quantizer.bits else search.at(None)

    def _meet_loss(self, search: Search, target: float, progress: Progress) -> None:
        """Round at the slope where the whole quantized model loses `target` on the samples held out."""
        reference = [self._log_probs(sample) for sample in self.held_out]
        found: list[tuple[float, float]] = []  # (log level, log of loss over target)
        level = search.first_level(BITS)
        for attempt in range(PASSES):
            self._calibrated = False
            self._install(search.at(level), progress)
            self.calibrate()
            loss = sum(
                float((one.exp() * (one - self._log_probs(sample))).sum())
                for one, sample in zip(reference, self.held_out)
            ) / sum(map(len, reference))
            log.info("rounding %d: level %.4g gives a KL of %.4f", attempt + 1, level, loss)
            miss = math.log(max(loss, 1e-9) / target)
            if abs(miss) <= KL_TOLERANCE:
                return
            found.append((math.log(level), miss))
            level = math.exp(next_level(found))
        nearest = min(found, key=lambda point: abs(point[1]))
        if abs(nearest[1]) > FAR:
            raise ValueError(
                f"target_kl={target} is out of reach: the nearest loss found is {target * math.exp(nearest[1]):.4f}; "
                "allow another one, or keep more inputs float (fallback.max_share, activations=float)"
            )
        self._calibrated = False
        self._install(search.at(math.exp(nearest[0])), progress)
        self.calibrate()

    def _log_probs(self, sample: Sample) -> Tensor:
        """float32 [T, V]."""
        return torch.log_softmax(output_layer(self.model)(self._states(sample)).float(), dim=-1).flatten(0, -2)

    def _install(self, weights: dict[str, QuantizedWeight], progress: Progress) -> None:
        """Quantized linears in the places of the float ones, or of those of another try."""
        dtypes = {name: self._floats[name].dtype for name in weights}
        for name, quantized in weights.items():
            layer = self.layers[name]
            layer.quantized, layer.fallback = True, False
            layer.sqnr_db, layer.clipped = weight_error(self._floats[name], quantized)
        if self.quantizer.tune_rate:
            weights = self._tuned(weights, progress)
        for name, quantized in weights.items():
            linear = quantized_linear(self.quantizer.quant_type, quantized, self._biases[name], dtypes[name])
            self._put(name, quantized, linear)

    def _tuned(self, weights: dict[str, QuantizedWeight], progress: Progress) -> dict[str, QuantizedWeight]:
        """The weights with steps tuned on the samples."""
        linears = {}
        for name, quantized in weights.items():
            linears[name] = TunedLinear(quantized, self._biases[name])
            self.network.replace(name, linears[name])
            if self.quantizer.target_kl is None:
                del self._floats[name]
        if not self._floats:  # there are no further tries
            self._leave_files()
        with gradients(self.model, [linear.change for linear in linears.values()]):
            factors = tuned_steps(
                linears,
                [partial(self._states, sample) for sample in self.samples],
                self._targets,
                (output_layer(self.model), self._float_head),
                self.quantizer.tune_rate,
                progress,
            )
        return {name: QuantizedWeight(one.values, one.scale * factors[name]) for name, one in weights.items()}


def _inputs(sample: Sample) -> dict[str, Any]:
    assert isinstance(sample, dict)
    return sample
