"""A run that is killed goes on behind the last step that was noted, to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slimrun.ops.calibration.base import Arrays, Remember, call
from slimrun.ops.calibration.journal import Journal
from slimrun.ops.calibration.rdoq import factors, head, rounding
from slimrun.ops.calibration.rdoq.gradient_walk import GradientWalk
from slimrun.ops.framework.base import Framework
from slimrun.ops.framework.pytorch import PyTorch
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.feedback import Importance
from slimrun.ops.quant.rdoq import RDOQ
from slimrun.ops.quant.w8a8 import W8A8
from slimrun.ops.quant.w8a8s import W8A8S

from ..conftest import CPU, TEXTS, described

METHODS = [W8A8S(fraction=0.05, fallback_level=2), W8A8(observer="histogram"), RDOQ(target_bits=5.0)]


class Killed(BaseException):
    """What no code catches."""


class Steps:
    """Counts steps, and ends the run at one of them."""

    def __init__(self, last: int | None = None) -> None:
        self.done = 0
        self.last = last

    def __call__(self, done: int, total: int, part: str = "") -> None:
        self.done += 1
        if self.done == self.last:
            raise Killed


def quantized(
    quantizer: Quantizer,
    journal: Journal,
    steps: Steps,
    framework: Framework | None = None,
    remember: Remember = call,
) -> dict[str, torch.Tensor]:
    framework = framework or PyTorch()
    model = framework.load(described(num_hidden_layers=3).open(Path("unused")), CPU)
    calibrator = framework.calibrator(model, quantizer, TEXTS, 48)
    calibrator.journal = journal
    calibrator.quantize(remember, steps)
    calibrator.calibrate(steps)
    return dict(model.tensors())


@pytest.mark.parametrize("quantizer", METHODS, ids=lambda method: type(method).__name__)
def test_every_place_to_be_killed_at(quantizer: Quantizer, tmp_path: Path) -> None:
    whole = Steps()
    expected = quantized(quantizer, Journal(), whole)
    for last in range(1, whole.done + 1, 11):
        folder = tmp_path / str(last)
        folder.mkdir()
        with pytest.raises(Killed):
            quantized(quantizer, Journal(folder, seconds=0), Steps(last))
        steps = Steps()
        tensors = quantized(quantizer, Journal(folder, seconds=0), steps)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_what_is_noted_is_not_done_again(framework: Framework, tmp_path: Path) -> None:
    whole = Steps()
    expected = quantized(METHODS[0], Journal(), whole, framework)
    with pytest.raises(Killed):
        quantized(METHODS[0], Journal(tmp_path, seconds=0), Steps(whole.done - 1), framework)
    steps = Steps()
    tensors = quantized(METHODS[0], Journal(tmp_path, seconds=0), steps, framework)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    linears, samples = 3 * 7, len(TEXTS)
    assert steps.done == linears + samples  # of the last part alone
    again = Steps()
    quantized(METHODS[0], Journal(tmp_path, seconds=0), again, framework)
    assert again.done == linears


def test_what_rdoq_has_rounded_and_tuned_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Steps()
    expected = quantized(METHODS[2], Journal(), whole)
    with pytest.raises(Killed):
        quantized(METHODS[2], Journal(tmp_path, seconds=0), Steps(whole.done - 1))
    kinds = {file.name.partition(".")[0] for file in tmp_path.iterdir()}
    assert kinds == {"scales", "level", "corrected", "search", "rounded", "tuned", "ranges"}  # no factors any more
    assert len({file.name.split(".")[1] for file in tmp_path.glob("rounded.*")}) == 1  # of the last pass alone
    for module, name in ((rounding, "feedback"), (factors, "importance"), (head, "divergence")):
        monkeypatch.setattr(module, name, None)
    found = quantized(METHODS[2], Journal(tmp_path, seconds=0), Steps())
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_stopped_walk_passes_no_part_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = RDOQ(target_file_bits=6.0)
    remembered: dict[str, Arrays] = {}
    run, runs, last = GradientWalk._run, 0, -1

    def remember(compute: Callable[[], Arrays], part: str) -> Arrays:
        if part not in remembered:
            remembered[part] = compute()
        return remembered[part]

    def counted(*given: Any) -> torch.Tensor:
        nonlocal runs
        runs += 1
        if runs == last:
            raise Killed
        return run(*given)

    monkeypatch.setattr(GradientWalk, "_run", counted)
    expected = quantized(quantizer, Journal(), Steps())
    whole, parts, samples = runs, 3 + 1, len(TEXTS)
    for stopped in range(2, 2 * (2 * parts - 1) * samples + 1, 5):  # to measure gradients, and what a rounding loses
        remembered.clear()
        runs, last, folder = 0, stopped, tmp_path / str(stopped)
        folder.mkdir()
        with pytest.raises(Killed):
            quantized(quantizer, Journal(folder, seconds=0), Steps(), remember=remember)
        last = -1
        tensors = quantized(quantizer, Journal(folder, seconds=0), Steps(), remember=remember)
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
        assert runs <= whole + samples


@pytest.mark.parametrize("quantizer", [METHODS[2], RDOQ(grid=W8A8S(fraction=0.05))], ids=["slope", "grid"])
def test_every_moment_is_factored_once(quantizer: RDOQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, done, last = factors.importance, 0, 0

    def importance(*given: Any) -> Importance:
        nonlocal done
        if done == last:
            raise Killed
        done += 1
        return real(*given)

    monkeypatch.setattr(factors, "importance", importance)
    last = -1
    whole = Steps()
    expected = quantized(quantizer, Journal(), whole)
    inputs = done
    assert inputs == 3 * 4  # of queries, keys and values; of outputs; of gate and up; of down
    journal, done = Journal(tmp_path, seconds=0), 0
    for last in range(1, inputs):
        with pytest.raises(Killed):
            quantized(quantizer, journal, Steps())
        assert done == last
    last = -1
    tensors = quantized(quantizer, journal, Steps())
    assert done == inputs
    assert not [*tmp_path.glob("factors.*")]
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


@pytest.mark.parametrize("damage", [b"", b"\x00" * 64, None])
def test_a_damaged_note_costs_time_alone(damage: bytes | None, tmp_path: Path) -> None:
    expected = quantized(METHODS[0], Journal(), Steps())
    quantized(METHODS[0], Journal(tmp_path, seconds=0), Steps())
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:100] if damage is None else damage)
        tensors = quantized(METHODS[0], Journal(tmp_path, seconds=0), Steps())
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_short_run_notes_nothing(tmp_path: Path) -> None:
    quantized(METHODS[0], Journal(tmp_path), Steps())
    assert list(tmp_path.iterdir()) == []
