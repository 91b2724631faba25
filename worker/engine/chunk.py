"""How many prompt tokens a step may compute beside the rows that decode.

Streams that run must not stall when a long prompt joins, so prefill may add only so much to a step, measured against
the same step without. Where many prompts wait and few streams run, their wait counts for more than the streams' pace.
"""

from worker.engine.pace import Pace

_SLOWER = 0.7  # of a decode step's time; with what estimates miss, a running stream stays within twice its pace
_CROWD = 4.0  # as many times the sequences in prefill as in decode before the bound loosens
_FLOOR = 8  # tokens: prefill always moves on


def prefill_tokens(pace: Pace, *, num_decoding: int, num_prefilling: int, step_tokens: int) -> int:
    """Prompt tokens for a step of at most `step_tokens`, `num_decoding` of them for rows that decode.

    Everything that is left while nothing was measured or nothing decodes.
    """
    left = step_tokens - num_decoding
    decode_s, token_s = pace.decode_s(num_decoding), pace.prefill_token_s
    if not num_decoding or not decode_s or not token_s:
        return left
    slower = _SLOWER * max(1.0, _CROWD * num_prefilling / num_decoding)
    return min(left, max(_FLOOR, round(slower * decode_s / token_s)))
