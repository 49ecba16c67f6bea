"""A shrunken ChatGLM2 with the 6B model's names, in memory and as a user's folder that brings its own code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from slimrun.ops.model.tokenizer import byte_tokenizer

from .configuration_chatglm import ChatGLMConfig
from .modeling_chatglm import ChatGLMForConditionalGeneration

VOCABULARY = 264  # the byte tokenizer's 259, padded as the original pads its own
SHRUNKEN = {
    "num_layers": 2,
    "padded_vocab_size": VOCABULARY,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "kv_channels": 8,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
    "seq_length": 1024,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
AUTO_MAP = {
    "AutoConfig": "configuration_chatglm.ChatGLMConfig",
    "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
}


def chatglm(seed: int = 0) -> ChatGLMForConditionalGeneration:
    """The shrunken model with random weights, biases and norms included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ChatGLMForConditionalGeneration(ChatGLMConfig(**SHRUNKEN))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    parameter.copy_(torch.randn(parameter.shape) * 0.1 + ("norm" in name))
                else:
                    parameter.copy_(torch.randn(parameter.shape) * parameter.shape[1] ** -0.5)
    return model.eval()


def write_folder(folder: Path, seed: int = 0) -> Path:
    """config.json with its auto_map, the two code files, safetensors and a byte tokenizer."""
    chatglm(seed).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": AUTO_MAP}), encoding="utf-8")
    for code in ("configuration_chatglm.py", "modeling_chatglm.py"):
        shutil.copyfile(Path(__file__).with_name(code), folder / code)
    return folder
