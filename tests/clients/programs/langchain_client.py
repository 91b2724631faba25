"""LangChain: ``python langchain_client.py chat|responses|messages``. Prints what it got as one line of JSON."""

import json
import os
import sys
from typing import Literal

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

API, MODEL = os.environ["PLEXUS_API"], os.environ["PLEXUS_MODEL"]
CAPITAL = "What is the capital of France?"


class City(BaseModel):
    """A city and its sky."""

    city: Literal["Paris", "Rome"]
    sunny: bool


@tool
def get_weather(city: str) -> str:
    """Get the current weather for a city."""
    return "12 degrees and rain"


def model(surface):
    if surface == "messages":
        return ChatAnthropic(
            model=MODEL, base_url=API.removesuffix("/v1"), api_key="any", max_retries=0, max_tokens=200
        )
    return ChatOpenAI(
        model=MODEL, base_url=API, api_key="any", max_retries=0, stream_usage=True,
        use_responses_api=surface == "responses",
    )  # fmt: skip


def main(surface):
    llm = model(surface)
    whole, pieces = None, []
    for chunk in llm.stream(CAPITAL):
        pieces += [chunk.text] if chunk.text else []
        whole = chunk if whole is None else whole + chunk

    turns = [HumanMessage("What is the weather in Paris?")]
    with_tools = llm.bind_tools([get_weather])
    asked = with_tools.invoke(turns)
    turns += [asked, *(get_weather.invoke(call) for call in asked.tool_calls)]
    answer = with_tools.invoke(turns)

    made = llm.with_structured_output(City).invoke(CAPITAL)
    usage = whole.usage_metadata
    return {
        "streamed": whole.text,
        "pieces": pieces,
        "usage": [usage["input_tokens"], usage["output_tokens"]],
        "calls": [[call["name"], call["args"]] for call in asked.tool_calls],
        "answer": answer.text,
        "object": made.model_dump(),
    }


print(json.dumps(main(sys.argv[1])))
