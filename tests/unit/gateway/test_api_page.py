"""The page about the API says of each parameter what the code does with it, and nothing of any other."""

import re
from pathlib import Path

import pytest

from gateway import openapi
from gateway.app import ROUTES
from gateway.dialects import anthropic_messages, openai_chat, openai_completions, openai_embeddings, openai_responses
from gateway.dialects.parameters import Parameters
from gateway.errors import ApiError

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
TABLES = {
    "Chat completions": openai_chat.PARAMETERS,
    "Completions": openai_completions.PARAMETERS,
    "Embeddings": openai_embeddings.PARAMETERS,
}


def section(title: str) -> str:
    """The text below a heading."""
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("title", TABLES)
def test_the_tables_are_those_of_the_code(title: str) -> None:
    parameters: Parameters = TABLES[title]
    rows = re.findall(r"^\| `([^`]+)` \| (honoured|ignored|refused) \| (.+) \|$", section(title), re.M)
    done = [(name, "honoured", text) for name, text in parameters.honoured.items()]
    done += [(name, "ignored", text) for name, text in parameters.ignored.items()]
    done += [(name, "refused", text) for name, (_, text) in parameters.refused.items()]
    assert rows == done


@pytest.mark.parametrize("parameters", TABLES.values(), ids=TABLES)
def test_no_name_is_in_two_lists(parameters: Parameters) -> None:
    names = [*parameters.honoured, *parameters.ignored, *parameters.refused]
    assert len(names) == len(set(names))


def test_every_path_is_told() -> None:
    for path, _ in ROUTES:
        assert f"`POST {path}`" in PAGE
        assert (path, "post") in openapi.PATHS


def test_every_error_is_told() -> None:
    kinds = set()
    classes = list(ApiError.__subclasses__())
    while classes:
        one = classes.pop()
        classes += one.__subclasses__()
        kinds.add((one.status, one.kind))
    told = {
        (int(status), code)
        for status, codes in re.findall(r"^\| (\d+) \| ([a-z_, ]+) \|", section("Errors"), re.M)
        for code in codes.split(", ")
    }
    assert kinds <= told, kinds - told


USED = {
    "chat": "n stop logprobs top_logprobs logit_bias seed presence_penalty frequency_penalty max_completion_tokens "
    "stream_options parallel_tool_calls tool_choice response_format reasoning_effort service_tier metadata "
    "prompt_cache_key top_k min_p",
    "messages": "stop_sequences thinking output_config cache_control top_k service_tier metadata tool_choice",
    "responses": "include service_tier metadata prompt_cache_key parallel_tool_calls tool_choice top_logprobs store "
    "background previous_response_id truncation reasoning text",
}


@pytest.mark.parametrize(
    ("surface", "parameters"),
    [
        ("chat", openai_chat.PARAMETERS),
        ("messages", anthropic_messages.PARAMETERS),
        ("responses", openai_responses.PARAMETERS),
    ],
)
def test_what_clients_use_is_in_a_table(surface: str, parameters: Parameters) -> None:
    known = {*parameters.honoured, *parameters.ignored, *parameters.refused}
    assert set(USED[surface].split()) - known == set()
