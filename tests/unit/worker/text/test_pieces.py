"""Prompts that are tokenised piece by piece have the ids that they have as a whole."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, pre_tokenizers

from shared.messages import Prompt
from tests.support.text_models import sentencepiece_tokenizer
from worker.text.model_text import ModelText
from worker.text.pieces import Pieces
from worker.text.vocabulary import Vocabulary

STYLES = ("qwen3", "llama3", "mistral", "gemma", "harmony")


class Noting(Vocabulary):
    """Notes what it encodes."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """As ever."""
        self.__dict__.setdefault("encoded", []).append(text)
        return super().encode(text, add_special_tokens=add_special_tokens)


def vocabulary(*added: AddedToken | str) -> Noting:
    """A tokeniser that marks the beginnings of words, with these special tokens."""
    tokenizer = sentencepiece_tokenizer("llama", [])
    tokenizer.add_special_tokens([AddedToken(one, normalized=False) if isinstance(one, str) else one for one in added])
    return Noting(tokenizer)


@pytest.mark.parametrize("style", STYLES)
@given(data=st.data())
def test_ids_are_those_of_the_whole_text(texts: dict[str, ModelText], style: str, data: st.DataObject) -> None:
    model = texts[style]
    pieces, added = Pieces(model._vocabulary, model._template.source), sorted(model._vocabulary.added)
    assert pieces.marks
    words = st.sampled_from([" ", "\n", "\n\n", "a", " the river", "İ", "é", "\u0301", "<", "|>", "[", "1", "\u2581"])
    text = "".join(data.draw(st.lists(st.one_of(st.sampled_from(added), words, st.text(max_size=4)), max_size=30)))
    whole = model._vocabulary.encode(text, add_special_tokens=False)
    assert pieces.encode(text) == whole
    assert pieces.encode(text) == whole  # and when all of it is known


@pytest.mark.parametrize("style", STYLES)
def test_a_conversation_that_goes_on(texts: dict[str, ModelText], style: str) -> None:
    model = texts[style]
    messages = [{"role": "user", "content": "People live along it."}]
    for turn in range(3):
        messages += [
            {"role": "assistant", "content": f"one two three {turn}"},
            {"role": "user", "content": "and then\n"},
        ]
        rendered = model.render(Prompt(messages=messages))
        assert model.encode(Prompt(messages=messages)) == model._vocabulary.encode(rendered, add_special_tokens=False)


def test_what_repeats_is_encoded_once() -> None:
    noting = vocabulary("<|a|>", "<|b|>")
    pieces = Pieces(noting, "<|a|><|b|>")
    first, second = "<|a|>user\nhello<|b|>\n", "<|a|>user\nand again<|b|>\n"
    pieces.encode(first)
    noting.encoded.clear()
    pieces.encode(first + second)
    assert noting.encoded == ["<|a|>user\nand again"]


def test_only_marks_of_the_template_cut() -> None:
    assert Pieces(vocabulary("<|a|>", "<|b|>"), "{{ '<|b|>' }}").marks == ["<|b|>"]


@pytest.mark.parametrize(
    "added",
    [
        [AddedToken("<|a|>", normalized=False, lstrip=True)],  # takes white space that stands before it
        [AddedToken("<|a|>", normalized=False, rstrip=True)],
        [AddedToken("<|a|>", normalized=False, single_word=True)],  # looks at its neighbours
        [AddedToken("<|a|>", normalized=True)],  # is looked for in another text
        ["<|a|>", "x<|a|>"],  # may be part of another
        ["<|a|>", "x<|"],  # may be begun by another
        ["<|a|>", "<|a|>x"],  # another may stand there
        ["a<|a"],  # may be begun by itself
    ],
)
def test_marks_that_do_not_cut(added: list[AddedToken | str]) -> None:
    known = vocabulary(*added)
    pieces = Pieces(known, "<|a|>a<|a")
    assert not {"<|a|>", "a<|a"} & set(pieces.marks)
    for text in ("b <|a|> c", "b x<|a|> c", "b <|a|>x", "a<|a<|a", "ba<|ab"):
        assert pieces.encode(text) == known.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    "first_words",
    [
        pre_tokenizers.Metaspace(prepend_scheme="first", split=False),  # of the whole text alone
        pre_tokenizers.Metaspace(prepend_scheme="always"),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
    ],
)
def test_spaces_that_the_tokeniser_adds(first_words: pre_tokenizers.PreTokenizer) -> None:
    tokenizer = sentencepiece_tokenizer("gemma", ["<|a|>"])
    tokenizer.normalizer, tokenizer.pre_tokenizer = None, first_words
    known = Vocabulary(tokenizer)
    pieces = Pieces(known, "<|a|>")
    assert pieces.marks
    for text in ("one two<|a|>three four<|a|>", "<|a|>three four<|a|><|a|> five", "one"):
        assert pieces.encode(text) == known.encode(text, add_special_tokens=False)


def test_special_tokens_that_are_spelled_out() -> None:
    tokenizer = sentencepiece_tokenizer("llama", ["<|a|>"])
    tokenizer.encode_special_tokens = True
    known = Vocabulary(tokenizer)
    pieces = Pieces(known, "<|a|>")
    assert not pieces.marks
    assert pieces.encode("b <|a|> c") == known.encode("b <|a|> c", add_special_tokens=False)


def test_what_was_not_used_for_longest_is_forgotten() -> None:
    noting = vocabulary("<|a|>")
    pieces = Pieces(noting, "<|a|>", max_characters=40)
    one, two, three = (f"<|a|>{letter * 10}" for letter in "bcd")
    pieces.encode(one + two)
    pieces.encode(one)
    pieces.encode(three)  # in the place of two
    noting.encoded.clear()
    pieces.encode(one + two + three)
    assert noting.encoded == [two, three]  # one was used last; two, coming back, puts out three
    large = "<|a|>" + "e" * 100  # more than there is room for
    assert pieces.encode(large) == Vocabulary.encode(noting, large, add_special_tokens=False)


def test_several_threads_at_once() -> None:
    known = vocabulary("<|a|>")
    pieces = Pieces(known, "<|a|>", max_characters=200)
    prompts = [f"<|a|>people {number % 7}<|a|> live along it {number % 5}" for number in range(300)]
    with ThreadPoolExecutor(4) as executor:
        found = list(executor.map(pieces.encode, prompts))
    assert found == [known.encode(prompt, add_special_tokens=False) for prompt in prompts]
