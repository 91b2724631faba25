"""Everything between chat messages and token ids, and between token ids and text, for one model directory."""

import contextlib
import functools
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared.messages import Constraint, Prompt
from worker.models.errors import NotServable
from worker.models.vision import Vision, read_vision
from worker.protocol import Thinking
from worker.text.checkpoint import Checkpoint, GenerationDefaults
from worker.text.constrain import Constrainer
from worker.text.conversation import image_parts
from worker.text.detokenise import Detokeniser
from worker.text.errors import CheckpointError, PromptError, PromptTooLong
from worker.text.fitting import check_length, shorten
from worker.text.grammar import Reasoning, Style
from worker.text.harmony import HarmonySorter, detect_harmony, harmony_thinking
from worker.text.lark import literal
from worker.text.marks import Mark, split_marks
from worker.text.output import Output
from worker.text.pieces import Pieces
from worker.text.reasoning import ReasoningMarks
from worker.text.sight import PromptImage, Reading, Sight
from worker.text.sorter import BlockSorter, Sorter
from worker.text.stops import StopFinder
from worker.text.stream import Piece, TextStream
from worker.text.template import ChatTemplate
from worker.text.tools import HERMES, Convention, UnknownConvention, detect, named, schemas_of
from worker.text.variables import spelled
from worker.text.vocabulary import Vocabulary

__all__ = [
    "CheckpointError",
    "GenerationDefaults",
    "ModelText",
    "Piece",
    "PromptError",
    "PromptImage",
    "Reading",
    "TextStream",
]


