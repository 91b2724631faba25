"""What reaches a mirror late does not undo what is newer."""

from typing import Any, cast

import pytest

from shared import names
from shared.bus import Bus
from shared.mirror import Mirror


@pytest.fixture
def mirror() -> Mirror[str]:
    return Mirror(cast(Bus, None), names.FLEET, lambda key, value: value.decode())


def apply(mirror: Mirror[str], revision: int, value: bytes, headers: dict[str, Any] | None = None) -> str | None:
    mirror._apply("worker.a", revision, headers or {}, value)
    return mirror.get("worker.a")


def test_older_value_after_a_newer_one(mirror):
    assert apply(mirror, 5, b"new") == "new"
    assert apply(mirror, 4, b"old") == "new"
    assert apply(mirror, 5, b"again") == "new"
    assert apply(mirror, 6, b"newest") == "newest"


@pytest.mark.parametrize("headers", [{names.KV_OPERATION: "DEL"}, {names.MARKER_REASON: "MaxAge"}])
def test_older_value_after_the_key_went(mirror, headers):
    apply(mirror, 5, b"here")
    assert apply(mirror, 7, b"", headers) is None
    assert apply(mirror, 6, b"late") is None
    assert mirror.items() == {}


def test_callbacks_hear_of_true_changes_only(mirror):
    heard = []
    mirror.on_change(lambda key, value: heard.append((key, value)))
    for revision, value in enumerate([b"a", b"a", b"b"], start=1):
        apply(mirror, revision, value)
    apply(mirror, 4, b"", {names.KV_OPERATION: "DEL"})
    apply(mirror, 5, b"", {names.MARKER_REASON: "MaxAge"})
    assert heard == [("worker.a", "a"), ("worker.a", "b"), ("worker.a", None)]
