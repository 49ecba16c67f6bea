"""The report of a sweep: who is on the front, what shares a panel, and three files that stand alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from slimrun.runner.folder import write_json
from slimrun.runner.overrides import distinct, short_name
from slimrun.runner.report import pareto
from slimrun.runner.report import sweep as report


def finished(bits: float, perplexity: float, **changes: object) -> dict[str, object]:
    """What a job's files hold, as far as the report looks at it; `score.*` are fields of its row."""
    delta = 100 * (perplexity / 20 - 1)
    row: dict[str, object] = {
        "task": "perplexity", "name": "perplexity", "float_value": 20.0, "quant_value": perplexity,
        "float_interval": (19.0, 21.0), "quant_interval": (perplexity - 1, perplexity + 1), "difference": delta,
        "interval": (delta - 5, delta + 5), "p_value": 0.01, "detectable": 7.0, "unit": "%",
        "higher_is_better": False, "verdict": "worse (margin 5 %)", "signature": "windows:4",
    }  # fmt: skip
    row |= {key.removeprefix("score."): value for key, value in changes.items() if key.startswith("score.")}
    results = {
        "status": "ok", "size/bits_per_weight": bits, "size/int8_bytes": 1000, "size/artifact_bytes": 2000,
        "time/load_s": 1.5, "repro": "cd / && slimrun", "scores": [row],
    }  # fmt: skip
    return results | {key: value for key, value in changes.items() if not key.startswith("score.")}


def sweep(folder: Path, jobs: Sequence[tuple[list[str], Mapping[str, object]]]) -> Path:
    folder.mkdir()
    listed = []
    for number, (overrides, results) in enumerate(jobs):
        (folder / str(number)).mkdir()
        write_json(folder / str(number) / "results.json", {k: v for k, v in results.items() if k != "scores"})
        if "scores" in results:
            write_json(folder / str(number) / "scores.json", {"scores": results["scores"]})
        listed.append({"number": number, "overrides": overrides, "folder": str(number), "status": results["status"]})
    write_json(folder / "sweep.json", {"parent_run_id": None, "jobs": listed})
    return folder


def written(folder: Path) -> list[Path]:
    jobs = pareto.read_jobs(folder)
    return report.write(folder, jobs, pareto.panels(jobs))


FAILED = {"status": "failed", "error": "out of memory <b>&"}
JOBS = [
    (["quant=w8a8s", "quant.fraction=0.02"], finished(4.0, 25.0)),
    (["quant=w8a8s", "quant.fraction=0.05"], finished(4.5, 22.0)),
    (["quant=lowbit", "quant.fraction=0.02"], finished(4.2, 26.0)),
    (["quant=lowbit", "quant.fraction=0.05"], FAILED),
]


def test_the_front_holds_what_nothing_beats() -> None:
    costs = [(3.0, 9.0), (3.0, 8.0), (4.0, 8.0), (4.0, 7.0), (4.0, 7.0), (5.0, 7.5), (6.0, 1.0)]
    front = [cost for cost in costs if not pareto.beaten(cost, costs)]
    assert front == [(3.0, 8.0), (4.0, 7.0), (4.0, 7.0), (6.0, 1.0)]  # equals do not beat each other


def test_the_files_of_a_sweep(tmp_path: Path) -> None:
    paths = written(sweep(tmp_path / "sweep", JOBS))
    assert [path.name for path in paths] == ["pareto.json", "pareto.png", "report.html"]
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    content = json.loads(paths[0].read_text())
    [panel] = content["panels"]
    assert panel["front"] == [0, 1]
    assert [point["job"] for point in panel["points"]] == [0, 1, 2]
    assert (panel["points"][1]["low"], panel["points"][1]["high"]) == pytest.approx((21.0, 23.0))
    assert [job["results"]["status"] for job in content["jobs"]] == ["ok", "ok", "ok", "failed"]

    html = paths[2].read_text()
    assert not re.search(
        r'(src|href)="(?!data:|\d/)', html
    )  # nothing from anywhere but this file and the jobs' folders
    assert not re.search(r"https?://", html)
    assert "failed: out of memory &lt;b&gt;&amp;" in html
    assert html.count('class="front"') >= 2
    assert 'href="0/results.json"' in html
    assert "report.md" not in html  # a link only to what is there
    assert "4 jobs, 1 without a result. Front of perplexity: job 0, job 1." in html


