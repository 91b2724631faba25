"""How long a step should take, from how long earlier ones took."""

_WEIGHT = 0.2  # of the newest measurement
_OUTLIER = 4.0  # times the average: a measurement counts for no more
_DRAFT_WEIGHT = 0.9  # of what was known of drafts, when something new is learnt
_DRAFT_SHARE = 0.05  # of a decode step: what a draft token is taken to cost until it was measured


class Pace:
    """Running averages of step times.

    A step's time is that of its decode rows alone, plus so much for each prefill token beside them, plus what draft
    tokens cost: a part for having any, and a part for each.
    """

    def __init__(self) -> None:
        self._decode_s: dict[int, float] = {}  # of pure decode steps, by number of rows
        self._token_s = 0.0  # per token of a step with prefill, decode rows included
        self._least_token_s = 0.0  # the lowest that this ever was: what a token costs at most, if it is one of many
        self._beside_s = 0.0  # per prefill token beside decode rows
        # Decayed sums over steps with drafts, of 1, n, n², t, n·t: n drafts took t longer.
        self._drafts = (0.0, 0.0, 0.0, 0.0, 0.0)

    def decode_s(self, num_rows: int) -> float:
        """Seconds of a step of so many decode rows, or of the nearest number that was measured; 0: none was."""
        known = self._decode_s
        if num_rows in known or not known:
            return known.get(num_rows, 0.0)
        return known[min(known, key=lambda rows: (abs(rows - num_rows), rows))]

    @property
    def prefill_token_s(self) -> float:
        """Seconds that a prefill token adds to a step; 0: not measured."""
        return self._beside_s or self._least_token_s

    def draft_cost_s(self, num_rows: int) -> tuple[float, float]:
        """Seconds that drafts add to a step of decode rows: by being there at all, and for each token of them."""
        prior = _DRAFT_SHARE * self.decode_s(num_rows)
        ones, n, nn, t, nt = self._drafts
        # Two made-up measurements hold the line until there are real ones.
        ones, n, nn, t, nt = ones + 0.2, n + 0.9, nn + 6.5, t + 0.9 * prior, nt + 6.5 * prior
        spread = ones * nn - n * n
        each = max((ones * nt - n * t) / spread if spread > 1e-9 else t / n, 0.1 * prior)
        return max(0.0, (t - each * n) / ones), each

    def predict(self, num_tokens: int, *, num_rows: int, is_decode: bool) -> float:
        """Seconds for such a step of `num_rows` rows; 0 when nothing like it was measured yet."""
        return self.decode_s(num_rows) if is_decode else self._token_s * num_tokens

    def learn(self, num_tokens: int, seconds: float, *, num_decoding: int, num_drafts: int = 0) -> None:
        """A step of so many tokens took so long: rows that decode, their drafts, and prefill for the rest."""
        num_prefill = num_tokens - num_decoding - num_drafts
        alone_s = self.decode_s(num_decoding) if num_decoding else 0.0
        if num_prefill:
            token_s = seconds / num_tokens
            self._token_s = _mix(self._token_s, token_s)
            self._least_token_s = min(self._least_token_s or token_s, token_s)
            if alone_s:
                self._beside_s = _mix(self._beside_s, max((seconds - alone_s) / num_prefill, 0.05 * token_s))
        elif num_drafts:
            if alone_s:
                extra_s = min(max(seconds - alone_s, 0.0), (1 + num_drafts) * alone_s)
                new = (1.0, num_drafts, num_drafts**2, extra_s, num_drafts * extra_s)
                old = self._drafts
                self._drafts = tuple(_DRAFT_WEIGHT * a + b for a, b in zip(old, new, strict=True))  # type: ignore[assignment]
        else:
            self._decode_s[num_decoding] = _mix(self._decode_s.get(num_decoding, 0.0), seconds)


def _mix(average: float, value: float) -> float:
    return value if not average else (1 - _WEIGHT) * average + _WEIGHT * min(value, _OUTLIER * average)
