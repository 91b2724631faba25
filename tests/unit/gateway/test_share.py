"""Whose share a request takes."""

from gateway.share import share_of


def test_a_key_has_one_share_however_it_is_sent() -> None:
    shares = {
        share_of({"authorization": "Bearer sk-one"}),
        share_of({"authorization": "bearer  sk-one "}),
        share_of({"x-api-key": "sk-one"}),
        share_of({"authorization": "Basic dTpw", "x-api-key": "sk-one"}),
    }
    assert len(shares) == 1
    assert shares.isdisjoint({"", share_of({"authorization": "Bearer sk-two"})})


def test_a_key_cannot_be_read_from_its_share() -> None:
    share = share_of({"authorization": "Bearer sk-one"})
    assert "sk-one" not in share
    assert len(share) == 16


def test_without_a_key_there_is_no_share() -> None:
    assert share_of({}) == share_of({"authorization": "Bearer "}) == share_of({"authorization": "Basic dTpw"}) == ""


def test_a_key_may_hold_any_character_that_a_header_may() -> None:
    assert share_of({"x-api-key": "schl\xfcssel"})
