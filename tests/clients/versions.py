"""The versions of the clients that the tests install: the newest when the tests were last revised."""

# Command-line programs of npm, each in a folder of its own.
CLAUDE_CODE = "2.1.329"
CODEX = "0.169.0"
OPENCODE = "1.18.33"

# A library of npm in a folder of its own, the official client of NATS.
NATS_JS = "2.29.3"

# Libraries of npm, all in one folder.
NODE_LIBRARIES = {
    "openai": "7.57.0",
    "@anthropic-ai/sdk": "1.12.0",
    "ai": "7.0.173",
    "@ai-sdk/openai-compatible": "3.0.92",
    "@ai-sdk/anthropic": "4.0.105",
    "@ai-sdk/openai": "4.0.118",
    "zod": "4.6.7",
    "node": "22.23.3",  # the AI SDK wants 22 or later, whatever the machine has
}

# What comes from PyPI, by virtual environment: they want different versions of the same libraries.
PYTHON = {
    "langchain": {"langchain-openai": "1.7.3", "langchain-anthropic": "1.7.7"},
    "instructor": {"instructor": "1.17.0", "anthropic": ""},
    "pydantic-ai": {"pydantic-ai-slim[openai,anthropic]": "2.68.0"},
    "llm": {"llm": "0.36", "llm-anthropic": "0.30"},
    "aider": {"aider-chat": "0.86.2"},
}
