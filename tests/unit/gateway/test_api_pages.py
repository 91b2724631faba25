"""The pages about the two APIs say of each parameter what the code does with it, and nothing of any other."""

import re
from pathlib import Path

import pytest

from gateway.dialects import anthropic_content, anthropic_messages, openai_responses
from gateway.dialects.parameters import Parameters

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize(
    ("page", "parameters"),
    [("api-messages.md", anthropic_messages.PARAMETERS), ("api-responses.md", openai_responses.PARAMETERS)],
)
def test_parameters(page: str, parameters: Parameters) -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (honoured|ignored|refused) \| (.+) \|$", (DOCS / page).read_text(), re.M)
    told = {name: (kind, text) for name, kind, text in rows}
    done = {name: ("honoured", text) for name, text in parameters.honoured.items()}
    done |= {name: ("ignored", text) for name, text in parameters.ignored.items()}
    done |= {name: ("refused", text) for name, (_, text) in parameters.refused.items()}
    assert told == done
    assert len(rows) == len(done)


def test_blocks() -> None:
    page = (DOCS / "api-messages.md").read_text()
    for kind in ("tool_use", "tool_result", "thinking", "redacted_thinking", "tool_reference", "search_result"):
        assert f"`{kind}`" in page
    assert set(re.findall(r"`(server_\w+|web_search_\w+)`", page)) <= set(anthropic_content.FOREIGN)
