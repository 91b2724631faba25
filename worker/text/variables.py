"""Variables of chat templates that say whether and how much to reason, under the names that templates give them. Pure.

A job has `enable_thinking` and `reasoning_effort`. Families call the first by other names too, and the template of
gpt-oss writes the second into the prompt as it is, where the model knows three words.
"""

from typing import Any

_SAME = ("thinking", "enable_reasoning")  # DeepSeek-V3.1 and Granite; some fine-tunes
_KNOWN_EFFORTS = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}


def spelled(variables: dict[str, Any], *, speaks_in_channels: bool) -> dict[str, Any]:
    """The variables as the model's template may look for them. What the job sets itself stays as it is."""
    result = dict(variables)
    if isinstance(on := variables.get("enable_thinking"), bool):
        for name in _SAME:
            result.setdefault(name, on)
    effort = variables.get("reasoning_effort")
    if speaks_in_channels and isinstance(effort, str):
        result["reasoning_effort"] = _KNOWN_EFFORTS.get(effort, effort)
    return result
