"""transformers' Auto classes, which know ChatGLM2 once this is imported."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from slimrun.ops.model.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from slimrun.ops.model.chatglm_tokenizer import ChatGLMTokenizer

__all__ = ["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"]

AutoConfig.register(ChatGLMConfig.model_type, ChatGLMConfig, exist_ok=True)
AutoTokenizer.register(ChatGLMConfig, ChatGLMTokenizer, exist_ok=True)
for auto in (AutoModel, AutoModelForCausalLM):
    auto.register(ChatGLMConfig, ChatGLMForConditionalGeneration, exist_ok=True)
