"""The API as /openapi.json describes it: what FastAPI finds by itself, with the bodies and answers of every path.

Parameters and what becomes of them are read from the tables of the dialects, so the document cannot fall behind them.
"""

from collections.abc import Mapping
from typing import Any

from gateway.dialects import anthropic_messages, openai_chat, openai_completions, openai_embeddings, openai_responses
from gateway.dialects.parameters import Parameters

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_EVENT: Schema = {"description": "server-sent events; readers differ in what they take for one"}
_FLAG: Schema = {"type": ["boolean", "null"]}
_OBJECT: Schema = {"type": "object"}
_OBJECTS: Schema = {"type": "array", "items": _OBJECT}
_IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_STRINGS: Schema = {"type": "array", "items": _TEXT, "minItems": 1}
_TEXTS_OR_IDS: Schema = {"anyOf": [_TEXT, _IDS, _STRINGS, {"type": "array", "items": _IDS, "minItems": 1}]}


def _number(low: float, high: float) -> Schema:
    return {"type": ["number", "null"], "minimum": low, "maximum": high}


def _integer(low: int, high: int | None = None) -> Schema:
    return {"type": ["integer", "null"], "minimum": low} | ({} if high is None else {"maximum": high})


_FUNCTION_TOOL: Schema = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": "^[A-Za-z0-9_.:-]{1,128}$"},
                "description": {"type": ["string", "null"]},
                "parameters": {"type": ["object", "null"]},
                "strict": _FLAG,
            },
        },
    },
}
_DATA_URI: Schema = {"type": "string", "pattern": "^data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/=]+$"}
_PART: Schema = {
    "anyOf": [
        {"type": "object", "required": ["type", "text"], "properties": {"type": {"const": "text"}, "text": _TEXT}},
        {
            "type": "object",
            "required": ["type", "image_url"],
            "properties": {
                "type": {"const": "image_url"},
                "image_url": {"type": "object", "required": ["url"], "properties": {"url": _DATA_URI}},
            },
        },
    ]
}
_MESSAGE: Schema = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool", "function"]},
        "content": {
            "anyOf": [
                {"type": ["string", "null"]},
                {"type": "array", "items": _PART},
            ]
        },
        "name": {"type": ["string", "null"]},
        "tool_calls": {"type": ["array", "null"], "items": _OBJECT},
        "tool_call_id": {"type": ["string", "null"]},
        "function_call": {"type": ["object", "null"]},
        "reasoning_content": {"type": ["string", "null"]},
    },
}
# By name, wherever it occurs; names that mean something else on one surface are told apart in `_OWN`.
_TYPES: dict[str, Schema] = {
    "model": {"type": "string", "minLength": 1},
    "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
    "tools": {"type": ["array", "null"], "items": _FUNCTION_TOOL},
    "tool_choice": {"anyOf": [{"enum": ["auto", "none", "required", None]}, _OBJECT]},
    "parallel_tool_calls": _FLAG,
    "functions": {"type": ["array", "null"], "items": _FUNCTION_TOOL["properties"]["function"]},
    "function_call": {"anyOf": [{"enum": ["auto", "none", None]}, _OBJECT]},
    "thinking_budget": _integer(1),
    "continue_final_message": _FLAG,
    "add_generation_prompt": _FLAG,
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "top_k": _integer(-1),
    "min_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "repetition_penalty": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 10},
    "logit_bias": {"type": ["object", "null"], "additionalProperties": {"type": "number"}},
    "seed": {"type": ["integer", "null"]},
    "stop": {"anyOf": [{"type": ["string", "null"]}, _STRINGS]},
    "stop_token_ids": {"type": ["array", "null"], "items": {"type": "integer", "minimum": 0}},
    "ignore_eos": _FLAG,
    "n": _integer(1, 16),
    "best_of": _integer(1, 16),
    "echo": _FLAG,
    "stream": _FLAG,
    "stream_options": {"type": ["object", "null"], "properties": {"include_usage": _FLAG}},
    "max_tokens": _integer(1),
    "max_completion_tokens": _integer(1),
    "max_output_tokens": _integer(1),
    "logprobs": _FLAG,
    "top_logprobs": _integer(0, 20),
    "response_format": {
        "type": ["object", "null"],
        "required": ["type"],
        "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}, "json_schema": _OBJECT},
    },
    "grammar": {"type": ["string", "null"]},
    "regex": {"type": ["string", "null"]},
    "json_schema": {"type": ["object", "null"]},
    "guided_json": {"type": ["object", "string", "null"]},
    "guided_regex": {"type": ["string", "null"]},
    "guided_choice": {"type": ["array", "null"], "items": _TEXT},
    "guided_grammar": {"type": ["string", "null"]},
    "structured_outputs": {"type": ["object", "null"]},
    "reasoning_effort": {"enum": [*openai_chat.EFFORTS, None]},
    "chat_template_kwargs": {"type": ["object", "null"]},
    "service_tier": {"type": ["string", "null"]},
    "metadata": {"type": ["object", "null"]},
    "encoding_format": {"enum": ["float", "base64", None]},
    "dimensions": _integer(1),
    "prompt": _TEXTS_OR_IDS,
    "instructions": {"type": ["string", "null"]},
    "previous_response_id": {"type": ["string", "null"]},
    "store": _FLAG,
    "background": _FLAG,
    "text": {"type": ["object", "null"]},
    "reasoning": {"type": ["object", "null"]},
    "include": {"type": ["array", "null"], "items": _TEXT},
    "system": {"anyOf": [{"type": ["string", "null"]}, _OBJECTS]},
    "stop_sequences": {"type": ["array", "null"], "items": _TEXT},
    "thinking": {"type": ["object", "null"]},
    "output_config": {"type": ["object", "null"]},
}
_OWN: dict[str, dict[str, Schema]] = {
    "Completion": {"logprobs": _integer(0, 20)},
    "Embedding": {"input": _TEXTS_OR_IDS},
    "Response": {"input": {"anyOf": [_TEXT, _OBJECTS]}, "tools": {"type": ["array", "null"], "items": _OBJECT}},
    "Message": {
        "messages": {"type": "array", "items": {"type": "object", "required": ["role", "content"]}},
        "tools": {"type": ["array", "null"], "items": _OBJECT},
        "tool_choice": {"type": ["object", "null"]},
        "max_tokens": {"type": "integer", "minimum": 1},
    },
}


