"""What a run asks its model does not depend on the day it runs."""

from __future__ import annotations

import json
from pathlib import Path

from slimrun.runner.config import build, composed
from slimrun.runner.display import Stages


def test_a_template_that_reads_the_clock_asks_the_same_of_both_models_and_says_the_date(
    tmp_path: Path, tiny_folder: Path
) -> None:
    template = "{{ strftime_now('%H:%M:%S.%f') }}{% for turn in messages %}{{ turn['content'] }}{% endfor %}"
    (tiny_folder / "chat_template.jinja").write_text(template)
    config = json.loads((tiny_folder / "config.json").read_text())
    (tiny_folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    experiment = build(composed([
        "model=hf", f"model.path={tiny_folder}", "quant=none", "task=[translation]", "task.translation.limit=2",
        "task.translation.max_new_tokens=2", "calibration.samples=1", "tracking=none",
        f"cache.dir={tmp_path / 'cache'}",
    ]))  # fmt: skip
    outline = experiment.check()
    [note] = [note for note in outline.notes if "date" in note]
    assert "every prompt says 2024-07-26" in note
    with Stages() as stages:
        result = experiment.run(tmp_path / "out", stages, outline)
    assert result.metrics["translation/reference_ppl_float"] == result.metrics["translation/reference_ppl_quant"]
    assert "|date:2024-07-26|" in str(result.metrics["translation/signature"])
    assert result.warnings.count(note) == 1
