"""What a model directory says, and what prompts it takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shared.messages import Prompt
from tests.support.text_models import sentencepiece_tokenizer, write_model
from worker.text.checkpoint import Checkpoint, GenerationDefaults
from worker.text.errors import CheckpointError, PromptError
from worker.text.model_text import ModelText
from worker.text.vocabulary import Vocabulary


def test_no_torch_and_no_transformers() -> None:
    code = "import sys, worker.text.model_text; print({'torch', 'transformers', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_end_tokens_are_all_that_the_files_name(tmp_path: Path) -> None:
    tokenizer = sentencepiece_tokenizer("gemma", ["<end>"])
    config = {"eos_token_id": 7, "text_config": {"eos_token_id": [8, 9], "vocab_size": 600, "n_positions": 64}}
    config |= {"max_position_embeddings": None}
    path = write_model(tmp_path, tokenizer, config=config, generation={"eos_token_id": [7, 11]}, eos_token="<end>")
    text = ModelText.load(path)
    assert text.eos_ids == sorted({7, 8, 9, 11, tokenizer.token_to_id("<end>")})
    assert (text.vocab_size, text.context_limit) == (600, 64)


def test_a_bare_directory(tmp_path: Path) -> None:
    tokenizer = sentencepiece_tokenizer("gemma", [])
    path = write_model(tmp_path, tokenizer, config={"max_position_embeddings": None}, eos_token=None, bos_token=None)
    text = ModelText.load(path)
    assert (text.eos_ids, text.context_limit, text.generation) == ([], 0, GenerationDefaults())
    assert text.vocab_size == tokenizer.get_vocab_size()


def test_recommended_sampling(tmp_path: Path) -> None:
    generation = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "eos_token_id": 2}
    text = ModelText.load(write_model(tmp_path, sentencepiece_tokenizer("gemma", []), generation=generation))
    assert text.generation == GenerationDefaults(True, 0.6, 0.95, 20, 0.0, None)


@pytest.mark.parametrize("limit", [1e30, -1, "long", None])
def test_a_limit_that_is_none(tmp_path: Path, limit: object) -> None:
    path = write_model(tmp_path, config={"max_position_embeddings": None}, model_max_length=limit)
    assert Checkpoint.read(path).context_limit == 0


def test_templates_in_files_of_their_own_come_first(tmp_path: Path) -> None:
    write_model(tmp_path, template="file", chat_template="config")
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "processor"}))
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("more")
    assert Checkpoint.read(tmp_path).templates == {"default": "file", "tool_use": "more"}
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").unlink()
    (tmp_path / "chat_template.jinja").unlink()
    assert Checkpoint.read(tmp_path).templates == {"default": "config"}
    (tmp_path / "tokenizer_config.json").unlink()
    assert Checkpoint.read(tmp_path).templates == {"default": "processor"}


def test_special_tokens_of_old_checkpoints(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    (path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    assert Checkpoint.read(path).named_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_added_tokens_that_only_the_configuration_lists(tmp_path: Path) -> None:
    tokenizer = sentencepiece_tokenizer("gemma", [])
    size = tokenizer.get_vocab_size()
    added = {
        str(size + 1): {"content": "<two>", "special": True, "normalized": False},
        str(size): {"content": "<one>", "special": False, "normalized": False},
        "1": {"content": "<s>", "special": True},
    }
    text = ModelText.load(write_model(tmp_path, tokenizer, added_tokens_decoder=added))
    assert text.encode(Prompt(text="<one><two>")) == [1, size, size + 1]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "config.json"),
        ({"config.json": "{"}, "not valid JSON"),
        ({"config.json": "{\"a\": 1}", "tokenizer.json": "{}"}, "cannot be read"),
    ],
)  # fmt: skip
def test_broken_directories(tmp_path: Path, files: dict[str, str], problem: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=problem) as caught:
        ModelText.load(tmp_path)
    assert tmp_path in (caught.value.path, caught.value.path.parent)


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (Prompt(text=""), "prompt"),
        (Prompt(ids=[]), "prompt"),
        (Prompt(), "prompt"),
        (Prompt(ids=[1, 448]), "prompt"),
        (Prompt(ids=[-1]), "prompt"),
        (Prompt(messages=[]), "messages"),
        (Prompt(text="\ud800"), "prompt"),
        (Prompt(messages=[{"role": "user", "content": "\ud83d"}]), "messages"),
    ],
)
def test_refused_prompts(texts: dict[str, ModelText], prompt: Prompt, param: str) -> None:
    with pytest.raises(PromptError) as caught:
        texts["qwen3"].encode(prompt)
    assert caught.value.param == param


def test_ids_pass_unchanged(texts: dict[str, ModelText]) -> None:
    assert texts["qwen3"].encode(Prompt(ids=[0, 447, 5])) == [0, 447, 5]
    ids = texts["qwen3"].encode(Prompt(text="The river"))
    assert texts["qwen3"].render(Prompt(ids=ids)) == "The river"


def test_names_of_special_tokens_in_a_message_become_those_tokens(texts: dict[str, ModelText]) -> None:
    text = texts["qwen3"]
    end = text.encode(Prompt(text="<|im_end|>"))
    assert len(end) == 1
    prompts = [Prompt(messages=[{"role": "user", "content": content}]) for content in ("a", "a<|im_end|>")]
    counts = [text.encode(prompt).count(end[0]) for prompt in prompts]
    assert counts[1] == counts[0] + 1


def test_padding_and_truncation_in_the_file_are_ignored(tmp_path: Path) -> None:
    tokenizer = sentencepiece_tokenizer("gemma", [])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    assert len(Vocabulary(tokenizer).encode("The river runs to the sea", add_special_tokens=True)) > 4


def test_checkpoints_without_tokenizer_json_are_converted(tmp_path: Path) -> None:
    """GPT-2's old layout, read by transformers in a child process."""
    from tests.support.tiny import _train

    model = json.loads(_train(("<|endoftext|>",), ()))["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"] | {"<|endoftext|>": len(model["vocab"])}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
    path = write_model(tmp_path, config={"model_type": "gpt2"}, tokenizer_class="GPT2Tokenizer", bos_token=None)
    text = ModelText.load(path)
    ids = text.encode(Prompt(text="The river 🙂"))
    assert text.render(Prompt(ids=ids)) == "The river 🙂"


def test_nothing_to_convert(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        ModelText.load(write_model(tmp_path))
