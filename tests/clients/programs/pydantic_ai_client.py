"""pydantic-ai: ``python pydantic_ai_client.py chat|responses|messages``. Prints what it got as one line of JSON."""

import asyncio
import json
import os
import sys
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

API, MODEL = os.environ["PLEXUS_API"], os.environ["PLEXUS_MODEL"]
CAPITAL = "What is the capital of France?"


class City(BaseModel):
    """A city and its sky."""

    city: Literal["Paris", "Rome"]
    sunny: bool


def model(surface):
    if surface == "messages":
        return AnthropicModel(MODEL, provider=AnthropicProvider(base_url=API.removesuffix("/v1"), api_key="any"))
    kind = OpenAIResponsesModel if surface == "responses" else OpenAIChatModel
    return kind(MODEL, provider=OpenAIProvider(base_url=API, api_key="any"))


async def main(surface):
    llm = model(surface)
    async with Agent(llm).run_stream(CAPITAL) as told:
        pieces = [piece async for piece in told.stream_text(delta=True, debounce_by=None)]
        usage = told.usage

    calls = []
    worker = Agent(llm)

    @worker.tool_plain
    def get_weather(city: str) -> str:
        """Get the current weather for a city."""
        calls.append(["get_weather", {"city": city}])
        return "12 degrees and rain"

    answer = await worker.run("What is the weather in Paris?")
    made = await Agent(llm, output_type=City).run(CAPITAL)
    return {
        "streamed": "".join(pieces),
        "pieces": pieces,
        "usage": [usage.input_tokens, usage.output_tokens],
        "calls": calls,
        "answer": answer.output,
        "object": made.output.model_dump(),
    }


print(json.dumps(asyncio.run(main(sys.argv[1]))))
