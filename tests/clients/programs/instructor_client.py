"""instructor: ``python instructor_client.py <mode>``. Prints what it got as one line of JSON."""

import json
import os
import sys
from typing import Literal

import anthropic
import instructor
import openai
from pydantic import BaseModel, ConfigDict

API, MODEL = os.environ["PLEXUS_API"], os.environ["PLEXUS_MODEL"]
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


class City(BaseModel):
    """A city and its sky."""

    model_config = ConfigDict(extra="forbid")  # a small model finds no end in a schema that is open
    city: Literal["Paris", "Rome"]
    sunny: bool


def main(mode):
    kind = instructor.Mode[mode]
    if mode.startswith("ANTHROPIC"):
        plain = anthropic.Anthropic(base_url=API.removesuffix("/v1"), api_key="any", max_retries=0)
        client, extra = instructor.from_anthropic(plain, mode=kind), {"max_tokens": 200}
    else:
        plain = openai.OpenAI(base_url=API, api_key="any", max_retries=0)
        client, extra = instructor.from_openai(plain, mode=kind), {}
    ask = {"model": MODEL, "messages": CAPITAL, "response_model": City, "max_retries": 0, **extra}
    made = client.create(**ask)
    pieces = [part.model_dump() for part in client.create_partial(**ask)]
    return {"object": made.model_dump(), "streamed_object": pieces[-1], "pieces": pieces}


print(json.dumps(main(sys.argv[1])))
