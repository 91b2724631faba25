"""Images through a whole fleet, over HTTP: the text is that of transformers' own `generate`."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.fleet_process import FleetProcess
from tests.support.vision import generate, make_vision_checkpoint, picture, user
from worker.text.model_text import ModelText

NEW = 12
MODEL = "seeing"


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vision_checkpoint(tmp_path_factory.mktemp("models") / MODEL, "qwen2_5_vl")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, seeing: Path) -> Iterator[FleetProcess]:
    with FleetProcess(tmp_path_factory.mktemp("fleet"), "--model", seeing) as fleet:
        yield fleet.started()


@pytest.fixture
def http(fleet: FleetProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fleet.api, timeout=60) as client:
        yield client


def ask(http: httpx.Client, *content: str | bytes, **fields: Any) -> httpx.Response:
    """A chat completion for one message of texts and images."""
    parts = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(part).decode()}"}}
        for part in content
    ]
    body = {"model": MODEL, "messages": [{"role": "user", "content": parts}], "max_tokens": NEW, "temperature": 0}
    return http.post("/chat/completions", json=body | fields)


def test_the_answer_is_what_the_model_itself_generates(http: httpx.Client, seeing: Path) -> None:
    text = ModelText.load(seeing)
    for images in ([picture(1)], [picture(1), picture(2, 64, 20)]):
        content = ["What is ", *images, "this?"]
        ids = generate(seeing, [user(*content)], NEW)
        response = ask(http, *content, logprobs=True, ignore_eos=True)
        assert response.status_code == 200, response.text
        facts = response.json()
        said = [one["token"] for one in facts["choices"][0]["logprobs"]["content"]]
        assert said == [text.token_text(id) for id in ids][: len(said)]
        assert len(said) >= 4


def test_the_model_says_that_it_sees(http: httpx.Client) -> None:
    listed = {model["id"]: model for model in http.get("/models").json()["data"]}
    assert "image" in str(listed[MODEL])


def test_an_image_counts_and_is_found_again(http: httpx.Client) -> None:
    content = ["Look at ", picture(5), "and say what you see."]
    first, again = (ask(http, *content).json()["usage"] for _ in range(2))
    alone = ask(http, "Look at and say what you see.").json()["usage"]
    assert first["prompt_tokens"] >= alone["prompt_tokens"] + 15
    assert again["prompt_tokens_details"]["cached_tokens"] >= alone["prompt_tokens"]


def test_a_file_that_is_no_image_is_refused_by_its_place(http: httpx.Client) -> None:
    good = picture(1)
    for bad in (b"no image at all", good[: len(good) // 2]):
        response = ask(http, "What is ", good, "and", bad)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"].startswith("messages[0].content[3]")


def test_an_image_is_one_prompt_on_every_surface(http: httpx.Client) -> None:
    data = base64.b64encode(picture(9, 96, 64)).decode()
    before, after, uri = "Look at this: ", "What is it?", f"data:image/png;base64,{data}"
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    text = [{"type": "text", "text": one} for one in (before, after)]
    flat = [{"type": "input_text", "text": one} for one in (before, after)]
    image = {"type": "input_image", "image_url": uri}
    blocks = {"model": MODEL, "messages": [{"role": "user", "content": [text[0], block, text[1]]}]}
    items = {"model": MODEL, "input": [{"role": "user", "content": [flat[0], image, flat[1]]}]}

    chat = ask(http, before, base64.b64decode(data), after).json()
    message = http.post("/messages", json={**blocks, "max_tokens": NEW, "temperature": 0}).json()
    response = http.post("/responses", json={**items, "max_output_tokens": NEW, "temperature": 0}).json()

    said = "".join(part["text"] for item in response["output"] for part in item.get("content", []))
    assert chat["choices"][0]["message"]["content"] == said
    assert said == "".join(one["text"] for one in message["content"] if one["type"] == "text")
    tokens = chat["usage"]["prompt_tokens"]
    assert response["usage"]["input_tokens"] == tokens
    cached = message["usage"]["cache_read_input_tokens"]
    assert message["usage"]["input_tokens"] + cached == tokens
    assert min(cached, response["usage"]["input_tokens_details"]["cached_tokens"]) > tokens / 2
    for path, body in (("/messages/count_tokens", blocks), ("/responses/input_tokens", items)):
        assert http.post(path, json=body).json()["input_tokens"] == tokens