def body(name: str, parameters: Parameters, required: tuple[str, ...]) -> Schema:
    """The schema of a body, from its table. What is refused is not in it."""
    own = _OWN.get(name, {})
    properties = {
        key: {**own.get(key, _TYPES.get(key, {})), "description": text} for key, text in parameters.honoured.items()
    }
    properties |= {key: {"description": f"Ignored: {why}."} for key, why in parameters.ignored.items()}
    if "metadata" in properties:
        properties["metadata"] |= _TYPES["metadata"]
    return {"type": "object", "required": list(required), "properties": properties}


_USAGE: Schema = {
    "type": "object",
    "required": ["prompt_tokens", "total_tokens"],
    "properties": {name: {"type": "integer"} for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
}


def _answer(kind: str, **properties: Schema) -> Schema:
    """An answer that names its own type in `object`."""
    fields = {"object": {"const": kind}, **properties}
    return {"type": "object", "required": list(fields), "properties": fields}


_CHOICES: Schema = {"type": "array", "items": {"type": "object", "required": ["index", "finish_reason"]}}
_OF_JOB: dict[str, Schema] = {
    "id": _TEXT,
    "created": {"type": "integer"},
    "model": _TEXT,
    "choices": _CHOICES,
    "usage": _USAGE,
}
_MODEL = _answer("model", id=_TEXT, created={"type": "integer"}, owned_by=_TEXT, state=_TEXT)
_LIST = _answer("list", data=_OBJECTS)
_ANTHROPIC_PAGE: Schema = {"type": "object", "required": ["data", "has_more"]}
_ERROR_FIELDS = {"message": _TEXT, "type": _TEXT, "param": {"type": ["string", "null"]}, "code": _TEXT}
SCHEMAS: dict[str, Schema] = {
    "ChatRequest": body("Chat", openai_chat.PARAMETERS, ("model", "messages")),
    "CompletionRequest": body("Completion", openai_completions.PARAMETERS, ("model", "prompt")),
    "EmbeddingRequest": body("Embedding", openai_embeddings.PARAMETERS, ("model", "input")),
    "ResponseRequest": body("Response", openai_responses.PARAMETERS, ("model", "input")),
    "MessageRequest": body("Message", anthropic_messages.PARAMETERS, ("model", "messages", "max_tokens")),
    "MessageCountRequest": body("Message", anthropic_messages.PARAMETERS, ("model", "messages")),
    "ChatCompletion": _answer("chat.completion", **_OF_JOB),
    "Completion": _answer("text_completion", **_OF_JOB),
    "Embeddings": _answer("list", data=_OBJECTS, model=_TEXT, usage=_USAGE),
    "Response": _answer("response", id=_TEXT, status=_TEXT, output=_OBJECTS),
    "Message": {"type": "object", "required": ["type", "id", "role", "content", "usage"]},
    "Count": {"type": "object", "required": ["input_tokens"], "properties": {"input_tokens": {"type": "integer"}}},
    "Model": {"anyOf": [_MODEL, {"type": "object", "required": ["type", "id", "display_name"]}]},
    "Models": {"anyOf": [_LIST, _ANTHROPIC_PAGE]},
    "Object": _OBJECT,
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "object", "required": ["message", "type"], "properties": _ERROR_FIELDS}},
    },
}
# (path, method): body, answer, whether it may be a stream
PATHS: Mapping[tuple[str, str], tuple[str, str, bool]] = {
    ("/v1/chat/completions", "post"): ("ChatRequest", "ChatCompletion", True),
    ("/v1/completions", "post"): ("CompletionRequest", "Completion", True),
    ("/v1/embeddings", "post"): ("EmbeddingRequest", "Embeddings", False),
    ("/v1/responses", "post"): ("ResponseRequest", "Response", True),
    ("/v1/responses/input_tokens", "post"): ("ResponseRequest", "Count", False),
    ("/v1/messages", "post"): ("MessageRequest", "Message", True),
    ("/v1/messages/count_tokens", "post"): ("MessageCountRequest", "Count", False),
    ("/v1/responses/{response_id}", "get"): ("", "Response", True),
    ("/v1/responses/{response_id}/cancel", "post"): ("", "Response", False),
    ("/v1/models", "get"): ("", "Models", False),
    ("/v1/models/{model}", "get"): ("", "Model", False),
}
_NUMBER: Schema = {"type": "integer", "minimum": 0, "maximum": 10**15 - 1}
# (path, method): parameters of the query
QUERIES: Mapping[tuple[str, str], dict[str, Schema]] = {
    ("/v1/models", "get"): {"limit": {"type": "integer", "minimum": 1, "maximum": 999_999_999}},
    ("/v1/responses/{response_id}", "get"): {
        "stream": {"type": "boolean", "description": "the events that were kept, and those to come"},
        "starting_after": {**_NUMBER, "description": "with stream: only events with a higher sequence_number"},
    },
    ("/v1/responses/{response_id}/input_items", "get"): {
        "limit": {"type": "integer", "minimum": 1, "maximum": 100},
        "order": {"enum": ["asc", "desc"]},
        "after": {**_TEXT, "description": "the id of the item before the page"},
    },
}
_REFUSALS = {
    "400": "A field is missing or cannot be served; `param` names it.",
    "404": "No such model, or no such thing.",
    "413": "Too large.",
    "415": "The body is not JSON.",
    "429": "Too many requests wait for the model; see retry-after.",
    "503": "Not now; see retry-after.",
    "504": "Not in time.",
}


def describe(found: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's document, with bodies and answers. It is changed in place."""
    found.setdefault("components", {})["schemas"] = SCHEMAS
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            request, answer, streams = PATHS.get((path, method), ("", "Object", False))
            if request:
                operation["requestBody"] = {"required": True, "content": _json(request)}
            content = _json(answer) | ({"text/event-stream": {"schema": _EVENT}} if streams else {})
            operation["responses"] = {"200": {"description": "The answer.", "content": content}} | {
                status: {"description": what, "content": _json("Error")} for status, what in _REFUSALS.items()
            }
            operation.setdefault("parameters", []).extend(
                {"name": name, "in": "query", "required": False, "schema": schema}
                for name, schema in QUERIES.get((path, method), {}).items()
            )
    return found


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
