"""A tool for `llm --functions`."""


def get_weather(city: str) -> str:
    """Get the current weather for a city."""
    return "12 degrees and rain"
