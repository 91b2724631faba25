"""Text comes out whole, and adds up to what the tokeniser itself decodes."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from tests.support.text_models import sentencepiece_tokenizer
from tests.support.tiny import QWEN3_SPECIALS, QWEN3_WORDS, _train
from worker.text.detokenise import Detokeniser
from worker.text.vocabulary import Vocabulary

TEXTS = [
    "The river rises in the hills.",
    "  two spaces, trailing  ",
    "🙂🚀👩‍👩‍👧‍👦 🇳🇴 flags and families",
    "你好，世界。こんにちは。안녕하세요",
    "é e\u0301 ñ n\u0303 क्षि ก็",
    "Привет, мир. naïve Café",
    "\n\n\tdef f():\n    return 1\r\n",
    "a\u0000b \ufffd c",
    "�",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
]


def tokenizer_of(style: str) -> Tokenizer:
    if style == "bytes":
        return Tokenizer.from_str(_train(tuple(QWEN3_SPECIALS), tuple(QWEN3_WORDS)))
    return sentencepiece_tokenizer(style, ["[INST]"])


TOKENIZERS = {style: tokenizer_of(style) for style in ("bytes", "llama", "gemma")}
VOCABULARIES = {style: Vocabulary(tokenizer) for style, tokenizer in TOKENIZERS.items()}


def run(style: str, ids: list[int], after: list[int] | None = None) -> str:
    detokeniser = Detokeniser(VOCABULARIES[style], after=after)
    return "".join(map(detokeniser.step, ids)) + detokeniser.flush()


@pytest.mark.parametrize("style", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_adds_up_to_the_tokenizers_own_text(style: str, text: str) -> None:
    ids = TOKENIZERS[style].encode(text, add_special_tokens=False).ids
    expected = TOKENIZERS[style].decode(ids, skip_special_tokens=True)
    assert run(style, ids) == expected
    if style != "llama":
        assert expected == text  # no vacuous test: these tokenisers lose nothing


@pytest.mark.parametrize("style", TOKENIZERS)
@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text(style: str, text: str) -> None:
    ids = TOKENIZERS[style].encode(text, add_special_tokens=False).ids
    assert run(style, ids) == TOKENIZERS[style].decode(ids, skip_special_tokens=True)


def test_random_ids_of_a_byte_level_vocabulary() -> None:
    """Special tokens, torn characters, ids without a token: all as the tokeniser's own decode has them."""
    source = random.Random(7)
    size = VOCABULARIES["bytes"].size
    for _ in range(300):
        ids = [source.randrange(size + 5) for _ in range(source.randrange(1, 40))]
        assert run("bytes", ids) == TOKENIZERS["bytes"].decode(ids, skip_special_tokens=True)


def test_a_good_character_among_bad_bytes_stays() -> None:
    """Here `decode` gives four U+FFFD: it takes back a character that a client has already seen."""
    ids = [TOKENIZERS["gemma"].token_to_id(token) for token in ("<0xE4>", "<0xBD>", "<0xA0>", "<0xE5>")]
    assert TOKENIZERS["gemma"].decode(ids) == "�" * 4
    assert run("gemma", ids) == "你�"


@pytest.mark.parametrize("style", TOKENIZERS)
def test_no_piece_ends_inside_a_character(style: str) -> None:
    text = "🙂你好é"
    detokeniser = Detokeniser(VOCABULARIES[style])
    pieces = [detokeniser.step(id) for id in TOKENIZERS[style].encode(text, add_special_tokens=False).ids]
    assert "" in pieces  # some tokens are parts of characters
    assert "�" not in "".join(pieces)
    assert "".join(pieces) == text


@pytest.mark.parametrize("style", TOKENIZERS)
def test_a_continuation_keeps_its_first_space(style: str) -> None:
    tokenizer = TOKENIZERS[style]
    ids = tokenizer.encode("The river runs", add_special_tokens=False).ids
    for cut in range(1, len(ids)):
        expected = tokenizer.decode(ids)[len(tokenizer.decode(ids[:cut])) :]
        assert run(style, ids[cut:], after=ids[:cut]) == expected


def test_a_character_begun_in_the_prompt_is_finished() -> None:
    ids = TOKENIZERS["gemma"].encode("🙂", add_special_tokens=False).ids
    assert len(ids) == 4
    assert run("gemma", ids[2:], after=ids[:2]) == "🙂"


def test_special_tokens_do_not_count_as_first() -> None:
    tokenizer = TOKENIZERS["llama"]
    ids = [tokenizer.token_to_id("[INST]"), *tokenizer.encode("one two", add_special_tokens=False).ids]
    assert run("llama", ids) == tokenizer.decode(ids, skip_special_tokens=True) == "one two"


def test_a_decoder_of_another_kind() -> None:
    """WordPiece glues and cleans up: what a token adds is found by decoding it after another."""
    words = ["[UNK]", "a", "river", "##s", "run", "."]
    tokenizer = Tokenizer(models.WordPiece({word: id for id, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    detokeniser = Detokeniser(Vocabulary(tokenizer))
    ids = [2, 3, 4, 5]
    assert "".join(map(detokeniser.step, ids)) == tokenizer.decode(ids) == "rivers run."


def test_added_tokens_with_characters_outside_the_byte_alphabet() -> None:
    tokenizer = tokenizer_of("bytes")
    tokenizer.add_tokens(["two words", "猫"])
    ids = [tokenizer.token_to_id(token) for token in ("猫", "two words")]
    detokeniser = Detokeniser(Vocabulary(tokenizer))
    assert "".join(map(detokeniser.step, ids)) == tokenizer.decode(ids) == "猫two words"


def test_no_decoder_at_all() -> None:
    """Tokens are then words, and `decode` puts spaces between; nothing of "a" here, so no token to compare with."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "river": 1, "runs": 2}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["[UNK]"])
    detokeniser = Detokeniser(Vocabulary(tokenizer))
    assert [detokeniser.step(id) for id in (1, 2)] == ["river", "runs"]


def test_token_text_for_people() -> None:
    vocabulary, tokenizer = VOCABULARIES["gemma"], TOKENIZERS["gemma"]
    assert vocabulary.token_text(tokenizer.token_to_id("[INST]")) == "[INST]"
    assert vocabulary.token_text(tokenizer.token_to_id("<0xE4>")) == "�"
    assert vocabulary.token_text(tokenizer.token_to_id("▁the")) == " the"
    assert vocabulary.token_text(vocabulary.size + 3) == ""
