"""System messages where a template takes none.

Clients send several, send them between turns, and send them to models that know no such role. Templates then refuse
the conversation or, worse, drop the message in silence. What cannot stand where it is joins a neighbour instead.
"""

from typing import Any, Literal

Place = Literal["anywhere", "first", "nowhere"]
"""Where a template takes system messages."""

_GAP = "\n\n"


def place_system(messages: list[dict[str, Any]], place: Place) -> list[dict[str, Any]]:
    """Return the messages with every system message where the template takes it. Contents are text."""
    if place == "anywhere":
        return messages
    result: list[dict[str, Any]] = []
    waiting = ""  # system text for the next user message
    for message in messages:
        previous = result[-1] if result else None
        if message["role"] == "system":
            if previous is None and place == "first" and not waiting:
                result.append(message)
            elif previous is not None and previous["role"] in ("system", "user"):
                result[-1] = previous | {"content": _join(previous.get("content"), message.get("content"))}
            else:
                waiting = _join(waiting, message.get("content"))
        elif message["role"] == "user" and waiting:
            result.append(message | {"content": _join(waiting, message.get("content"))})
            waiting = ""
        else:
            result.append(message)
    if waiting:
        result.append({"role": "user", "content": waiting})
    return result


def _join(first: str | None, second: str | None) -> str:
    return _GAP.join(text for text in (first, second) if text)
