"""CONTRIBUTING's recipes, followed to the letter in a folder of our own: all that a sweep leaves has what they make."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from mlflow import MlflowClient

from slimrun.ops import bundle
from tests.evaluation import test_tasks
from tests.quant import test_methods
from tests.runner.console import slimrun

pytestmark = pytest.mark.usefixtures("quick_migrations")
RECIPES = {
    "ops/quant/mine.py": '''
        """Few steps: every weight is a multiple of the largest of its row over `steps`."""

        from dataclasses import dataclass

        from torch import Tensor

        from slimrun.ops.format.arithmetic import QuantizedWeight
        from slimrun.ops.format.weights import round_to_grid
        from slimrun.ops.quant.base import Quantizer, check_finite, gaussian_bits
        from slimrun.ops.quant.base import largest_of, minmax_scale


        @dataclass(frozen=True)
        class Mine(Quantizer):
            quant_type = "W8A16"
            steps: int = 16

            def quantize_weight(self, weight: Tensor) -> QuantizedWeight:
                weight = check_finite(weight)
                scale = minmax_scale(weight, True, self.steps)
                return QuantizedWeight(round_to_grid(weight, scale), scale)

            def expected_bits(self, shape: tuple[int, int]) -> float:
                return gaussian_bits(largest_of(shape[1]), self.steps)
    ''',
    "conf/quant/mine.yaml": """
        # Sixteen steps up and sixteen down.
        _target_: slimrun.ops.quant.mine.Mine
        steps: 16 # up, and as many down
        samples: 2 # calibration prompts that it wants
    """,
    "ops/compress/mine.py": '''
        """Runs of equal integers: how long each is, and of what."""

        from dataclasses import dataclass
        from typing import ClassVar

        import numpy as np

        from slimrun.ops.compress.base import empty


        @dataclass(frozen=True)
        class Mine:
            container: ClassVar[str] = "mine-runs"
            version: ClassVar[int] = 1
            parts: ClassVar[tuple[str, ...]] = ("weight", "lengths", "width")

            def encode(self, weight):
                flat = weight.reshape(-1)
                starts = np.flatnonzero(np.diff(flat, prepend=flat[0] + 1))
                lengths = np.diff(starts, append=flat.size)
                return {"weight": flat[starts], "lengths": lengths, "width": np.array([weight.shape[1]])}

            def decode(self, parts, allocate=empty):
                if set(parts) != set(self.parts) or parts["weight"].shape != parts["lengths"].shape:
                    raise ValueError(f"expected {', '.join(self.parts)}, the first two of one length")
                flat = np.repeat(parts["weight"], parts["lengths"])
                matrix = allocate((flat.size // int(parts["width"][0]), int(parts["width"][0])))
                matrix[:] = flat.reshape(matrix.shape)
                return matrix
    ''',
    "conf/compress/mine.yaml": """
        # Run lengths.
        _target_: slimrun.ops.compress.mine.Mine
    """,
    "evaluation/task/mine.py": '''
        """How many bits the model needs to tell the next character."""

        from dataclasses import dataclass

        import numpy as np

        from slimrun.evaluation import prompt
        from slimrun.evaluation.base import at_least, protocol_of
        from slimrun.evaluation.comparison import Margin, Report, paired
        from slimrun.evaluation.source import items


        @dataclass(frozen=True)
        class Mine:
            path: str | None = None
            limit: int = 4
            margin_bits: float = 0.1

            def __post_init__(self):
                at_least("limit", self.limit, 1)

            def check(self):
                self.texts()

            def fit(self, model):
                tokens = [len(model.encode(text)) for text in self.texts()]
                if min(tokens) < 2:
                    raise ValueError("path: the tokenizer makes no two tokens of a line")
                if max(tokens) > model.context:
                    raise ValueError(f"path: a line has {max(tokens)} tokens, the model's context {model.context}")
                return []

            def texts(self):
                own = self._items().selected(self.limit)
                return own.made(lambda row: prompt.text("question", "{{ question }}", row))

            def protocol(self):
                return protocol_of(self, self._items().sha256, without=["margin_bits"])

            def _items(self):
                return items.items(self.path, otherwise="mmlu")

            def evaluate(self, model, reference, progress):
                bits = []
                for text in self.texts():
                    ids = np.array([model.encode(text)])
                    log_probs = model.log_probs(model.hidden(ids)[0, :-1])
                    bits.append(-np.take_along_axis(log_probs, ids[0, 1:, None], axis=1).mean() / np.log(2))
                    progress(len(bits), self.limit)
                return {"bits": np.array(bits, np.float64)}

            def compare(self, name, float_outputs, quant_outputs):
                score = paired(
                    name, "bits a character", float_outputs["bits"], quant_outputs["bits"],
                    margin=Margin(self.margin_bits, "bits a character"), higher_is_better=False,
                    signature=f"lines:{self.limit}",
                )
                return Report(score.metrics("bits"), [score])
    ''',
    "conf/task/mine.yaml": """
        # @package task.mine
        # The next character.
        _target_: slimrun.evaluation.task.mine.Mine
        path: null # own items with a question; null: those of MMLU
        limit: 4 # lines
        margin_bits: 0.1 # a loss up to here is none
    """,
    "ops/model/mine.py": '''
        """A LLaMA as narrow as they get."""

        from dataclasses import dataclass

        from slimrun.ops.model.base import Model
        from slimrun.ops.model.outline import architecture_key, config_of, outline_of
        from slimrun.ops.model.tokenizer import byte_tokenizer


        @dataclass(frozen=True)
        class Mine(Model):
            name: str
            dtype: str = "float32"
            width: int = 32

            @property
            def architecture(self):
                heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
                ids = {"vocab_size": 259, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
                sizes = {"hidden_size": self.width, "intermediate_size": 2 * self.width}
                return {"model_type": "llama", "tie_word_embeddings": True, **heads, **ids, **sizes}

            def drawn(self):
                import torch
                from transformers import AutoModelForCausalLM

                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(self.seed)
                    return AutoModelForCausalLM.from_config(config_of(self.architecture), dtype=torch.float32)

            def config(self):
                return config_of(self.architecture)

            def tokenizer(self):
                return byte_tokenizer()

            def outline(self, formats):
                return outline_of(self)

            def fingerprint(self, *, read=True):
                return f"mine:{self.width}:{self.seed}"

            def key(self):
                return architecture_key(self, self.architecture)
    ''',
    "conf/model/mine.yaml": """
        # Narrow.
        _target_: slimrun.ops.model.mine.Mine
        name: narrow
        dtype: float32 # of the weights
        width: 32 # of the hidden states
    """,
    "conf/device/mine.yaml": """
        # The processor under another name.
        _target_: slimrun.ops.framework.base.Device
        name: mine
        type: cpu # torch's name of the device
        module: null # package that brings it
        install: "" # what to tell a user who lacks it
    """,
}
OWN = ["slimrun.ops.quant", "slimrun.ops.compress", "slimrun.ops.model", "slimrun.evaluation.task"]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose rooms are part of ours, as if the recipes had been written into them."""
    for name, text in RECIPES.items():
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text).lstrip(), encoding="utf-8")
    for name in OWN:
        package = importlib.import_module(name)
        room = tmp_path / "tree" / name.removeprefix("slimrun.").replace(".", "/")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(room)])
        monkeypatch.delitem(sys.modules, f"{name}.mine", raising=False)
    return tmp_path / "tree"


