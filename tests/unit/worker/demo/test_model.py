"""The model that ships: its files, and that it answers as the text says."""

import json

import pytest

from worker.demo import MODEL_DIRECTORY
from worker.demo.score import questions, score_tools, tools
from worker.demo.tokenizer import CHAT_TEMPLATE, Renderer

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from worker.demo.train import Pupil  # noqa: E402 (it imports torch)


@pytest.fixture(scope="module")
def pupil() -> Pupil:
    torch.set_num_threads(1)
    return Pupil(MODEL_DIRECTORY)


def test_the_weights_are_small_and_in_bfloat16() -> None:
    path = MODEL_DIRECTORY / "model.safetensors"
    raw = path.read_bytes()
    assert len(raw) <= 4_000_000
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"BF16"}


def test_the_configuration_is_a_qwen3_with_a_long_context() -> None:
    config = json.loads((MODEL_DIRECTORY / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["max_position_embeddings"] >= 65536
    assert config["tie_word_embeddings"] is True


def test_generation_is_greedy_and_ends_with_the_turn() -> None:
    generation = json.loads((MODEL_DIRECTORY / "generation_config.json").read_text())
    tokens = json.loads((MODEL_DIRECTORY / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in tokens["added_tokens"]}
    assert generation["do_sample"] is False
    assert generation["eos_token_id"] == [ids["<|im_end|>"], ids["<|endoftext|>"]]


def test_any_text_survives_the_tokenizer() -> None:
    tokens = transformers.AutoTokenizer.from_pretrained(MODEL_DIRECTORY)
    for text in ("Ünïcödé 漢字 🙂 \x00\x7f\t\r\n  x", "".join(map(chr, range(0x250)))):
        assert tokens.decode(tokens.encode(text), skip_special_tokens=False) == text


def test_markers_are_single_tokens_that_stay_in_the_text() -> None:
    tokens = transformers.AutoTokenizer.from_pretrained(MODEL_DIRECTORY)
    for marker in ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"):
        (token,) = tokens.encode(marker)
        assert tokens.decode([token], skip_special_tokens=True) == marker
    assert tokens.decode(tokens.encode("<|im_start|>a<|im_end|>"), skip_special_tokens=True) == "a"


def test_the_shipped_template_is_the_one_of_the_text() -> None:
    assert (MODEL_DIRECTORY / "chat_template.jinja").read_text() == CHAT_TEMPLATE


def test_transformers_renders_the_template_as_the_trainer_did() -> None:
    tokens = transformers.AutoTokenizer.from_pretrained(MODEL_DIRECTORY)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße <b>?"}]
    for variables in ({}, {"tools": tools()}, {"enable_thinking": True}):
        rendered = tokens.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
        assert rendered == Renderer().text(messages, **variables)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is the capital of France?", "Paris"),
        ("What is Plexus?", "one API"),
        ("What port does Plexus use by default?", "31313"),
        ("How do I start Plexus?", "./plexus up"),
        ("Hello!", "Hello"),
        ("How tall is the Eiffel tower?", "I only know"),
    ],
)
def test_it_answers_plainly(pupil: Pupil, question: str, expected: str) -> None:
    answer = pupil.ask(question)
    assert expected in answer
    assert "<think>" not in answer


def test_it_answers_held_out_questions(pupil: Pupil) -> None:
    asked = questions()[::8]
    right = [question for question in asked if question.is_right(pupil.ask(question.text))]
    assert len(right) >= 0.8 * len(asked)


def test_it_thinks_when_asked_to() -> None:
    thought, _, answer = (
        Pupil(MODEL_DIRECTORY, thinking=True).ask("What is the capital of France?").partition("</think>\n\n")
    )
    assert thought.startswith("<think>\n") and len(thought) > 20
    assert "Paris" in answer


def test_a_system_message_does_not_distract_it() -> None:
    assert "Paris" in Pupil(MODEL_DIRECTORY, system="You are a helpful assistant.").ask(
        "What is the capital of France?"
    )


def test_it_calls_tools(pupil: Pupil) -> None:
    assert score_tools(pupil.call).share >= 0.8


def test_it_tells_what_a_tool_found(pupil: Pupil) -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    messages = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sunny, 21 degrees"},
    ]
    answer = pupil.reply(messages, tools())
    assert "sunny" in answer and "21" in answer


def test_it_answers_a_second_question(pupil: Pupil) -> None:
    first = {"role": "user", "content": "What is the capital of France?"}
    answer = {"role": "assistant", "content": pupil.ask("What is the capital of France?")}
    assert "31313" in pupil.reply([first, answer, {"role": "user", "content": "Which port does Plexus listen on?"}])
