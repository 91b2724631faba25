"""Model directories without weights, one for each way of writing tool calls."""

from pathlib import Path

from tests.support.text_models import HARMONY_SPECIALS, MISTRAL_SPECIALS, sentencepiece_tokenizer, write_model

_DEEPSEEK = [f"<｜tool▁{name}｜>" for name in ("calls▁begin", "call▁begin", "sep", "call▁end", "calls▁end")]
_KIMI = [f"<|tool_call{name}|>" for name in ("s_section_begin", "_begin", "_argument_begin", "_end", "s_section_end")]
_HERMES = ["<tool_call>", "</tool_call>"]
_GLM = ["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]
_THINK = ["<think>", "</think>"]
_TAGS = ["<function=", "<parameter="]

# Name → style of the tokeniser, special tokens, what the template mentions.
MODELS: dict[str, tuple[str, list[str], list[str]]] = {
    "hermes": ("gemma", [*_HERMES, *_THINK], _HERMES),
    "hermes in plain text": ("gemma", [], [*_HERMES, *_THINK]),
    "qwen_xml": ("gemma", [*_HERMES, *_THINK], [*_HERMES, *_TAGS]),
    "qwen_xml in plain text": ("gemma", [], [*_HERMES, *_TAGS]),
    "glm": ("gemma", [*_HERMES, *_GLM, *_THINK], [*_HERMES, *_GLM]),
    "glm in plain text": ("gemma", [], [*_HERMES, *_GLM]),
    "mistral": ("llama", MISTRAL_SPECIALS, ["[TOOL_CALLS]"]),
    "mistral_named": ("llama", MISTRAL_SPECIALS, ["[TOOL_CALLS]", "[ARGS]"]),
    "deepseek": ("gemma", _DEEPSEEK, [*_DEEPSEEK, "```json"]),
    "deepseek_v31": ("gemma", [*_DEEPSEEK, *_THINK], _DEEPSEEK),
    "kimi": ("gemma", _KIMI, _KIMI),
    "phi4": ("gemma", ["<|tool_call|>", "<|/tool_call|>"], ["<|tool_call|>", "<|/tool_call|>"]),
    "granite": ("gemma", ["<|tool_call|>"], ["<|tool_call|>"]),
    "llama3": ("gemma", ["<|python_tag|>"], ["<|python_tag|>"]),
    "harmony": ("gemma", HARMONY_SPECIALS, []),
}

_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ tools }}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write_convention(directory: Path, name: str, *, ending: str = "") -> Path:
    """Write the model of this name. `ending`: what its template writes where the assistant speaks."""
    style, specials, mentions = MODELS[name]
    template = f"{_TEMPLATE}{ending}{{# {' '.join(mentions)} #}}"
    return write_model(
        directory, sentencepiece_tokenizer(style, specials), template=template, config={"eos_token_id": 2}
    )