def test_what_the_recipes_make_keeps_the_contracts(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = importlib.import_module("slimrun.ops.quant.mine").Mine()
    methods = test_methods.TestEveryMethod()
    methods.test_zero_tensor_and_zero_row(method)
    methods.test_row_of_outliers_only(method)
    methods.test_tensor_smaller_than_one_outlier(method)
    methods.test_refuses_what_is_no_finite_matrix(method)
    test_methods.test_expected_bits_are_those_of_gaussian_weights(method)

    monkeypatch.setattr(test_tasks, "CONF", tree / "conf" / "task")
    test_tasks.test_yaml_is_the_constructor("mine")
    test_tasks.test_equal_models_differ_in_nothing("mine", tmp_path)
    test_tasks.test_a_changed_model_is_seen_and_results_repeat("mine")
    test_tasks.test_protocol_names_what_changes_outputs("mine")
    test_tasks.test_what_does_not_fit_into_the_context_is_refused_before_the_model_runs("mine")


def test_what_the_recipes_make_is_in_everything_a_sweep_leaves(tree: Path, tmp_path: Path) -> None:
    status, out, err = slimrun(
        tmp_path, "-m", f"--config-dir={tree / 'conf'}", "hydra.sweep.dir=sweep",
        "model=mine", "compress=mine", "device=mine", "quant=mine,w8a8", "task=[perplexity,mine]",
        "task.perplexity.windows=2", "task.perplexity.window=32",
    )  # fmt: skip
    assert status == 0, out + err
    sweep = tmp_path / "sweep"
    [first, second] = json.loads((sweep / "sweep.json").read_text())["summary"]
    assert "mine: bits a character" in out
    assert {"quant=mine", "quant=w8a8"} == {first["overrides"], second["overrides"]}
    assert first["mine: bits a character"] >= 0

    assert "mine: bits a character" in [
        panel["title"] for panel in json.loads((sweep / "pareto.json").read_text())["panels"]
    ]
    assert "<button>mine: bits a character</button>" in (sweep / "report.html").read_text()
    assert "| mine: bits a character |" in (sweep / "0" / "report.md").read_text()

    results = json.loads((sweep / "0" / "results.json").read_text())
    assert results["compress/verified"] == 1
    assert results["mine/bits_quant"] == first["mine: bits a character"]
    assert bundle.read(sweep / "0" / "artifact").quantized

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("slimrun").experiment_id])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run is not parent]
    assert "mine: bits a character" in parent.data.tags["best.mine"]
    assert all("mine: bits a character: " in run.data.tags["verdict"] for run in children)
    assert {run.data.metrics["mine/bits_quant"] for run in children} == {
        first["mine: bits a character"],
        second["mine: bits a character"],
    }
    assert {run.data.params["model.width"] for run in children} == {"32"}
    assert {run.data.params["device.name"] for run in children} == {"mine"}
