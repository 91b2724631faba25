"""Images in every wire shape: one neutral part, or a refusal that names the place and repeats nothing of the image."""

import base64
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import supervise
from gateway.dialects import anthropic_messages, conversation, openai_chat, openai_responses
from gateway.dialects.images import MAX_IMAGES, Images
from gateway.errors import ApiError
from gateway.flight import Flight
from gateway.request import InferenceRequest
from shared.messages import Job, Prompt
from tests.support import pictures
from tests.support.pictures import FILES, block, chat_part, encoded, input_part, neutral, uri

PNG = encoded(FILES["image/png"])


def chat(*parts: Any, role: str = "user") -> InferenceRequest:
    identifier = {"tool_call_id": "c"} if role == "tool" else {}
    return openai_chat.parse({"model": "m", "messages": [{"role": role, "content": [*parts], **identifier}]}, {})


def messages(*blocks: Any, role: str = "user") -> InferenceRequest:
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": role, "content": [*blocks]}]}
    return anthropic_messages.parse(body, {})


def responses(*parts: Any, role: str = "user") -> InferenceRequest:
    return openai_responses.parse({"model": "m", "input": [{"role": role, "content": [*parts]}]}, {})


def contents(request: InferenceRequest) -> list[Any]:
    return [message["content"] for message in request.prompt.messages or []]


@pytest.mark.parametrize("media_type", FILES)
def test_an_image_is_one_part_whatever_its_wire_shape(media_type: str) -> None:
    text, one = {"type": "text", "text": "look"}, neutral(media_type)
    expected = [[text, one, {"type": "text", "text": "a\nb"}]]
    after: list[Any] = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert contents(chat(text, chat_part(media_type), *after)) == expected
    assert contents(messages(text, block(media_type), *after)) == expected
    flat = [{"type": "input_text", "text": one["text"]} for one in (text, *after)]
    assert contents(responses(flat[0], input_part(media_type), *flat[1:])) == expected


def test_an_image_is_found_in_the_results_of_tools() -> None:
    one, text = neutral(), {"type": "text", "text": "seen"}
    assert contents(chat(text, chat_part(), role="tool")) == [[text, one]]
    result = {"type": "tool_result", "tool_use_id": "c", "content": [text, block()]}
    assert contents(messages(result, block())) == [[text, one], [one]]
    output = {"type": "function_call_output", "call_id": "c", "output": [input_part()]}
    request = openai_responses.parse({"model": "m", "input": [output]}, {})
    assert (contents(request), request.images) == ([[one]], ("input[0].output[0]",))
    failed = {"type": "tool_result", "tool_use_id": "c", "is_error": True, "content": [block()]}
    assert contents(messages(failed)) == [[{"type": "text", "text": "Error"}, one]]
    told = failed | {"content": [text, block()]}
    assert contents(messages(told)) == [[{"type": "text", "text": "Error: seen"}, one]]


def test_the_paths_of_images_are_those_of_the_body() -> None:
    body = {
        "model": "m",
        "max_tokens": 1,
        "system": "s",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c", "content": [block()]},
                    {"type": "text", "text": "and"},
                    block("image/gif"),
                ],
            }
        ],
    }
    request = anthropic_messages.parse(body, {})
    assert request.images == ("messages[0].content[0].content[0]", "messages[0].content[2]")
    assert list(conversation.image_paths(request.prompt)) == ["messages[1].content[0]", "messages[2].content[1]"]


WRITTEN = {
    "line breaks": "\r\n".join(PNG[at : at + 76] for at in range(0, len(PNG), 76)),
    "no padding": PNG.rstrip("="),
    "a break at the end": PNG + "\n",
}


@pytest.mark.parametrize("data", WRITTEN.values(), ids=WRITTEN)
def test_base64_has_one_form(data: str) -> None:
    assert contents(chat({"type": "image_url", "image_url": f"data:image/png;base64,{data}"})) == [[neutral()]]


