"""lm-eval runs a bundle and an export, and gives each answer the probability that we give it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimrun.ops import load_bundle
from slimrun.ops.export.compressed_tensors import CompressedTensors
from slimrun.ops.framework.pytorch import TorchModel
from slimrun.ops.quant.w8a16 import W8A16

from .bundles import written

pytest.importorskip("lm_eval", reason="pip install 'slimrun[lm-eval]'")
pytest.importorskip("compressed_tensors")

QUESTION, ANSWERS = "What is the capital of France? It is", [" Paris", " London", " Rome"]
TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs."


def asked(kind: str, *requests: tuple[str, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, request, number) for number, request in enumerate(requests)]


@pytest.mark.parametrize("exported", [False, True])
def test_answers_and_texts_have_the_same_probabilities(tmp_path: Path, exported: bool) -> None:
    from lm_eval.models.huggingface import HFLM

    artifact = tmp_path / "artifact"
    written(artifact, W8A16())  # static int8 inputs would differ by the shape of a batch alone
    ours = load_bundle(artifact)
    assert isinstance(ours, TorchModel)
    place: Any = str(CompressedTensors().run(artifact, tmp_path / "export").folder) if exported else ours.module
    theirs = HFLM(pretrained=place, device="cpu", batch_size=1)
    found = [score for score, _ in theirs.loglikelihood(asked("loglikelihood", *((QUESTION, one) for one in ANSWERS)))]
    expected = ours.continuations(ours.encode(QUESTION), [ours.encode(answer) for answer in ANSWERS])
    np.testing.assert_allclose(found, [float(scores.sum()) for scores in expected], rtol=1e-6)
    [rolling] = theirs.loglikelihood_rolling(asked("loglikelihood_rolling", (TEXT,)))
    ids = [ours.tokenizer.bos_token_id, *ours.encode(TEXT)]
    scores = ours.log_probs(ours.hidden(np.array([ids]))[0])
    np.testing.assert_allclose(rolling, scores[np.arange(len(ids) - 1), ids[1:]].sum(), rtol=1e-6)
