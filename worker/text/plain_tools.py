"""Tools for models whose template knows none: described and called in plain text, as Hermes models do. Pure.

This is the one place where words are added to a prompt, and only where the client offers tools that the template would
drop in silence. The words are those that most fine-tunes for tools were trained with.
"""

import json
from typing import Any

_HEAD = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
_TAIL = """
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


def describe(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages in which the tools are described, at the end of the first system message, and calls are text."""
    if not messages or not all(isinstance(message, dict) for message in messages):
        return messages  # refused further on, with the reason
    text = _HEAD + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools) + _TAIL
    result = _without_calls(messages)
    if result[0].get("role") not in ("system", "developer"):
        return [{"role": "system", "content": text}, *result]
    content = result[0].get("content")
    if isinstance(content, list):
        joined: Any = [*content, {"type": "text", "text": f"\n\n{text}"}]
    else:
        joined = f"{content}\n\n{text}" if content else text
    return [result[0] | {"content": joined}, *result[1:]]


def _without_calls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = []
    follows_result = False
    for message in messages:
        is_result = message.get("role") == "tool"
        if is_result:
            text = f"<tool_response>\n{_text(message.get('content'))}\n</tool_response>"
            if follows_result:
                result[-1] = {"role": "user", "content": f"{result[-1]['content']}\n{text}"}
            else:
                result.append({"role": "user", "content": text})
        elif message.get("tool_calls"):
            rest = {key: value for key, value in message.items() if key != "tool_calls"}
            texts = [text for text in (_text(message.get("content")), *map(_call, message["tool_calls"])) if text]
            result.append(rest | {"content": "\n".join(texts)})
        else:
            result.append(message)
        follows_result = is_result
    return result


def _call(call: Any) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return ""
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments if arguments is not None else {}, ensure_ascii=False)
    name = json.dumps(function.get("name"), ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments or "{}"}}}\n</tool_call>'


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return content if isinstance(content, str) else ""