class ModelText:
    """Tokeniser, chat template and conventions of a model.

    A prompt of messages is answered by an assistant: the answer is a text of its own, split into content, reasoning
    and tool calls. A prompt of text or ids is continued: everything is content, and nothing is recognised in it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        vocabulary: Vocabulary,
        *,
        tool_convention: str = "",
        vision: Vision | None = None,
    ) -> None:
        """`tool_convention`: by name, in place of the one that template and vocabulary show; `vision`: its eyes."""
        self._vocabulary = vocabulary
        mark = vocabulary.content(vision.token_id) if vision is not None else ""
        self._template = ChatTemplate(checkpoint.templates, checkpoint.named_tokens, image_mark=mark)
        self._pieces = Pieces(vocabulary, self._template.source)
        self._sight = Sight(vision, mark) if vision is not None and self._template.takes_images else None
        self._reasoning = ReasoningMarks.detect(vocabulary, self._template.source)
        self._harmony = detect_harmony(vocabulary)
        self._tools = self._convention(tool_convention)
        self.vocab_size = checkpoint.vocab_rows or vocabulary.size
        self.eos_ids = sorted(checkpoint.eos_ids | ({vocabulary.eos_id} if vocabulary.eos_id is not None else set()))
        self.context_limit = checkpoint.context_limit
        self.generation = checkpoint.generation
        self._constrainer = Constrainer(self._style(), self.vocab_size)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        chat_template: str = "",
        tool_convention: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> "ModelText":
        """Read the tokeniser and the small JSON files in `path`; the others stand in place of what these say.

        `options`: of the model; one of them bounds what an image takes. Raises `CheckpointError`.
        """
        checkpoint = Checkpoint.read(path)
        if chat_template:
            checkpoint = replace(checkpoint, templates={"default": chat_template})
        try:
            vision = read_vision(path, options)
            return cls(checkpoint, Vocabulary.load(checkpoint), tool_convention=tool_convention, vision=vision)
        except NotServable as error:
            raise CheckpointError(path, str(error)) from error
        except UnknownConvention as error:
            raise CheckpointError(path, str(error)) from error

    @property
    def capabilities(self) -> dict[str, bool]:
        """What the tokeniser and the chat template say that this model can do; nothing for one without a template."""
        if not self._template.source:
            return {}
        return {
            "tools": "tools" in self._template.source,
            "reasoning": self._reasoning is not None or bool(self._harmony),
            "vision": self._sight is not None,
        }

    def encode(self, prompt: Prompt, *, limit: int | None = None, reserve: int = 1) -> list[int]:
        """Return the prompt's token ids, never none. Raises `PromptError`.

        With a `limit` of tokens a prompt that is far longer is refused at once, `PromptTooLong`, and one that may be
        shortened leaves `reserve` of them free.

        Names of special tokens in a message become those tokens, as everywhere in this ecosystem: the tokeniser
        cannot tell who wrote them. An image counts as many tokens as it takes.
        """
        return self.read(prompt, limit=limit, reserve=reserve).ids

    def read(self, prompt: Prompt, *, limit: int | None = None, reserve: int = 1) -> Reading:
        """As `encode`, with the prompt's images and where they stand."""
        if prompt.messages is None:
            return Reading(self._read_plain(prompt, limit))
        if prompt.shorten and limit is not None:
            room = limit - reserve
            with contextlib.suppress(PromptTooLong):  # whatever else is wrong is said of the whole conversation
                whole = self._read(prompt, limit=room)
                if len(whole.ids) <= room:
                    return whole
            prompt = shorten(prompt, room, lambda one: self._read(one, limit=room).ids)
        return self._read(prompt, limit=limit)

    def _read_plain(self, prompt: Prompt, limit: int | None) -> list[int]:
        if prompt.text is not None:
            if not prompt.text:
                raise PromptError("The prompt is empty: send at least one character.", "prompt")
            whole = functools.partial(self._vocabulary.encode, add_special_tokens=True)
            return self._tokens(prompt.text, "prompt", whole, limit=limit)
        if not prompt.ids:
            raise PromptError("The prompt is empty: send messages, a text or token ids.", "prompt")
        for id in prompt.ids:
            if not 0 <= id < self.vocab_size:
                raise PromptError(f"Token id {id} is not in this model's vocabulary of {self.vocab_size}.", "prompt")
        return list(prompt.ids)

    def _read(self, prompt: Prompt, *, limit: int | None) -> Reading:
        def tokens(text: str) -> list[int]:
            return self._tokens(text, "messages", self._pieces.encode, limit=limit)

        text = self.render(prompt)
        if self._sight is None or not image_parts(prompt.messages or []):
            return Reading(tokens(text))
        return self._sight.read(prompt, text, tokens)

    def render(self, prompt: Prompt) -> str:
        """Return the text that the chat template makes of messages; a text prompt as it is. Raises `PromptError`."""
        if prompt.messages is not None:
            schemas_of([*prompt.tools, *prompt.shown_tools])  # refuses what are no function tools
            variables = spelled(prompt.template, speaks_in_channels=bool(self._harmony))
            return self._template.render(prompt.messages, prompt.tools, variables, continue_final=prompt.continue_final)
        return prompt.text if prompt.text is not None else self._vocabulary.decode(prompt.ids or [])

    def constrain(self, prompt: Prompt, constraint: Constraint | None, prompt_ids: list[int]) -> "Future[str] | None":
        """The grammar that the answer is held to, found to compile; None where nothing constrains it.

        The future raises `PromptError`, which names the field that is at fault.
        """
        return self._constrainer.begin(prompt, constraint, functools.partial(self._reasons, prompt, prompt_ids))

    def _reasons(self, prompt: Prompt, prompt_ids: list[int]) -> Reasoning:
        """How an answer may begin to reason."""
        if prompt.messages is None or self._reasoning is None or prompt.continue_final:
            return "none"
        tail = self._reasoning.tail(self._vocabulary, prompt_ids)
        if self._reasoning.is_open(tail):
            return "open"
        return "none" if self._reasoning.is_closed(tail) else "optional"

    def stream(self, prompt: Prompt, *, stop: list[str], prompt_ids: list[int]) -> TextStream:
        """Return the text stream of one choice."""
        stops = StopFinder(stop) if any(stop) else None
        is_chat = prompt.messages is not None
        is_new = is_chat and not prompt.continue_final  # the answer is a text of its own
        detokeniser = Detokeniser(self._vocabulary, after=None if is_new else prompt_ids)
        silent = frozenset(self.eos_ids)
        offered = _offered(prompt)
        tools = self._tools if offered else None
        if not is_chat or not (self._harmony or self._reasoning or tools):
            return TextStream(self._vocabulary, detokeniser, silent_ids=silent, stops=stops)
        output = Output(
            stops=stops,
            prompt_ids=prompt_ids,
            call_ids=self._tools.call_ids,
            single_call=not prompt.parallel_tool_calls or prompt.tool_choice.startswith("="),
        )
        sorter: Sorter
        if self._harmony:
            marks = self._harmony
            sorter = HarmonySorter(output, has_tools=tools is not None, is_begun=prompt.continue_final)
        else:
            marks, as_text = split_marks(self._marks(tools), self._vocabulary)
            sorter = BlockSorter(
                output,
                text_marks=as_text,
                starts_reasoning=is_new and self._opens_reasoning(prompt_ids),
                is_begun=prompt.continue_final,
                convention=tools,
                schemas=schemas_of(offered),
            )
        return TextStream(self._vocabulary, detokeniser, silent_ids=silent, output=output, sorter=sorter, marks=marks)

    def thinking(self, prompt: Prompt, budget: int, *, prompt_ids: list[int]) -> Thinking | None:
        """How the rank holds reasoning to so many tokens; None where there is none, or its marks are no tokens.

        gpt-oss is led to its final message, unless it may call a tool: then it chooses the next channel itself.
        """
        if prompt.messages is None:
            return None
        if self._harmony:
            return harmony_thinking(self._vocabulary, budget, may_call=bool(_offered(prompt)))
        if self._reasoning is None:
            return None
        opening = self._vocabulary.id_of(self._reasoning.opening.text)
        closing = self._vocabulary.id_of(self._reasoning.closing.text)
        if opening is None or closing is None:
            return None
        return Thinking(
            budget=budget,
            opening=[opening],
            closing=[closing],
            is_open=not prompt.continue_final and self._opens_reasoning(prompt_ids),
        )

    def token_text(self, id: int) -> str:
        """One token as text, for log probabilities."""
        return self._vocabulary.token_text(id)

    def _opens_reasoning(self, prompt_ids: list[int]) -> bool:
        """Whether the template has opened the block, so that the model will not write the opening marker."""
        reasoning = self._reasoning
        return reasoning is not None and reasoning.is_open(reasoning.tail(self._vocabulary, prompt_ids))

    def _convention(self, declared: str) -> Convention:
        if declared:
            return named(declared)
        if not self._template.shows_tools and not self._harmony:
            return HERMES  # that is how they are described to it
        return detect(self._vocabulary, self._template.source)

    def _style(self) -> Style:
        vocabulary, reasoning = self._vocabulary, self._reasoning

        def symbol(mark: str) -> str:
            id = vocabulary.id_of(mark)
            return literal(mark) if id is None else f"<[{id}]>"

        return Style(
            symbol=symbol,
            is_token=lambda mark: vocabulary.id_of(mark) is not None,
            convention=self._tools,
            reasoning=(reasoning.opening.text, reasoning.closing.text) if reasoning else None,
            speaks_in_channels=bool(self._harmony),
        )

    def _marks(self, tools: Convention | None) -> list[Mark]:
        marks = [self._reasoning.opening, self._reasoning.closing] if self._reasoning else []
        return [*marks, *tools.marks()] if tools else marks

    def _tokens(self, text: str, param: str, encode: Callable[[str], list[int]], *, limit: int | None) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair
            raise PromptError(f"The prompt is not valid Unicode text ({error.reason}).", param) from error
        if limit is not None:
            check_length(text, limit, lambda piece: self._vocabulary.encode(piece, add_special_tokens=False), param)
        ids = encode(text)
        if not ids:
            raise PromptError("The prompt is empty: it has no tokens.", param)
        return ids


def _offered(prompt: Prompt) -> list[dict[str, Any]]:
    """The tools that may be called."""
    return [*prompt.tools, *prompt.shown_tools] if prompt.tool_choice != "none" else []
