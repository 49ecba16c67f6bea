"""lm-eval runs a bundle and an export, and finds what we find: answers, accuracy, perplexity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimrun import load_bundle
from slimrun.evaluation.task.multiple_choice import MultipleChoice
from slimrun.ops.export.compressed_tensors import CompressedTensors
from slimrun.ops.framework.pytorch import TorchModel
from slimrun.ops.quant.w8a16 import W8A16

from .bundles import written

lm_eval = pytest.importorskip("lm_eval", reason="pip install 'slimrun[lm-eval]'")
pytest.importorskip("compressed_tensors")

ITEMS = [
    {"question": f"{first} plus {second} is?", "options": [str(first + second + k) for k in (7, 0, 1)], "answer": 1}
    for first, second in np.random.default_rng(0).integers(1, 99, (40, 2)).tolist()
]
TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs."
COMMON = "dataset_path: json\ntest_split: test\nmetadata: {version: 1}\n"
CHOICE = """task: choice
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: options
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """task: rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: byte_perplexity}]
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "artifact"
    written(folder, W8A16())  # static int8 inputs would differ by the shape of a batch alone
    return folder


@pytest.fixture
def tasks(tmp_path: Path) -> Any:
    """Both tasks on local files."""
    for name, rows, yaml in (("choice", ITEMS, CHOICE), ("rolling", [{"text": TEXT}], ROLLING)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        own = {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path / "cache")}
        (tmp_path / f"{name}.yaml").write_text(f"{yaml}{COMMON}dataset_kwargs: {json.dumps(own)}\n")
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(tmp_path), include_defaults=False)


@pytest.mark.parametrize("given", ["what load_bundle gives", "the bundle's folder", "an export's folder"])
def test_both_harnesses_find_the_same(artifact: Path, tmp_path: Path, tasks: Any, given: str) -> None:
    from lm_eval.models.huggingface import HFLM

    ours = load_bundle(artifact)
    assert isinstance(ours, TorchModel)
    place: Any = ours if given == "what load_bundle gives" else str(artifact)
    if given == "an export's folder":
        place = str(CompressedTensors().run(artifact, tmp_path / "export").folder)
    theirs = HFLM(pretrained=place, device="cpu", batch_size=4)
    harness = lm_eval.simple_evaluate(theirs, tasks=["choice", "rolling"], task_manager=tasks, bootstrap_iters=0)
    choice = MultipleChoice(path=str(tmp_path / "choice.jsonl"), limit=len(ITEMS))
    scores = choice.evaluate(ours, None, lambda done, total: None)
    accuracy = choice.compare("choice", scores, scores).metrics["choice/accuracy_quant"]
    assert harness["results"]["choice"]["acc,none"] == accuracy
    assert 0 < accuracy < 1
    ids = [ours.tokenizer.bos_token_id, *ours.encode(TEXT)]
    log_probs = ours.log_probs(ours.hidden(np.array([ids]))[0])[np.arange(len(ids) - 1), ids[1:]]
    perplexity = np.exp(-log_probs.sum(dtype=np.float64) / len(TEXT.encode()))
    np.testing.assert_allclose(harness["results"]["rolling"]["byte_perplexity,none"], perplexity, rtol=1e-6)


def test_answers_are_generated(artifact: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    ours = load_bundle(artifact)
    assert isinstance(ours, TorchModel)
    theirs = HFLM(pretrained=ours)
    asked = ("The quick", {"until": ["\n"], "max_gen_toks": 5, "do_sample": False})
    [answer] = theirs.generate_until([Instance("generate_until", {}, asked, 0)])
    [tokens] = ours.generate([ours.encode("The quick")], max_new_tokens=5)
    assert answer == ours.decode(tokens).split("\n")[0]