def test_media_types_have_one_form() -> None:
    data = encoded(FILES["image/jpeg"])
    for spelled in ("image/jpg", "IMAGE/JPEG", "image/jpeg;charset=utf-8"):
        url = f"data:{spelled};base64,{data}"
        assert contents(responses({"type": "input_image", "image_url": url})) == [[neutral("image/jpeg")]]
    quoted = uri().replace("+", "%2B").replace("=", "%3D")
    assert contents(responses({"type": "input_image", "image_url": quoted})) == [[neutral()]]


@given(st.binary(min_size=1, max_size=40), st.integers(0, 3))
def test_stray_bits_at_the_end_are_taken_away(tail: bytes, noise: int) -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    data = FILES["image/gif"] + tail
    text = encoded(data)
    if (padding := len(text) - len(text.rstrip("="))) and noise < 4**padding:
        at = len(text) - padding - 1
        text = text[:at] + alphabet[alphabet.index(text[at]) | noise] + text[at + 1 :]
    part = Images().of_data(text, "image/gif", "d", "t", "p")
    assert part["data"] == encoded(data)
    assert base64.b64decode(part["data"], validate=True) == data


BAD_DATA = ["", "=", "====", "A", PNG[:-3], PNG[:8] + "=" + PNG[9:], PNG + "====", PNG[:-1] + "-", "é" * 8, "QUJD"]
BAD_URLS: list[tuple[Any, str]] = [
    (None, "is required"),
    ("", "is required"),
    (3, "is required"),
    ("http://10.0.0.1/x.png", "http addresses are not fetched"),
    ("https://example.com/x.png", "inline"),
    ("file:///etc/passwd", "not fetched"),
    ("x.png", "not fetched"),
    ("data:image/png", "data: URI"),
    (f"data:image/png,{PNG}", "in base64"),
    ("data:image/png;base64,", "must not be empty"),
    (f"data:;base64,{PNG}", "must be one of"),
    (f"data:image/tiff;base64,{PNG}", "must be one of"),
    (f"data:application/pdf;base64,{PNG}", "must be one of"),
    (f"data:image/gif;base64,{PNG}", "says image/gif, and the data is image/png"),
]


@pytest.mark.parametrize(("url", "words"), BAD_URLS)
def test_a_bad_address_is_named_with_the_remedy(url: Any, words: str) -> None:
    refusals = {
        "messages[0].content[1].image_url.url": lambda: chat(
            {"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": url}}
        ),
        "input[0].content[0].image_url": lambda: responses({"type": "input_image", "image_url": url}),
    }
    for param, send in refusals.items():
        with pytest.raises(ApiError, match=words) as caught:
            send()
        assert (caught.value.status, caught.value.param) == (400, param)
        assert caught.value.message.startswith(param)


@pytest.mark.parametrize("data", BAD_DATA)
def test_bad_data_is_named_and_not_repeated(data: str) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": data}
    with pytest.raises(ApiError) as caught:
        messages({"type": "image", "source": source})
    assert (caught.value.status, caught.value.param) == (400, "messages[0].content[0].source.data")
    assert len(data) < 8 or data[:8] not in caught.value.message


BAD_BLOCKS: list[tuple[dict[str, Any], str]] = [
    ({}, "source"),
    ({"source": {"type": "base64", "media_type": "image/gif", "data": PNG}}, "source.media_type"),
    ({"source": {"type": "base64", "data": PNG}}, "source.media_type"),
    ({"source": {"type": "url", "url": "https://example.com/x.png"}}, "source.url"),
    ({"source": {"type": "file", "file_id": "f"}}, "source"),
    ({"source": {"type": "more"}}, "source.type"),
]


@pytest.mark.parametrize(("fields", "place"), BAD_BLOCKS)
def test_a_bad_source_is_named(fields: dict[str, Any], place: str) -> None:
    with pytest.raises(ApiError) as caught:
        messages({"type": "image", **fields})
    assert (caught.value.status, caught.value.param) == (400, f"messages[0].content[0].{place}")


