"""Token ids to text, one by one, without ever tearing a character."""

from codecs import utf_8_decode

from worker.text.vocabulary import Vocabulary

# A character has at most four bytes, so no more tokens than these can belong to an unfinished one.
_SEED_TOKENS = 4


class Detokeniser:
    """Settles text as soon as whole characters of it are known.

    Bytes that begin no character come out as U+FFFD once a later byte has proved it, or at `flush`. The texts returned
    add up to what the tokenizer's own `decode` gives; the one exception are invalid bytes from byte-fallback tokens,
    for which `decode` takes back good characters of the same run too, and this cannot.
    """

    def __init__(self, vocabulary: Vocabulary, *, after: list[int] | None = None) -> None:
        """`after`: continue that prompt. None: the ids are a text of their own, with a first token."""
        self._vocabulary = vocabulary
        self._pending = b""
        self._first = after is None
        for id in (after or [])[-_SEED_TOKENS:]:
            self.step(id)

    def step(self, id: int) -> str:
        """Return the text that this token settles; often the token's own, empty inside a character."""
        if self._first:
            piece = self._vocabulary.first_piece(id)
            # Special tokens do not count: decoders never see them.
            self._first = not piece and not self._vocabulary.piece(id)
        else:
            piece = self._vocabulary.piece(id)
        if not self._pending and isinstance(piece, str):
            return piece
        return self._join(piece.encode() if isinstance(piece, str) else piece)

    def restart(self) -> str:
        """Flush, and take the next token for the first of a new text."""
        self._first = True
        return self.flush()

    def flush(self) -> str:
        """Return what is left of an unfinished character."""
        text = self._pending.decode("utf-8", "replace")
        self._pending = b""
        return text

    def _join(self, piece: bytes) -> str:
        data = self._pending + piece
        text, used = utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        return text
