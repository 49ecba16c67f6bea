"""Logits of shrunken ChatGLM2 models, from the model's own code.

    python tests/framework/golden/chatglm.py FOLDER     # with torch and transformers 4.30.2, which that code wants

FOLDER holds the Python files of THUDM/chatglm2-6b (`modeling_chatglm.py` and those beside it); they are no part of this
repository. Writes `chatglm.npz` beside this file: of each case the logits [B, T, V], in float32.
"""

from __future__ import annotations

import importlib
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

GOLDEN = Path(__file__).with_suffix(".npz")
SHRUNKEN = json.loads(
    Path(__file__).with_suffix(".json").read_text()
)  # config.json of the 6B model, with smaller numbers
IDS = [[36, 38, 5, 6, 30, 7, 8, 9, 29, 11, 4, 3], [36, 38, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]]
PADDED = [[0] * 3 + [1] * 9, [1] * 12]  # attention masks; the first row is padded on the left
CASES: dict[str, dict[str, Any]] = {
    "genuine": {},
    "every head has its keys": {"multi_query_attention": False},
    "biases and layer norms": {"add_bias_linear": True, "rmsnorm": False},
    "residuals after the norms": {"apply_residual_connection_post_layernorm": True},
    "no last norm": {"post_layer_norm": False},
    "float16": {"torch_dtype": "float16"},
    "padded": {},
    "one token at a time": {},
}


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The weights of a parameter, the same wherever they are made."""
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    scaled = drawn * 0.1 + ("norm" in name and "weight" in name) if len(shape) == 1 else drawn * shape[1] ** -0.5
    return scaled.astype(np.float32)


def fill(module: torch.nn.Module) -> None:
    """Give every parameter its numbers."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(numbers(name, tuple(parameter.shape))))


def logits(case: str, module: Any) -> torch.Tensor:
    """What the case asks of a filled model, with the calls that both codes have."""
    ids = torch.tensor(IDS)
    with torch.no_grad():
        if case == "padded":
            mask = torch.tensor(PADDED)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            return module(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        if case != "one token at a time":
            return module(input_ids=ids).logits
        steps = [module(input_ids=ids[:, :8], use_cache=True)]
        for at in range(8, 12):
            positions = torch.full((2, 1), at)
            past = steps[-1].past_key_values
            steps.append(
                module(input_ids=ids[:, at : at + 1], position_ids=positions, past_key_values=past, use_cache=True)
            )
        return torch.cat([step.logits for step in steps], 1)


def main(folder: Path) -> None:
    """Ask the code in the folder."""
    sys.path.insert(0, str(folder.absolute().parent))
    code = importlib.import_module(f"{folder.name}.modeling_chatglm")
    config = importlib.import_module(f"{folder.name}.configuration_chatglm").ChatGLMConfig
    golden = {}
    for case, changes in CASES.items():
        module = code.ChatGLMForConditionalGeneration(config(**{**SHRUNKEN, **changes}), empty_init=False)
        module = module.to(getattr(torch, changes.get("torch_dtype", "float32"))).eval()
        fill(module)
        golden[case] = logits(case, module).float().numpy()
    np.savez_compressed(GOLDEN, **golden)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
