"""The tokens of a model: ids, their bytes, and which of them are special.

Built on the `tokenizers` library directly. Importing it takes 0.03 s and 80 modules; `transformers` alone takes 1.3 s
and numpy, and its AutoTokenizer 5.5 s and torch, even with USE_TORCH=0. A front serves text, not tensors.

What one token adds to a text does not depend on its neighbours, but for two things: a character may be spread over
several tokens, hence pieces are bytes where they are not whole characters; and decoders of the SentencePiece kind drop
the space in front of the very first token, hence `first_piece`.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from worker.text.checkpoint import Checkpoint
from worker.text.convert import convert
from worker.text.errors import CheckpointError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE (GPT-2 and most since) writes for the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


class Vocabulary:
    """Encodes text, and tells what each token is."""

    def __init__(self, tokenizer: Tokenizer, *, eos_token: str | None = None) -> None:
        """Take over `tokenizer` (its padding and truncation are switched off)."""
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        # Where special tokens are spelled out, none is found in a text.
        self.added_tokens: list[AddedToken] = [] if tokenizer.encode_special_tokens else list(added.values())
        self.size: int = max(tokenizer.get_vocab_size(), max(added, default=-1) + 1)
        self.added: dict[str, int] = {token.content: id for id, token in added.items()}
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self.eos_id: int | None = tokenizer.token_to_id(eos_token) if eos_token else None
        decoder = _decoder_types(tokenizer)
        self._byte_level = "ByteLevel" in decoder
        self._byte_fallback = "ByteFallback" in decoder
        self._anchor, self._anchor_text = self._find_anchor()
        # id → text, or bytes where the token is not whole characters. Filled on use; bounded by the vocabulary.
        self._pieces: dict[int, str | bytes] = {}

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> "Vocabulary":
        """Load tokenizer.json, or convert what is there instead. Raises `CheckpointError`."""
        file: Path = checkpoint.path / "tokenizer.json"
        try:
            tokenizer = (
                Tokenizer.from_file(str(file)) if file.is_file() else Tokenizer.from_str(convert(checkpoint.path))
            )
        except CheckpointError:
            raise
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(file, f"cannot be read ({error})") from error
        known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        missing = [entry for _, entry in sorted(checkpoint.added_tokens.items()) if entry.get("content") not in known]
        if missing:  # old checkpoints list their added tokens in tokenizer_config.json alone
            tokenizer.add_tokens([_added_token(entry) for entry in missing])
        tokenizer.encode_special_tokens = checkpoint.split_special_tokens
        return cls(tokenizer, eos_token=checkpoint.named_tokens.get("eos_token"))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`, with what the tokeniser's post-processor adds (a BOS, mostly) if asked for."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: list[int]) -> str:
        """The text of a whole sequence, special tokens left out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def to_json(self, *, special_ids: Collection[int]) -> str:
        """The tokeniser as its own file format has it, with these added tokens special too."""
        state = json.loads(self._tokenizer.to_str())
        for token in state.get("added_tokens", ()):
            token["special"] = token["special"] or token["id"] in special_ids
        return json.dumps(state)

    def id_of(self, token: str) -> int | None:
        """The id of an added token."""
        return self.added.get(token)

    def content(self, id: int) -> str:
        """The name of a token as the vocabulary has it; empty for an id that is in no vocabulary."""
        return self._tokenizer.id_to_token(id) or ""

    def piece(self, id: int) -> str | bytes:
        """What a token adds to the text in front of it. Special tokens and unknown ids add nothing."""
        piece = self._pieces.get(id)
        if piece is None:
            piece = self._pieces[id] = self._make_piece(id)
        return piece

    def first_piece(self, id: int) -> str | bytes:
        """What a token contributes as the first of a text."""
        piece = self.piece(id)
        if self._byte_level or isinstance(piece, bytes) or not piece:
            return piece
        return str(self._tokenizer.decode([id], skip_special_tokens=True))

    def token_text(self, id: int) -> str:
        """A token on its own, for people: special ones by name, torn characters as U+FFFD."""
        piece = self.piece(id)
        if not piece:
            return self.content(id)
        return piece if isinstance(piece, str) else piece.decode("utf-8", "replace")

    def _make_piece(self, id: int) -> str | bytes:
        if id in self.special_ids:
            return ""
        name = self.content(id)
        if not name:
            return ""
        if self._byte_level:
            try:
                raw = bytes([_BYTE_OF[char] for char in name])
            except KeyError:  # an added token, written as it is
                raw = name.encode()
            return _whole(raw)
        byte = _BYTE_TOKEN.fullmatch(name) if self._byte_fallback else None
        if byte:
            return _whole(bytes([int(byte[1], 16)]))
        if self._anchor is not None:
            text = str(self._tokenizer.decode([self._anchor, id], skip_special_tokens=True))
            if text.startswith(self._anchor_text):
                return text[len(self._anchor_text) :]
        return str(self._tokenizer.decode([id], skip_special_tokens=True))

    def _find_anchor(self) -> tuple[int | None, str]:
        """An ordinary token to put in front of others, so that a decoder does not take them for the first."""
        for probe in ("a", "x", "e", "1"):
            ids = self.encode(probe, add_special_tokens=False)
            if ids and ids[-1] not in self.special_ids:
                text = str(self._tokenizer.decode([ids[-1]], skip_special_tokens=True))
                if text == probe:
                    return ids[-1], text
        return None, ""


def _whole(raw: bytes) -> str | bytes:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


def _added_token(entry: dict[str, Any]) -> AddedToken:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(entry["content"], **{flag: bool(entry[flag]) for flag in flags if flag in entry})


def _decoder_types(tokenizer: Tokenizer) -> set[str]:
    """The kinds of decoder at work, those inside a sequence included."""
    if tokenizer.decoder is None:
        return set()
    state = json.loads(tokenizer.decoder.__getstate__())
    return {entry["type"] for entry in (state, *state.get("decoders", ()))}
