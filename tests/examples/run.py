"""The run as a Python object: what `slimrun --config-dir tests/examples experiment=tiny` does, beside its yaml.

python tests/examples/run.py
"""

from pathlib import Path

from slimrun import Experiment
from slimrun.evaluation.task.perplexity import Perplexity
from slimrun.ops.compress.native import Native
from slimrun.ops.framework.base import Device
from slimrun.ops.framework.pytorch import PyTorch
from slimrun.ops.model.random import Random
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.runner.cache import Cache
from slimrun.runner.display import Stages
from slimrun.runner.settings import Calibration
from slimrun.runner.tracking.none import NoTracking

experiment = Experiment(
    model=Random(
        name="tiny_llama",
        architecture={
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 259, "max_position_embeddings": 8192,
            "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        },
    ),
    framework=PyTorch(),
    quant=W8A8S(fraction=0.03, ignore=["*.down_proj"]),
    compress=Native(),
    device=Device(name="cpu", type="cpu"),
    task={"perplexity": Perplexity(windows=4, window=64)},
    tracking=NoTracking(),
    calibration=Calibration(samples=4, length=128),
    cache=Cache(dir="cache"),
)  # fmt: skip
with Stages() as stages:
    result = experiment.run(Path("run"), stages)
for key in ("size/bits_per_weight", "perplexity/float", "perplexity/quant", "fidelity/kl_mean"):
    print(key, result.metrics[key])
