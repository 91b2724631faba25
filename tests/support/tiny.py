"""Small checkpoints with random weights, made on the spot: real architecture, tokeniser, chat template, file layout.

`make_checkpoint` writes what a family's repository holds: config.json, generation_config.json, safetensors (in shards
with an index if asked), a byte-level BPE tokeniser trained on the text below and a chat template. Weights are wilder
than an initialiser would make them, norms and biases included, so that greedy output varies and mistakes show.
"""

import functools
import json
from pathlib import Path
from typing import Any

VOCABULARY = 384  # asked of the trainer; specials come on top

_TEXT = """The river rises in the hills and runs to the sea. People live along it and send letters up and down in boats.
When a boat is late, someone lights a lamp on the bridge and waits. The post master writes the hour in a book.
A letter has a sender, a receiver and a seal. Nobody opens it on the way; a lost letter is written again.
def add(left, right): return left + right
{"name": "get_weather", "arguments": {"city": "Oslo", "unit": "celsius", "days": 3}}
Grüße aus Köln: über Brücken, naïve Café-Gäste, déjà vu. Привет, мир. 你好，世界。 こんにちは。 🙂 🚀
one two three four five six seven eight nine ten eleven twelve 0123456789 3.14159
What is the capital of France? The capital of France is Paris. What is two plus two? Two plus two is four.
"""

QWEN3_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN3_WORDS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
LLAMA3_SPECIALS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
]

# The layout of the family's published template: system and tools first, thinking kept only after the last question.
QWEN3_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\nYou are provided with \
function signatures within <tools></tools> XML tags:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n\
</tool_call><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, looking=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.looking and message.role == "user" and message.content is string %}
        {%- set ns.looking = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = message.reasoning_content if message.reasoning_content is string else '' %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or not loop.first %}
                {{- '\\n' }}
            {%- endif %}
            {%- if tool_call.function %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA3_TEMPLATE = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is defined and tools %}
    {{- "Environment: ipython\\n" }}
    {{- 'Given the following functions, please respond with a JSON for a function call in the format \
{"name": function name, "parameters": dictionary of argument name and its value}.\\n\\n' }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {%- if message.tool_calls|length != 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" + message.content + "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# What a tiny member of every family has in common, in the words most configurations share.
_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_SLIDING = {"sliding_window": 24, "use_sliding_window": True}
# What a family needs on top, or names otherwise.
_FAMILY: dict[str, dict[str, Any]] = {
    "qwen2": {"num_key_value_heads": 2},
    "qwen3_moe": {**_MOE, "decoder_sparse_step": 1, "mlp_only_layers": [0]},
    "qwen2_moe": {**_MOE, "shared_expert_intermediate_size": 48},
    "mixtral": _MOE,
    "mistral": {"sliding_window": 24},
    "gemma2": {"sliding_window": 24, "query_pre_attn_scalar": 16},
    "gemma3_text": {"sliding_window": 24, "query_pre_attn_scalar": 16, "sliding_window_pattern": 2},
    "gpt_oss": {**_MOE, "sliding_window": 24},
    "deepseek_v3": {
        "q_lora_rank": 32,
        "kv_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 48,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "head_dim": 8,
    },
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512, "n_inner": 96},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "phi3": {"head_dim": None},
    "cohere2": {"sliding_window": 24},
}
# Families whose configuration refuses or misreads the common words.
_ONLY_OWN = {"gpt2"}


@functools.cache
def _train(specials: tuple[str, ...], words: tuple[str, ...]) -> str:
    """tokenizer.json of a byte-level BPE tokeniser with these added tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT.splitlines() * 4, trainer)
    tokenizer.add_special_tokens(list(specials))
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    return tokenizer.to_str(pretty=False)


def write_tokenizer(
    directory: Path, style: str = "qwen3", *, more: tuple[str, ...] = (), template: str = ""
) -> dict[str, Any]:
    """Write tokeniser and chat template of a style (qwen3, llama3); returns bos, eos, pad ids and the size.

    `more` are further special tokens; `template` stands in place of the style's.
    """
    from tokenizers import Tokenizer

    directory.mkdir(parents=True, exist_ok=True)
    specials, words = (QWEN3_SPECIALS, QWEN3_WORDS) if style == "qwen3" else (LLAMA3_SPECIALS, [])
    (directory / "tokenizer.json").write_text(_train((*specials, *more), tuple(words)))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    if style == "qwen3":
        usual, bos, stop, eos = QWEN3_TEMPLATE, None, "<|im_end|>", ["<|im_end|>", "<|endoftext|>"]
    else:
        usual, bos, stop, eos = LLAMA3_TEMPLATE, "<|begin_of_text|>", "<|eot_id|>", ["<|end_of_text|>", "<|eot_id|>"]
    (directory / "chat_template.jinja").write_text(template or usual)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": stop,
        "pad_token": specials[0] if style == "qwen3" else stop,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    if bos:
        settings["bos_token"] = bos
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return {
        "bos": tokenizer.token_to_id(bos) if bos else None,
        "eos": [tokenizer.token_to_id(token) for token in eos],
        "pad": tokenizer.token_to_id(settings["pad_token"]),
        "size": tokenizer.get_vocab_size(with_added_tokens=True),
    }


def make_checkpoint(
    directory: Path, arch: str = "qwen3", *, dtype: str = "float32", shards: int = 1, seed: int = 0, **config: Any
) -> Path:
    """Write a tiny checkpoint of architecture `arch` (a transformers model type) and return its directory.

    `config` goes over the defaults, e.g. ``num_hidden_layers=2`` or ``tie_word_embeddings=True``. The vocabulary is
    rounded up to a multiple of 64, so there are ids without a token, as real checkpoints have them.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    style = "llama3" if arch == "llama" else "qwen3"
    tokens = write_tokenizer(directory, style)
    values = {} if arch in _ONLY_OWN else dict(_COMMON)
    values |= _FAMILY.get(arch, {}) | config
    values = {name: value for name, value in values.items() if value is not None}
    values |= {"bos_token_id": tokens["bos"], "eos_token_id": tokens["eos"][0], "pad_token_id": tokens["pad"]}
    values.setdefault("vocab_size", (tokens["size"] + 63) // 64 * 64)
    settings = AutoConfig.for_model(arch, **values)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
        stir(model)
    model.generation_config = GenerationConfig(
        bos_token_id=tokens["bos"],
        eos_token_id=tokens["eos"],
        pad_token_id=tokens["pad"],
        do_sample=True,
        temperature=0.6,
        top_k=20,
        top_p=0.95,
    )
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    if shards > 1:
        _split(directory, shards)
    return directory


def stir(model: Any) -> None:
    """Give every parameter a spread that shows: matrices keep a sane gain, vectors leave their neutral value."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.copy_(torch.randn_like(parameter) * (1.5 / parameter.shape[-1] ** 0.5))


def _split(directory: Path, shards: int) -> None:
    """Replace model.safetensors by `shards` files and an index, as large checkpoints come."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (directory / "model.safetensors").unlink()
