"""A model's chat template: messages and tools to the text of a prompt."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jinja2

from worker.text.conversation import Shape, normalise
from worker.text.environment import TemplateRefusal, compile_template
from worker.text.errors import PromptError
from worker.text.plain_tools import describe
from worker.text.traits import probe, shows_tools, takes_images

_FOR_TOOLS = "tool_use"  # the name of a template that is only for prompts with tools
_RESERVED = ("messages", "tools", "add_generation_prompt")
_END = "\ue000plexus\ue001"  # of a message that is continued: private characters, which no text has


class ChatTemplate:
    """Renders conversations. A checkpoint may bring several templates: one more for prompts with tools."""

    def __init__(self, templates: Mapping[str, str], named_tokens: Mapping[str, str], *, image_mark: str = "") -> None:
        """`templates` by name; none is allowed, and then every rendering is refused with the remedy.

        `image_mark`: the token that stands for an image, of a model that takes any.
        """
        self._named_tokens = dict(named_tokens)
        self._variants: dict[str, _Variant] = {}
        self._defects: dict[str, str] = {}
        for name, source in templates.items():
            try:
                self._variants[name] = _Variant(
                    source, self._named_tokens, is_for_tools=name == _FOR_TOOLS, image_mark=image_mark
                )
            except jinja2.TemplateSyntaxError as error:
                self._defects[name] = f"line {error.lineno}: {error.message}"
        self.source = "\n".join(templates.values())

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        variables: dict[str, Any],
        *,
        continue_final: bool = False,
    ) -> str:
        """Return the prompt up to where the assistant speaks. Raises `PromptError`.

        `continue_final`: up to the end of the last message, which is the assistant's.
        """
        for name in _RESERVED:
            if name in variables:
                raise PromptError(f"The template variable {name!r} is not the client's to set.", "template")
        variant = self._variant(with_tools=bool(tools))
        if tools and not variant.shows_tools:
            messages, tools = describe(messages, tools), []
        if continue_final:
            return self._render_begun(variant, messages, tools, variables)
        return variant.render(normalise(messages, variant.shape), tools, variables)

    def _render_begun(
        self,
        variant: "_Variant",
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        variables: dict[str, Any],
    ) -> str:
        """What templates write behind a message is cut off by a mark at its end, which also keeps its white space."""
        last = messages[-1] if messages else {}
        content = last.get("content") if isinstance(last, dict) else None
        if last.get("role") != "assistant" or last.get("tool_calls") or not isinstance(content, str) or not content:
            raise PromptError("Only a last message of the assistant that is text can be continued.", "messages")
        marked = [*messages[:-1], last | {"content": content + _END}]
        text = variant.render(normalise(marked, variant.shape), tools, variables, opens_turn=False)
        begun, mark, _ = text.rpartition(_END)
        if not mark:
            raise PromptError("The chat template of this model does not show the message to continue.", "messages")
        return begun

    @property
    def shows_tools(self) -> bool:
        """Whether the template for prompts with tools puts them into the prompt. False without a template."""
        variant = self._variants.get(_FOR_TOOLS) or self._variants.get("default")
        return variant is not None and variant.shows_tools

    @property
    def takes_images(self) -> bool:
        """Whether the usual template shows images, by the mark that was given."""
        variant = self._variants.get("default")
        return variant is not None and variant.shape.images

    def _variant(self, *, with_tools: bool) -> "_Variant":
        for name in (_FOR_TOOLS, "default") if with_tools else ("default",):
            if name in self._variants:
                return self._variants[name]
            if name in self._defects:
                raise PromptError(f"The chat template of this model is broken: {self._defects[name]}", "messages")
        raise PromptError(
            "This model has no chat template, so it cannot take messages. "
            "Send a text prompt to /v1/completions, or add a chat_template.jinja to the model.",
            "messages",
        )


class _Variant:
    """One template, compiled, and the shape of messages it takes."""

    def __init__(self, source: str, named_tokens: dict[str, str], *, is_for_tools: bool, image_mark: str) -> None:
        self._render: Callable[..., str] = compile_template(source)
        self._named_tokens = named_tokens
        self.shape: Shape = probe(self._plain, source)
        if image_mark and takes_images(self._plain, self.shape, image_mark):
            self.shape = replace(self.shape, images=True)
        self.shows_tools = is_for_tools or shows_tools(self._with_tools)

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        variables: dict[str, Any],
        *,
        opens_turn: bool = True,
    ) -> str:
        try:
            return self._plain(messages, tools, variables, opens_turn=opens_turn)
        except TemplateRefusal as error:
            raise PromptError(str(error.message), "messages") from error
        except Exception as error:  # templates are programs: they can fail in any way
            raise PromptError(
                f"The chat template of this model could not render these messages: {error}", "messages"
            ) from error

    def _with_tools(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        return self._plain(normalise(messages, self.shape), tools)

    def _plain(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        variables: dict[str, Any] | None = None,
        *,
        opens_turn: bool = True,
    ) -> str:
        arguments = {"documents": None, **self._named_tokens, **(variables or {})}
        return self._render(messages=messages, tools=tools or None, add_generation_prompt=opens_turn, **arguments)
