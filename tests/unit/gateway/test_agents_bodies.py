"""Bodies in the shapes that coding agents send: taken as they are, and each prompt begins with the last one."""

import itertools
from typing import Any

from gateway.dialects import anthropic_messages, openai_responses

MARK = {"cache_control": {"type": "ephemeral"}}
EDIT = {"name": "Edit", "description": "Edits.", "input_schema": {"type": "object", "$schema": "x", "properties": {}}}
FIND = {"name": "ToolSearch", "description": "Finds.", "input_schema": {"type": "object", "properties": {}}}
LATER = {"name": "Fetch", "description": "Later.", "input_schema": {"type": "object"}, "defer_loading": True}


def claude_code(messages: list[Any], **fields: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "messages": messages,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli;"},
            {"type": "text", "text": "You are an agent.", **MARK},
            {"type": "text", "text": "Rules.", **MARK},
        ],
        "tools": [EDIT, FIND, LATER],
        "metadata": {"user_id": '{"device_id":"d","account_uuid":"","session_id":"s"}'},
        "max_tokens": 32000,
        "thinking": {"type": "adaptive", "display": "omitted"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "safeguards": [{"type": "x"}],
        "stream": True,
        **fields,
    }


def test_a_messages_agent_over_three_turns() -> None:
    first = [
        {"role": "user", "content": [{"type": "text", "text": "context"}, {"type": "text", "text": "do it", **MARK}]},
        {"role": "system", "content": [{"type": "text", "text": "a note", **MARK}]},
    ]
    call = {"type": "tool_use", "id": "t1", "name": "ToolSearch", "input": {"query": "fetch"}}
    found = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "tool_reference", "tool_name": "Fetch"}]}
    second = [
        {"role": "user", "content": [{"type": "text", "text": "context"}, {"type": "text", "text": "do it"}]},
        {"role": "system", "content": "a note"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, call]},
        {"role": "user", "content": [{**found, **MARK}]},
    ]
    third = [
        *second[:-1],
        {"role": "user", "content": [found]},
        {"role": "assistant", "content": [{"type": "text", "text": "done"}]},
        {"role": "user", "content": "thanks"},
    ]
    prompts = [
        anthropic_messages.parse(claude_code(turn), {"anthropic-beta": "a,b"}).prompt for turn in (first, second, third)
    ]
    for before, after in itertools.pairwise(prompts):
        assert before.messages is not None and after.messages is not None
        assert after.messages[: len(before.messages)] == before.messages
        assert (after.tools, after.template) == (before.tools, before.template)
    assert [tool["function"]["name"] for tool in prompts[1].shown_tools] == ["Fetch"]
    assert prompts[0].messages is not None
    assert prompts[0].messages[0] == {"role": "system", "content": "You are an agent.\nRules."}
    title = claude_code([{"role": "user", "content": "hi"}], tools=[], thinking=None)
    title["output_config"] = {"format": {"type": "json_schema", "schema": {"type": "object", "properties": {}}}}
    assert anthropic_messages.parse(title, {}).constraint is not None


def codex(items: list[Any]) -> dict[str, Any]:
    function = {
        "type": "function",
        "name": "shell",
        "description": "Runs.",
        "strict": False,
        "parameters": {"type": "object"},
    }
    return {
        "model": "m",
        "stream": True,
        "input": items,
        "tools": [
            function,
            {"type": "namespace", "name": "agents", "description": "d", "tools": [{**function, "name": "spawn"}]},
            {"type": "web_search", "external_web_access": True},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "client_metadata": {"a": "b"},
    }


def test_a_responses_agent_over_two_turns() -> None:
    def message(role: str, text: str) -> dict[str, Any]:
        return {"type": "message", "id": f"m_{text}", "role": role, "content": [{"type": "input_text", "text": text}]}

    first = [
        message("developer", "rules"),
        message("developer", "more"),
        message("user", "context"),
        message("user", "do"),
    ]
    second = [
        *first,
        {
            "type": "reasoning",
            "id": "r",
            "summary": [{"type": "summary_text", "text": "hm"}],
            "encrypted_content": None,
        },
        {"type": "function_call", "id": "f", "status": "completed", "name": "shell", "arguments": "{}", "call_id": "c"},
        {"type": "function_call_output", "id": "o", "call_id": "c", "output": "out"},
    ]
    before, after = (openai_responses.parse(codex(items), {}) for items in (first, second))
    assert before.prompt.messages is not None and after.prompt.messages is not None
    assert after.prompt.messages[:4] == before.prompt.messages
    assert after.prompt.messages[4]["reasoning_content"] == "hm"
    assert after.prompt.tools == before.prompt.tools
    assert [tool["function"]["name"] for tool in after.prompt.tools] == ["shell", "agents__spawn"]
    assert before.ignored == ("prompt_cache_key", "client_metadata", "tools[2]")
    compaction = codex([*second, message("user", "summarise")]) | {"tools": []}
    assert openai_responses.parse(compaction, {}).prompt.tools == []
