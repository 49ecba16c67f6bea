"""Models' folders as people have them, shrunken: the files, keys and names of the originals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceTrainer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from slimrun.ops.model.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from tests.framework.golden import chatglm as golden

CODE = "modeling_chatglm.ChatGLMForConditionalGeneration"
DATA = Path(__file__).parents[2] / "evaluation" / "data" / "udhr.jsonl"  # English and Chinese
PIECES = 1000


def chatglm2(folder: Path, **changes: Any) -> Path:
    """As THUDM/chatglm2-6b: config.json that names remote code (which is not there), 7 shards, tokenizer.model."""
    config = golden.SHRUNKEN | {"padded_vocab_size": PIECES + 8, "seq_length": 4096, "torch_dtype": "float16"} | changes
    module = ChatGLMForConditionalGeneration(ChatGLMConfig(**config))
    golden.fill(module)
    tensors = {name: tensor.half() for name, tensor in module.state_dict().items()}
    tensors["transformer.rotary_pos_emb.inv_freq"] = torch.ones(2).half()
    write_shards(folder, tensors, 7)
    (folder / "config.json").write_text(json.dumps(config))
    write_sentencepiece(folder / "tokenizer.model")
    own_tokenizer = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}
    settings = {"name_or_path": "THUDM/chatglm2-6b", "remove_space": False, "do_lower_case": False}
    settings |= {"tokenizer_class": "ChatGLMTokenizer", "auto_map": own_tokenizer}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def chatglm3(folder: Path, **changes: Any) -> Path:
    """As THUDM/chatglm3-6b: the same architecture, its own code beside, of which only the roles are told from."""
    chatglm2(folder, padded_vocab_size=PIECES + 12, seq_length=8192, **changes)
    (folder / "tokenization_chatglm.py").write_text(
        'roles = ["<|system|>", "<|user|>", "<|assistant|>"]; raise OSError'
    )
    return folder


LLAMA = {  # config.json as transformers 4.28 wrote it
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": -1,
    "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 96,
    "max_position_embeddings": 2048,
    "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 2, "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.28.0.dev0", "use_cache": True,
    "vocab_size": PIECES,
}  # fmt: skip


def llama(folder: Path, **changes: Any) -> Path:
    """LLaMA as people converted it in 2023: two shards with rotary buffers among the weights, tokenizer.model alone."""
    config = LLAMA | changes
    module = LlamaForCausalLM(LlamaConfig(**{**config, "pad_token_id": None}))
    golden.fill(module)
    tensors = {name: tensor.half() for name, tensor in module.state_dict().items()}
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    write_shards(folder, tensors, 2)
    (folder / "config.json").write_text(json.dumps(config))
    write_sentencepiece(folder / "tokenizer.model")
    return folder


def write_shards(folder: Path, tensors: Mapping[str, Tensor], count: int) -> None:
    """pytorch_model-0000x-of-0000N.bin, with the index that names them."""
    folder.mkdir(parents=True)
    names = list(tensors)
    shards = [names[place::count] for place in range(count)]
    files = [f"pytorch_model-{number:05}-of-{count:05}.bin" for number in range(1, count + 1)]
    for file, held in zip(files, shards):
        torch.save({name: tensors[name].clone() for name in held}, folder / file)
    index = {name: file for file, held in zip(files, shards) for name in held}
    total = sum(tensor.nbytes for tensor in tensors.values())
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )


def write_sentencepiece(file: Path) -> None:
    """A tokenizer.model trained as LLaMA's was: pairs of bytes, three special pieces, 256 bytes."""
    SentencePieceTrainer.train(
        sentence_iterator=iter(DATA.read_text(encoding="utf-8").split(".")), model_writer=(trained := BytesIO()),
        model_type="bpe", vocab_size=PIECES, byte_fallback=True, split_digits=True, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    file.write_bytes(trained.getvalue())
