"""Models' folders as people have them, shrunken: the files, keys and names of the originals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_format
from torch import Tensor

from slimrun.ops.model.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from tests.framework.golden import chatglm as golden

CODE = "modeling_chatglm.ChatGLMForConditionalGeneration"
WORDS = (" ", " the", " of", " and", " a", " is", "中", "国", "的", "首", "都")
PIECES = 3 + 256 + len(WORDS)


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


def write_sentencepiece(file: Path, words: Sequence[str] = WORDS) -> None:
    """A tokenizer.model of LLaMA's kind: three special pieces, 256 bytes, some words."""
    model = sentencepiece_format.ModelProto()
    special = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    spaced = [(word.replace(" ", "▁"), 1) for word in words]
    for piece, kind in [*special, *((f"<0x{byte:02X}>", 6) for byte in range(256)), *spaced]:
        model.pieces.add(piece=piece, score=-1.0, type=kind)
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = 2, True
    model.trainer_spec.vocab_size = len(model.pieces)
    file.write_bytes(model.SerializeToString())
