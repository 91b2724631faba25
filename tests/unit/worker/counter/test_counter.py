"""Counting with tokenizers that are found, loaded once and forgotten."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from shared.messages import Count, Counted, Prompt, encode
from shared.records import ModelRecord
from worker.counter.counter import Counter
from worker.counter.files import NotHere, NotToBeHad, directory, small_files
from worker.text.errors import PromptError


class Words:
    """A text side whose tokens are words."""

    def encode(self, prompt: Prompt) -> list[int]:
        if not prompt.text:
            raise PromptError("The prompt is empty.", "prompt")
        return list(range(len(prompt.text.split())))


class Shelf:
    """Finds and loads, and remembers what was asked."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def find(self, source: str, revision: str) -> Path:
        if source.startswith("/"):
            raise NotHere(f"no {source}")
        if source == "gated":
            raise NotToBeHad("no access")
        return Path(source)

    def load(self, path: Path, model: ModelRecord) -> Words:
        self.loaded.append(str(path))
        return Words()

    def counter(self, max_kept: int = 2) -> Counter:
        return Counter(self.find, self.load, max_kept)


def ask(counter: Counter, source: str = "m", text: str = "one two three", **fields: str) -> Counted:
    question = Count(ModelRecord(id="id", source=source, **fields), Prompt(text=text))  # type: ignore[arg-type]
    return msgspec.json.decode(counter.answer(encode(question)), type=Counted)


def test_the_last_few_tokenizers_are_kept() -> None:
    shelf = Shelf()
    counter = shelf.counter(max_kept=2)
    assert [ask(counter, source).tokens for source in ("a", "b", "a", "c", "a", "b")] == [3] * 6
    assert shelf.loaded == ["a", "b", "c", "b"]
    ask(counter, "b", chat_template="another")
    assert shelf.loaded == ["a", "b", "c", "b", "b"]


def test_a_burst_loads_once() -> None:
    shelf, gate = Shelf(), threading.Barrier(8)
    slow = threading.Event()
    load = shelf.load

    def slowly(path: Path, model: ModelRecord) -> Words:
        slow.wait(5)
        return load(path, model)

    counter = Counter(shelf.find, slowly)

    def one(_: int) -> int:
        gate.wait(5)
        return ask(counter).tokens

    with ThreadPoolExecutor(9) as pool:
        counts = pool.map(one, range(8))
        slow.set()
        assert list(counts) == [3] * 8
    assert shelf.loaded == ["m"]


@pytest.mark.parametrize(
    ("source", "text", "problem", "says"),
    [
        ("/models/x", "a", "elsewhere", "no /models/x"),
        ("gated", "a", "unavailable", "no access"),
        ("m", "", "invalid_request", "The prompt is empty."),
    ],
)
def test_why_there_is_no_count(source: str, text: str, problem: str, says: str) -> None:
    answer = ask(Shelf().counter(), source, text)
    assert (answer.problem, answer.message) == (problem, says)


def test_nonsense_and_defects_are_answered() -> None:
    counter = Shelf().counter()
    assert msgspec.json.decode(counter.answer(b"{"), type=Counted).problem == "invalid_request"

    def broken(path: Path, model: ModelRecord) -> Words:
        raise RuntimeError("boom")

    answer = ask(Counter(Shelf().find, broken))
    assert (answer.problem, answer.message) == ("unavailable", "RuntimeError: boom")


def test_files_without_weights(tmp_path: Path) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    text = ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    assert sorted(small_files([*shards, *text, "README.md", "original/x.pth"])) == sorted(text)
    with pytest.raises(NotHere):
        directory(str(tmp_path / "nothing"), "")
    (tmp_path / "config.json").write_text("{}")
    assert directory(str(tmp_path), "") == tmp_path