def test_an_image_stands_where_a_model_looks_for_one() -> None:
    refusals = [
        ("messages[0].content[0]", "system", lambda: chat(chat_part(), role="system")),
        ("messages[0].content[0]", "assistant", lambda: chat(chat_part(), role="assistant")),
        ("messages[0].content[0]", "assistant", lambda: messages(block(), role="assistant")),
        ("messages[0].content[0]", "system", lambda: messages(block(), role="system")),
        ("input[0].content[0]", "developer", lambda: responses(input_part(), role="developer")),
        ("input[0].content[0].file_id", "by id", lambda: responses({"type": "input_image", "file_id": "f"})),
    ]
    for param, words, send in refusals:
        with pytest.raises(ApiError, match=words) as caught:
            send()
        assert (caught.value.status, caught.value.param) == (400, param)


def test_detail_has_no_effect_and_is_told() -> None:
    part = chat_part()
    part["image_url"]["detail"] = "high"
    assert chat(part).ignored == ("messages[0].content[0].image_url.detail",)
    assert responses(input_part() | {"detail": "low"}).ignored == ("input[0].content[0].detail",)
    with pytest.raises(ApiError, match="one of auto"):
        responses(input_part() | {"detail": "huge"})


def test_what_an_image_has_besides_is_told() -> None:
    part = chat_part() | {"a": 1, "cache_control": {"type": "ephemeral"}}
    part["image_url"] |= {"b": 2, "c": None}
    assert chat(part).ignored == ("messages[0].content[0].a", "messages[0].content[0].image_url.b")
    one = block() | {"a": 1, "cache_control": {"type": "ephemeral"}}
    one["source"] |= {"b": 2}
    assert messages(one).ignored == ("messages[0].content[0].a", "messages[0].content[0].source.b")
    assert responses(input_part() | {"a": 1, "file_id": None}).ignored == ("input[0].content[0].a",)


def test_there_may_be_so_many() -> None:
    assert len(chat(*[chat_part()] * MAX_IMAGES).images) == MAX_IMAGES
    with pytest.raises(ApiError) as caught:
        chat(*[chat_part()] * (MAX_IMAGES + 1))
    assert caught.value.param == f"messages[0].content[{MAX_IMAGES}]"


def test_base64_is_not_counted_as_text() -> None:
    large = os.urandom(3 << 20)
    picture = pictures.png() + large
    assert chat(chat_part(data=picture)).estimate_tokens == conversation.MAX_IMAGE_TOKENS + 4
    assert chat(chat_part()).estimate_tokens == conversation.MIN_IMAGE_TOKENS + 4
    assert conversation.image_lengths(Prompt(messages=[conversation.user([neutral()])])) == [len(PNG)]


def test_a_job_with_images_gets_longer_to_be_accepted() -> None:
    def grace_s(request: InferenceRequest) -> float:
        job = Job(id="j", model="m", reply="r", prompt=request.prompt)
        return float(supervise._grace_s(Flight(job, max_attempts=1, deadline=1.0, now=0.0)))

    plain = grace_s(chat({"type": "text", "text": "x"}))
    assert grace_s(chat(chat_part(), chat_part())) == pytest.approx(plain + 2 * supervise.GRACE_IMAGE_S, abs=0.01)
    large = chat(chat_part(data=pictures.png() + bytes(3_000_000)))
    assert grace_s(large) == pytest.approx(plain + supervise.GRACE_IMAGE_S + 4.0, abs=0.01)


def test_a_file_of_another_type_cannot_pass_for_an_image() -> None:
    for data in (b"%PDF-1.7", b"<svg xmlns=", b"RIFF....WAVE", b"BM", b"\0" * 20):
        with pytest.raises(ApiError, match="no image"):
            chat(chat_part(data=data))
