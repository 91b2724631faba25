"""What the reply subject of a JetStream message says of its delivery."""

from msgspec import Struct

_PLAIN_TOKENS = 9  # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>
_DOMAIN_TOKENS = 11  # with <domain>.<account> after ACK, and on some servers one more token at the end


class Delivery(Struct, frozen=True):
    """One delivery of a job."""

    ack: str  # the subject that takes the answer
    count: int  # 1 the first time; more: JetStream gave it out again
    pending: int  # messages of the consumer that still waited behind it


def parse(reply: str) -> Delivery:
    """The delivery behind an ack subject. Raises ValueError for any other subject."""
    tokens = reply.split(".")
    if tokens[:2] != ["$JS", "ACK"] or len(tokens) < _PLAIN_TOKENS:
        raise ValueError(f"{reply!r} is no ack subject")
    first = 4 if len(tokens) < _DOMAIN_TOKENS else 6
    return Delivery(reply, int(tokens[first]), int(tokens[first + 4]))
