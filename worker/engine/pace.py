"""How long a step should take, from how long earlier ones took."""

_WEIGHT = 0.2  # of the newest measurement


class Pace:
    """Running averages: seconds of a pure decode step, and seconds per token of a step with prefill."""

    def __init__(self) -> None:
        self._decode_s = 0.0
        self._token_s = 0.0

    def predict(self, num_tokens: int, *, is_decode: bool) -> float:
        """Seconds for such a step; 0 when nothing like it was measured yet."""
        return self._decode_s if is_decode else self._token_s * num_tokens

    def learn(self, num_tokens: int, seconds: float, *, is_decode: bool) -> None:
        """A step took so long."""
        if is_decode:
            self._decode_s = _mix(self._decode_s, seconds)
        else:
            self._token_s = _mix(self._token_s, seconds / num_tokens)


def _mix(average: float, value: float) -> float:
    return value if not average else (1 - _WEIGHT) * average + _WEIGHT * value
