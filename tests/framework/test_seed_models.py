"""The seed's three models at their true size, weights on the meta device: every linear by name and shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaConfig

from slimrun.ops.model.chatglm import ChatGLMConfig
from slimrun.ops.model.linears import linear_names
from slimrun.ops.model.output_head import output_layer
from slimrun.ops.model.skeleton import skeleton
from slimrun.ops.quant.w8a8s import W8A8S

PRESETS = Path(__file__).parents[2] / "conf" / "experiment"


def llama(hidden: int, ffn: int, layers: int, heads: int) -> Any:
    return skeleton(
        LlamaConfig(
            hidden_size=hidden,
            intermediate_size=ffn,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            vocab_size=32000,
        )
    )


def chatglm2_6b() -> Any:
    config = ChatGLMConfig(add_qkv_bias=True, multi_query_attention=True, multi_query_group_num=2)
    return skeleton(config)


def llama_layer(hidden: int, ffn: int) -> dict[str, tuple[int, int]]:
    square = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    return square | {
        "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden), "mlp.down_proj": (hidden, ffn),
    }  # fmt: skip


CHATGLM_LAYER = {
    "self_attention.query_key_value": (4608, 4096),
    "self_attention.dense": (4096, 4096),
    "mlp.dense_h_to_4h": (27392, 4096),
    "mlp.dense_4h_to_h": (4096, 13696),
}


@pytest.mark.parametrize(
    ("preset", "make", "blocks", "count", "layer", "last"),
    [
        ("llama2_7b", lambda: llama(4096, 11008, 32, 32), "model.layers", 32, llama_layer(4096, 11008),
         {"lm_head": (32000, 4096)}),
        ("llama_13b", lambda: llama(5120, 13824, 40, 40), "model.layers", 40, llama_layer(5120, 13824),
         {"lm_head": (32000, 5120)}),
        ("chatglm2_6b", chatglm2_6b, "transformer.encoder.layers", 28, CHATGLM_LAYER,
         {"transformer.output_layer": (65024, 4096)}),
    ],
    ids=["llama2_7b", "llama_13b", "chatglm2_6b"],
)  # fmt: skip
def test_linears_of_the_seeds_models(
    preset: str, make: Any, blocks: str, count: int, layer: dict[str, tuple[int, int]], last: dict[str, tuple[int, int]]
) -> None:
    model = make()
    assert all(parameter.is_meta for parameter in model.parameters())
    expected = {f"{blocks}.{i}.{name}": shape for i in range(count) for name, shape in layer.items()} | last
    assert list(linear_names(model).items()) == list(expected.items())
    assert output_layer(model) is model.get_submodule(next(iter(last)))
    biases = {name for name in expected if model.get_submodule(name).bias is not None}
    assert biases == {name for name in expected if name.endswith("query_key_value")}

    quant = yaml.safe_load((PRESETS / f"{preset}.yaml").read_text(encoding="utf-8")).get("quant", {"ignore": []})
    assert W8A8S(**quant).ignored(list(expected)) == {*quant["ignore"], *last}
    if preset == "chatglm2_6b":
        assert quant["ignore"] == [f"{blocks}.0.{name}" for name in list(layer)[:3]]
