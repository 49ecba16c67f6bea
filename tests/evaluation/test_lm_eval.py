"""Benchmarks that lm-eval has too, by its own yaml on the same rows: the same questions, answers and item scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimrun.evaluation.task.exact_match import ExactMatch
from slimrun.evaluation.task.last_word import LastWord
from slimrun.evaluation.task.multiple_choice import MultipleChoice
from tests.conftest import tiny
from tests.evaluation import shapes, test_tasks
from tests.evaluation.fake import silent

lm_eval = pytest.importorskip("lm_eval", reason="pip install 'slimrun[lm-eval]'")

THEIRS = {
    "arc": "arc_challenge",
    "boolq": "boolq",
    "ceval": "ceval-valid_computer_network",
    "cmmlu": "cmmlu_agronomy",
    "gsm8k": "gsm8k",
    "hellaswag": "hellaswag",
    "lambada": "lambada_openai",
    "mmlu": "mmlu_anatomy",
    "winogrande": "winogrande",
}


@pytest.fixture(scope="module")
def manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


@pytest.mark.parametrize("name", THEIRS)
def test_lm_eval_asks_and_scores_the_same(name: str, manager: Any, tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    shots = 2 if name in ("ceval", "cmmlu", "mmlu") else 0  # others draw their examples at random
    rows = [row | {"subject": "anatomy", "label": int(row.get("answer") is True)} for row in shapes.SHAPES[name][1]]
    file, examples = tmp_path / f"{name}.jsonl", tmp_path / "examples.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    # lm-eval shows an item to itself where it is among the examples
    examples.write_text("".join(f"{json.dumps(row)}\n" for row in shapes.others(rows)))
    splits = dict.fromkeys(("train", "val", "validation", "test"), str(file)) | {"dev": str(examples)}
    yaml = {"task": "own", "include": str(manager.task_index[THEIRS[name]].yaml_path), "num_fewshot": shots,
            "dataset_path": "json", "dataset_name": None,
            "dataset_kwargs": {"data_files": splits, "cache_dir": str(tmp_path / "cache")}}  # fmt: skip
    (tmp_path / "own.yaml").write_text(json.dumps(yaml))
    theirs = TaskManager(include_path=str(tmp_path), include_defaults=False).load("own")["tasks"]["own"]
    theirs.build_all_requests(limit=None, rank=0, world_size=1)
    asked = sorted(theirs.instances, key=lambda one: (one.doc_id, one.idx))

    given = {key: value for key, value in test_tasks.keys_of(name).items() if key not in ("_target_", "hub")}
    own = {"path": str(file), "limit": len(rows)} | (
        {"shots": shots, "shots_path": str(examples)} if "shots" in given else {}
    )
    if name in ("ceval", "cmmlu"):  # theirs names the subject, which no column does
        own["description"] = theirs.config.description
    ours = test_tasks.kind_of(name)(**given | own)
    model = tiny()
    harness = HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=1)
    outputs = ours.evaluate(model, None, silent)
    match ours:
        case ExactMatch():
            assert [one.args[0] for one in asked] == [problem.prompt for problem in ours._problems()]
            assert ours.stop[0] in asked[0].args[1]["until"]
            assert harness.generate_until(asked) == outputs["texts"].tolist()
        case LastWord():
            assert [one.args for one in asked] == ours._pairs()
            scores = [score for score, _ in harness.loglikelihood(asked)]
            np.testing.assert_allclose(outputs["log_probs"], scores, rtol=1e-5)
        case MultipleChoice():
            questions = ours._questions()
            pairs = [pair for one in questions for pair in zip(one.prompts, one.continuations, strict=True)]
            assert [one.args for one in asked] == pairs
            answer = theirs.doc_to_text if theirs.multiple_input else theirs.doc_to_target
            assert [answer(doc) for doc in theirs.eval_docs] == [one.answer for one in questions]
            scores = [score for score, _ in harness.loglikelihood(asked)]
            np.testing.assert_allclose(np.concatenate(outputs["log_probs"], axis=None), scores, rtol=1e-5)
