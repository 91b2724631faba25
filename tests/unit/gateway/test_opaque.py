"""Strings that carry reasoning: what comes back is what went out, and nothing else is taken for it."""

import base64
import zlib

from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects import opaque


@given(st.text())
def test_round_trip(text: str) -> None:
    assert opaque.unwrap(opaque.wrap(text)) == text
    assert opaque.unwrap(opaque.mark(text)) is None


@given(st.text())
def test_strangers_are_no_error(text: str) -> None:
    assert opaque.unwrap(text) is None
    opaque.unwrap("plexus-r1." + text)


def test_a_bomb_does_not_go_off() -> None:
    bomb = base64.urlsafe_b64encode(zlib.compress(b"a" * (opaque.MAX_CHARACTERS + 1))).decode()
    assert opaque.unwrap("plexus-r1." + bomb) is None