def test_links_to_the_tracked_runs(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep", JOBS)
    write_json(folder / "0" / "tracking.json", {"uri": "https://me:secret@tracks.example/base/", "run_id": "abc"})
    write_json(folder / "1" / "tracking.json", {"uri": "sqlite:////somewhere/mlflow.db", "run_id": "def"})
    html = written(folder)[2].read_text()
    assert 'href="https://tracks.example/base/#/runs/abc"' in html
    assert "<code>def</code>" in html
    assert "secret" not in html


def test_what_was_not_measured_alike_does_not_share_a_panel(tmp_path: Path) -> None:
    changes: list[dict[str, object]] = [
        {},
        {"score.signature": "windows:8"},
        {"score.float_value": 30.0},
        {"size/int8_bytes": 900},
        {"score.float_value": 20.000001},  # the same model on another device
    ]
    jobs = [(["seed=0"], finished(4, 30, **change)) for change in changes]
    panels = pareto.panels(pareto.read_jobs(sweep(tmp_path / "sweep", jobs)))
    assert [[point.job for point in panel.points] for panel in panels] == [[0, 4], [1], [2], [3]]


def test_sizes_may_be_those_of_whole_files(tmp_path: Path) -> None:
    sizes = [(4.0, 9.0), (5.0, 6.0)]  # the one with fewer bits a weight has the larger file
    jobs = [
        ([f"seed={seed}"], finished(bits, 25, **{"size/bits_per_parameter": whole}))
        for seed, (bits, whole) in enumerate(sizes)
    ]
    listed = pareto.read_jobs(sweep(tmp_path / "sweep", jobs))
    fronts = {axis: [point.bits for point in pareto.panels(listed, axis)[0].front] for axis in pareto.AXES}
    assert fronts == {"bits_per_weight": [4.0], "bits_per_parameter": [6.0]}


def test_a_score_of_which_more_is_better(tmp_path: Path) -> None:
    row = {"score.name": "accuracy", "score.float_value": 0.5, "score.interval": (-0.1, 0.05), "score.unit": ""}
    values = [(4.0, 0.40), (5.0, 0.45), (6.0, 0.42)]
    jobs = [(["seed=0"], finished(bits, q, **row, **{"score.higher_is_better": True})) for bits, q in values]
    folder = sweep(tmp_path / "sweep", jobs)
    [panel] = pareto.panels(pareto.read_jobs(folder))
    assert panel.title == "perplexity: accuracy"
    assert [point.job for point in panel.front] == [0, 1]
    assert (panel.points[0].low, panel.points[0].high) == pytest.approx((0.4, 0.55))
    rows = report.summary(folder, pareto.read_jobs(folder), {"seed=0"})
    assert report.best(pareto.read_jobs(folder), rows, [panel]) == {
        "best.bits": "bits 4: job 0 (), run ",
        "best.perplexity": "perplexity: accuracy 0.45: job 1 (), run ",
    }


def test_a_score_without_a_verdict_has_a_column_and_no_panel(tmp_path: Path) -> None:
    beside = finished(4, 30, **{"score.name": "spread", "score.verdict": ""})
    folder = sweep(tmp_path / "sweep", [(["seed=0"], beside), (["seed=1"], finished(5, 22))])
    [panel] = pareto.panels(pareto.read_jobs(folder))
    assert panel.title == "perplexity"
    assert "<button>perplexity: spread</button>" in written(folder)[2].read_text()


def test_labels_say_what_differs() -> None:
    assert distinct([["a.x=1", "quant=w8a8", "seed=0"], ["a.x=2", "quant=lowbit", "seed=0"]]) == [
        "x=1, w8a8",
        "x=2, lowbit",
    ]
    assert distinct([["a.x=1", "b.x=1"], ["a.x=2", "b.x=3"]]) == ["a.x=1, b.x=1", "a.x=2, b.x=3"]
    assert distinct([["q.f=0.04938284901364233"], ["q.f=0.1"]]) == ["f=0.0494", "f=0.1"]
    assert distinct([["seed=0"]]) == ["seed=0"]


def test_a_name_is_short_and_says_how_much_it_leaves_out() -> None:
    assert short_name(["model.path=/data/models/chatglm2", "device=npu"]) == "path=chatglm2 npu"
    assert short_name(["quant.fraction=0.0493828490", "calibration.samples=5"]) == "fraction=0.0494 samples=5"
    name = short_name([f"task.perplexity.windows={number}" for number in range(20)])
    assert name == "windows=0 windows=1 windows=2 windows=3 windows=4 windows=5 and 14 more"
    assert short_name([]) == ""


def test_a_sweep_of_which_nothing_is_left_has_a_report_too(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep", [(["seed=0"], FAILED), (["seed=1"], FAILED)])
    (folder / "1" / "results.json").write_text("{")
    write_json(folder / "0" / "results.json", {"status": "ok"})  # but no scores
    listed = json.loads((folder / "sweep.json").read_text())
    listed["jobs"].append({"number": 2, "overrides": ["seed=2"], "folder": "2", "status": "left"})
    write_json(folder / "sweep.json", listed)
    paths = written(folder)
    content = json.loads(paths[0].read_text())
    assert content["panels"] == []
    assert [job["results"]["status"] for job in content["jobs"]] == ["failed", "failed", "left"]
    assert paths[1].stat().st_size > 0


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
def test_the_table_sorts_in_a_browser(tmp_path: Path) -> None:
    page = written(sweep(tmp_path / "sweep", JOBS))[2]
    click = '<script>const b = [...document.querySelectorAll("th button")].find(b => b.textContent == "perplexity");'
    orders = []
    for times in (1, 2):
        clicked = page.with_name(f"clicked{times}.html")
        clicked.write_text(page.read_text().replace("</body>", f"{click}{'b.click();' * times}</script></body>"))
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
        shown = subprocess.run([*command, "--dump-dom", clicked.as_uri()], capture_output=True, text=True, check=True)
        orders.append([int(number) for number in re.findall(r'<tr[^>]*><td class="" data-value="(\d)">', shown.stdout)])
    assert orders == [[1, 0, 2, 3], [2, 0, 1, 3]]  # the failed job stays last


def test_the_table_says_which_prompts_each_had_where_they_differ(tmp_path: Path) -> None:
    jobs = [([f"quant={name}"], finished(3.5, 22.0, **{"data/calibration_prompts": count}))
            for name, count in (("w8a8s", 16), ("rdoq", 24))]  # fmt: skip
    alike, apart = sweep(tmp_path / "alike", jobs[:1] * 2), sweep(tmp_path / "apart", [*jobs, ([], FAILED)])
    assert "prompts" not in report.summary(alike, pareto.read_jobs(alike), set())[0]
    assert [row["prompts"] for row in report.summary(apart, pareto.read_jobs(apart), set())] == [16, 24, None]
