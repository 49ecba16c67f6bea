"""My network and my data: quantized, coded, stored, loaded again and compared, without Hydra.

    python tests/examples/quantize_my_module.py

Cells (# %%) run in a notebook too. The first half takes any nn.Module; the second a language model of transformers, of
which `load_bundle` makes a running model again from nothing but the bundle's folder.
"""

# %% My data: the Universal Declaration of Human Rights; which language is a sentence?
import json
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

import slimrun.evaluation
from slimrun import Calibrator, Compressor, load_bundle
from slimrun.evaluation.base import Reference
from slimrun.evaluation.task.perplexity import Perplexity
from slimrun.ops import bundle, compress
from slimrun.ops.calibration.base import silent
from slimrun.ops.compress.native import Native
from slimrun.ops.framework.pytorch import TorchModel
from slimrun.ops.model.tokenizer import byte_tokenizer
from slimrun.ops.quant.w8a8 import W8A8
from slimrun.ops.quant.w8a8s import W8A8S

torch.manual_seed(0)
FILE = Path(slimrun.evaluation.__path__[0]) / "data" / "udhr.jsonl"
LANGUAGES = ("en", "fr", "de", "es")
articles = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def pairs(text: str) -> Tensor:
    """How often each pair of bytes follows, hashed into 1024 places."""
    data = text.encode()
    places = torch.tensor([(31 * first + second) % 1024 for first, second in pairwise(data)])
    return torch.bincount(places, minlength=1024) / len(places)


inputs = torch.stack([pairs(article[language]) for article in articles for language in LANGUAGES])
labels = torch.arange(len(LANGUAGES)).repeat(len(articles))
held_out = torch.arange(len(labels)) % 5 == 0

# %% My module, trained.
network = nn.Sequential(nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, len(LANGUAGES)))
optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
for _ in range(100):
    optimizer.zero_grad()
    cross_entropy(network(inputs[~held_out]), labels[~held_out]).backward()
    optimizer.step()


@torch.no_grad()
def accuracy() -> float:
    """Share of right guesses on what it was not trained on."""
    return float((network(inputs[held_out]).argmax(dim=1) == labels[held_out]).float().mean())


# %% Quantized in place: a sample is what one call of the module is given.
float_accuracy = accuracy()
samples = [[inputs[~held_out][start : start + 16]] for start in (0, 16, 32)]
layers = Calibrator(network, W8A8S(ignore_last_linear=False), samples).run()
quantized_accuracy = accuracy()
for layer in layers:
    reach = f"{layer.input_low:.2g} to {layer.input_high:.2g}"
    print(f"linear {layer.name} {layer.shape}: {layer.sqnr_db:.1f} dB, inputs {reach}")
print(f"accuracy {float_accuracy:.3f}, quantized {quantized_accuracy:.3f}")

# %% Coded: every weight comes back bit for bit.
weights = {layer.name: network.get_submodule(layer.name).weight.numpy() for layer in layers}
streams = {name: compress.encode(weight) for name, weight in weights.items()}
assert all((compress.decode(streams[name]) == weights[name]).all() for name in weights)
print(f"{sum(w.size for w in weights.values())} bytes of weights are {sum(map(len, streams.values()))} coded")

# %% A language model: mine too, of bytes, trained for a moment.
tokenizer = byte_tokenizer()
config = LlamaConfig(
    vocab_size=259, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
module = LlamaForCausalLM(config)
english = "\n\n".join(article["en"] for article in articles)
Path("my_text.txt").write_text(english[-4000:], encoding="utf-8")
tokens = torch.tensor(tokenizer(english[:-4000])["input_ids"])
optimizer = torch.optim.Adam(module.parameters(), lr=0.005)
for step in range(60):
    batch = tokens[: len(tokens) // 64 * 64].reshape(-1, 64)[step % 2 :: 2]
    optimizer.zero_grad()
    module(input_ids=batch, labels=batch).loss.backward()
    optimizer.step()

# %% Measured as a float model, then quantized, coded and written as a bundle that is proven to read back.
model = TorchModel(module, tokenizer, name="mine", fingerprint="")
task = Perplexity(path="my_text.txt", windows=24, window=64)
float_outputs = task.evaluate(model, None, silent)
reference = Reference(float_outputs, model.output_head())

quantizer, codec, folder = W8A8(), Native(), Path("my_bundle")
Calibrator(module, quantizer, [{"input_ids": tokens[None, start : start + 64]} for start in (0, 64, 128)]).run()
tensors = model.tensors()
coded = Compressor(codec).run({name: tensors[f"{name}.weight"].numpy() for name in model.quantized()})
bundle.write(folder, tensors, coded, quantizer.quant_type, codec, model.save_description)
bundle.verify(folder, tensors)

# %% Loaded again from the folder alone, and compared window by window with the float model.
loaded = load_bundle(folder)
report = task.compare("perplexity", float_outputs, task.evaluate(loaded, reference, silent))
for score in report.scores:
    print(f"{score.label}: {score.float_value:.4g}, quantized {score.quant_value:.4g} {score.verdict}")
