"""`slimrun --help`: every choice in a line, from its own yaml."""

from __future__ import annotations

from pathlib import Path

from slimrun.runner.help import default_choices

from . import console

CONF = Path(__file__).parents[2] / "conf"


def test_help_lists_groups_choices_and_examples(tmp_path: Path) -> None:
    status, out, err = console.slimrun(tmp_path, "--help")
    assert (status, err) == (0, "")
    assert "Exit status" in out
    shown = {}
    for group in default_choices():
        lines = out[out.index(f"\n{group}=\n") :].splitlines()[2:]
        shown[group] = dict(line[2:].split(maxsplit=1) for line in lines[: lines.index("")])
    assert "\n* w8a8s  " in out
    assert out.count("\n* ") == 11, "four tasks, no experiment"
    assert shown["quant"]["w8a16"] == "8-bit weights on a min-max grid, float activations; needs no calibration"
    assert shown["experiment"]["chatglm2_6b"].startswith("ChatGLM2-6B with the settings")
    assert shown.keys() == {folder.name for folder in CONF.iterdir() if any(folder.glob("*.yaml"))}
    for group, choices in shown.items():
        assert choices.keys() == {file.stem for file in (CONF / group).glob("*.yaml")}
    assert out.count("\n  slimrun") == 5


def test_help_shows_choices_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine" / "quant").mkdir(parents=True)
    (tmp_path / "mine" / "quant" / "careful.yaml").write_text("# Keeps more outliers.\ndefaults: [w8a8s]\n")
    assert "  careful " in console.slimrun(tmp_path, "--config-dir", "mine", "--help")[1]
