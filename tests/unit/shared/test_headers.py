"""Headers are read as nats-py itself reads them."""

from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client

from shared.client import GuardedClient

LINE = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"Nats-Msg-Id: a.1", b"Name:value", b"Name:\tvalue \xc2\xa0", b" Name : v", b"two words: v", b"a:b:c"]
    ),
)


@given(st.lists(LINE, max_size=5).map(b"\r\n".join))
@example("Näme: wért\r\nName: wért \x85".encode())
@example(b"\x1cName: v\r\n\x0bName\x0c: \x1cv")
@example(b"Name: \xff\xfe\r\nName\xff: v")
def test_the_same_headers(raw: bytes) -> None:
    ours = GuardedClient._parse_header_lines(raw)
    assert ours == {name: value for name, value in Client._parse_header_lines(raw).items() if name}
