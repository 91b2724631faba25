"""Outputs held to grammars: whatever the logits are, what comes out is what was asked for."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from shared.messages import Constraint, Prompt, ToolCall
from tests.support.calls import join
from tests.support.conventions import MODELS, write_convention
from tests.support.random_logits import RandomLogits
from tests.support.schemas import SCHEMAS
from tests.support.stepping import Collected, drain
from tests.support.tiny import make_checkpoint
from worker.engine.engine import Engine
from worker.engine.grammar import Grammars, Matcher
from worker.engine.masking import apply_masks
from worker.engine.runner import TorchRunner
from worker.protocol import Choice, Sample, Submit
from worker.text.model_text import ModelText

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 2, "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["c", "f"]},
        "code": {"type": "string", "pattern": "^[A-Z]{3}$"},
        "note": {"anyOf": [{"type": "string", "maxLength": 9}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 3},
        "where": {"$ref": "#/$defs/Place"},
    },
    "required": ["city", "unit"],
    "$defs": {
        "Place": {
            "type": "object",
            "properties": {"lat": {"type": "number"}},
            "required": ["lat"],
            "additionalProperties": False,
        }
    },
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "ping"}},
]


class Model:
    """A text side and an engine with random logits for it."""

    def __init__(self, path: Path, *, seed: int = 0, **sizes: int) -> None:
        self.text = ModelText.load(path)
        sizes = {"num_blocks": 2000, "block_tokens": 16, "slots": 64, "prefill_tokens": 512} | sizes
        runner = RandomLogits(self.text.vocab_size, seed=seed, likelier=self._likelier())
        self.grammars = Grammars(path, self.text.vocab_size)
        self.engine = Engine(runner, context_limit=2000, grammars=self.grammars, **sizes)

    def _likelier(self) -> dict[int, float]:
        """Closing quotes, brackets and marks: weights that were never trained would go on for ever."""
        vocabulary = self.text._vocabulary
        closing = {id: 4.0 for id in range(3, self.text.vocab_size) if set('"}]<') & set(vocabulary.token_text(id))}
        return closing | {id: 6.0 for id in vocabulary.added.values() if id > 2}

    def submit(
        self,
        key: str,
        prompt: Prompt,
        constraint: Constraint | None = None,
        *,
        n: int = 1,
        resume: list[int] | None = None,
        **sample: Any,
    ) -> list[int]:
        ids = self.text.encode(prompt)
        ready = self.text.constrain(prompt, constraint, ids)
        fields = {"seed": 1, "max_tokens": 400, "temperature": 0.9, "stop_ids": self.text.eos_ids} | sample
        choices = [Choice(index, resume or []) for index in range(n)]
        grammar = ready.result() if ready else ""
        self.engine.submit(Submit(key=key, prompt=ids, choices=choices, sample=Sample(**fields), grammar=grammar))
        return ids

    def answer(
        self, prompt: Prompt, prompt_ids: list[int], ids: list[int], finish: str
    ) -> tuple[str, str, list[ToolCall], str]:
        """Content, reasoning, calls and finish reason that a client gets."""
        stream = self.text.stream(prompt, stop=[], prompt_ids=prompt_ids)
        at_end = finish == "stop" and ids[-1] in self.text.eos_ids
        pieces = [*(stream.feed([id]) for id in (ids[:-1] if at_end else ids)), stream.finish(finish)]
        calls = join(call for piece in pieces for call in piece.tool_calls)
        return "".join(p.text for p in pieces), "".join(p.reasoning for p in pieces), calls, pieces[-1].finish or ""


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model directories by convention."""
    root = tmp_path_factory.mktemp("conventions")
    silent = write_convention(root / "silent", "hermes", ending="<think>\n\n</think>\n\n")  # thinking is switched off
    return {"silent": silent} | {name: write_convention(root / name.replace(" ", "_"), name) for name in MODELS}


def ask(**fields: Any) -> Prompt:
    return Prompt(messages=[{"role": "user", "content": "hi"}], **fields)


@pytest.mark.parametrize("convention", MODELS)
def test_required_calls_validate_in_every_convention(paths: dict[str, Path], convention: str) -> None:
    model = Model(paths[convention])
    prompts = {
        "any": ask(tools=TOOLS, tool_choice="required"),
        "one": ask(tools=TOOLS, tool_choice="required", parallel_tool_calls=False),
        "named": ask(tools=TOOLS, tool_choice="=get_weather"),
        "shown": ask(tools=TOOLS[1:], shown_tools=TOOLS[:1], tool_choice="=get_weather"),
    }
    ids = {key: model.submit(key, prompt, n=3) for key, prompt in prompts.items()}
    done = drain(model.engine)
    assert not done.refused
    num_called = 0
    for (key, choice), output in done.ids.items():
        content, _, calls, finish = model.answer(prompts[key], ids[key], output, done.finish[key, choice])
        if finish == "length":
            continue  # the token limit cut it, and says so
        assert finish == "tool_calls" and calls and not content.strip()
        num_called += 1
        for call in calls:
            if key in ("named", "shown"):
                assert call.name == "get_weather"
            jsonschema.validate(
                json.loads(call.arguments), PARAMETERS if call.name == "get_weather" else {"maxProperties": 0}
            )
        if key != "any":
            assert len(calls) == 1
    assert num_called >= 8


def test_schemas_are_kept_by_random_logits(paths: dict[str, Path]) -> None:
    assert len(SCHEMAS) >= 40
    model = Model(paths["silent"], slots=256, num_blocks=8000)
    prompts = {name: ask() for name in SCHEMAS}
    ids = {
        name: model.submit(name, prompts[name], Constraint(kind="json_schema", value=schema), n=2, temperature=choice)
        for (name, schema), choice in zip(SCHEMAS.items(), [0.0, 0.7, 1.5] * len(SCHEMAS), strict=False)
    }
    done = drain(model.engine)
    assert not done.refused
    finished = set()
    for (name, choice), output in done.ids.items():
        content, _, _, finish = model.answer(prompts[name], ids[name], output, done.finish[name, choice])
        if finish == "stop":
            jsonschema.validate(json.loads(content), SCHEMAS[name])
            finished.add(name)
    assert len(finished) >= 0.9 * len(SCHEMAS), set(SCHEMAS) - finished


def test_schemas_and_calls_are_kept_by_a_model_with_random_weights(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = make_checkpoint(tmp_path, num_hidden_layers=2, max_position_embeddings=2048)
    text = ModelText.load(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    runner = TorchRunner(model, "cpu", torch.float32, 1200, 32, verify=False)
    grammars = Grammars(path, runner.vocab_size)
    engine = Engine(
        runner, num_blocks=1200, block_tokens=32, slots=64, prefill_tokens=512, context_limit=2048, grammars=grammars
    )
    silent = {"enable_thinking": False}
    jobs = {name: (ask(template=silent), Constraint(kind="json_schema", value=one)) for name, one in SCHEMAS.items()}
    required = ask(template=silent, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    for key, (prompt, constraint) in [*jobs.items(), ("call", (required, None))]:
        ids = text.encode(prompt)
        ready = text.constrain(prompt, constraint, ids)
        assert ready is not None
        sampling = Sample(seed=3, max_tokens=200, stop_ids=text.eos_ids)
        engine.submit(Submit(key=key, prompt=ids, choices=[Choice(0)], sample=sampling, grammar=ready.result()))
    done = drain(engine)
    assert not done.refused
    finished = set()
    for (key, _), output in done.ids.items():
        prompt = required if key == "call" else jobs[key][0]
        stream = text.stream(prompt, stop=[], prompt_ids=text.encode(prompt))
        pieces = [stream.feed([id for id in output if id not in text.eos_ids]), stream.finish(done.finish[key, 0])]
        content, calls = "".join(piece.text for piece in pieces), join(call for p in pieces for call in p.tool_calls)
        if pieces[-1].finish == "length":
            continue
        finished.add(key)
        if key == "call":
            schema: Any = PARAMETERS if calls[0].name == "get_weather" else {"maxProperties": 0}
            jsonschema.validate(json.loads(calls[0].arguments), schema)
        else:
            jsonschema.validate(json.loads(content), SCHEMAS[key])
    assert len(finished) >= 30


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (Constraint(kind="regex", value=r"(ab|c/d){1,3}\d"), r"(ab|c/d){1,3}[0-9]"),
        (Constraint(kind="grammar", value='start: "x" y\ny: /[0-9]{2}/ | "-" y'), r"x-*[0-9]{2}"),
        (Constraint(kind="json_schema", value={"const": "é"}), '"(é|\\\\u00e9)"'),
    ],
)  # fmt: skip
def test_other_constraints(paths: dict[str, Path], constraint: Constraint, pattern: str) -> None:
    import re

    model = Model(paths["silent"])
    ids = model.submit("a", ask(), constraint, n=4)
    done = drain(model.engine)
    for choice in range(4):
        content, _, _, finish = model.answer(ask(), ids, done.ids["a", choice], done.finish["a", choice])
        assert finish == "stop" and re.fullmatch(pattern, content)


def test_any_json_object(paths: dict[str, Path]) -> None:
    model = Model(paths["hermes"])
    ids = model.submit("a", ask(), Constraint(kind="json_object"), n=8)
    done = drain(model.engine)
    answers = [model.answer(ask(), ids, done.ids["a", n], done.finish["a", n]) for n in range(8)]
    objects = [json.loads(content) for content, _, _, finish in answers if finish == "stop"]
    assert len(objects) >= 4 and all(isinstance(value, dict) for value in objects)


@pytest.mark.parametrize(
    ("convention", "ending"),
    [("hermes", ""), ("hermes", "<think>\n"), ("hermes in plain text", ""), ("mistral", ""), ("harmony", "")],
)
def test_reasoning_before_content_stays_free(tmp_path: Path, convention: str, ending: str) -> None:
    model = Model(write_convention(tmp_path, convention, ending=ending), seed=3)
    ids = model.submit("a", ask(), Constraint(kind="regex", value="[ab]{4}"), n=12, max_tokens=100)
    done = drain(model.engine)
    answers = [model.answer(ask(), ids, done.ids["a", n], done.finish["a", n]) for n in range(12)]
    ended = [(content, reasoning) for content, reasoning, _, finish in answers if finish == "stop"]
    assert ended and all(len(content) == 4 and set(content) <= {"a", "b"} for content, _ in ended)
    assert any(reasoning for _, reasoning in ended) or convention == "hermes in plain text"


def test_content_or_calls_under_auto(paths: dict[str, Path]) -> None:
    """A format for the content, and tools beside it: each answer is one or the other, and each is sound."""
    model = Model(paths["hermes"], seed=5)
    strict = [{"type": "function", "function": TOOLS[0]["function"] | {"strict": True}}]
    prompt = ask(tools=strict)
    ids = model.submit("a", prompt, Constraint(kind="regex", value="[ab]{2}"), n=16)
    done = drain(model.engine)
    kinds = set()
    for n in range(16):
        content, _, calls, finish = model.answer(prompt, ids, done.ids["a", n], done.finish["a", n])
        kinds.add(finish)
        if finish == "stop":
            assert len(content) == 2 and not calls
        for call in calls if finish == "tool_calls" else ():
            jsonschema.validate(json.loads(call.arguments), PARAMETERS)
    assert {"stop", "tool_calls"} <= kinds


def test_a_resumed_output_goes_on_as_it_would_have(paths: dict[str, Path]) -> None:
    constraint = Constraint(kind="json_schema", value=SCHEMAS["pydantic"])
    model = Model(paths["hermes"])
    model.submit("a", ask(), constraint)
    whole = drain(model.engine).ids["a", 0]
    for cut in (0, 1, len(whole) // 2, len(whole) - 1, len(whole)):
        model.submit(f"b{cut}", ask(), constraint, resume=whole[:cut])
        done = drain(model.engine)
        assert whole[:cut] + done.ids[f"b{cut}", 0] == whole
        assert done.finish[f"b{cut}", 0] == "stop"


def test_a_prefix_that_does_not_fit_is_refused(paths: dict[str, Path]) -> None:
    model = Model(paths["hermes"])
    model.submit("a", ask(), Constraint(kind="regex", value="a+"), resume=model.text.encode(Prompt(text="zz")))
    assert drain(model.engine).refused["a"].kind == "invalid_request"


def test_preemption_keeps_the_place(paths: dict[str, Path]) -> None:
    constraint = Constraint(kind="json_schema", value=SCHEMAS["pydantic"])
    roomy, tight = Model(paths["hermes"]), Model(paths["hermes"], num_blocks=14, slots=8)
    outputs = []
    for model in (roomy, tight):
        for number in range(4):
            model.submit(f"job{number}", ask(), constraint, max_tokens=150)
        done = drain(model.engine)
        assert not done.refused
        outputs.append(done.ids)
    assert outputs[0] == outputs[1]


def test_a_constraint_beside_free_rows_changes_nothing_for_them(paths: dict[str, Path]) -> None:
    alone, beside = Model(paths["hermes"]), Model(paths["hermes"])
    alone.submit("free", ask(), max_tokens=30, logprobs=2)
    beside.submit("free", ask(), max_tokens=30, logprobs=2)
    beside.submit("held", ask(), Constraint(kind="json_object"), max_tokens=30)
    first, second = drain(alone.engine), drain(beside.engine)
    assert first.ids["free", 0] == second.ids["free", 0]
    assert first.logprobs["free", 0] == second.logprobs["free", 0]


def test_log_probabilities_are_the_models_own(paths: dict[str, Path]) -> None:
    model = Model(paths["silent"])
    model.submit("a", ask(), Constraint(kind="regex", value="b"), temperature=0.0, logprobs=3)
    done = drain(model.engine)
    first = done.logprobs["a", 0][0]
    assert first.id == done.ids["a", 0][0]
    assert first.logprob < first.top[0][1]  # others were likelier, and not allowed


def test_a_bias_cannot_make_a_forbidden_token(paths: dict[str, Path]) -> None:
    model = Model(paths["silent"])
    wanted = model.text.encode(Prompt(text="z"))[-1]
    model.submit("a", ask(), Constraint(kind="regex", value="[ab]{3}"), logit_bias={wanted: 100.0}, top_k=1)
    done = drain(model.engine)
    assert wanted not in done.ids["a", 0] and done.finish["a", 0] == "stop"


def test_a_mask_that_is_too_much_work_fails_alone(paths: dict[str, Path]) -> None:
    """Two thousand optional members compile, and no parser row can hold them."""
    model = Model(paths["hermes"])
    many = {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(2000)}}
    model.submit("bad", ask(), Constraint(kind="json_schema", value=many))
    model.submit("good", ask(), Constraint(kind="regex", value="[ab]{9}"))
    done = drain(model.engine)
    assert done.refused["bad"].kind == "invalid_request"
    assert "Current row" in done.refused["bad"].message
    assert done.finish["good", 0] == "stop"


def test_an_engine_without_grammars_says_so(paths: dict[str, Path]) -> None:
    engine = Engine(RandomLogits(50), num_blocks=10, block_tokens=16, slots=2, prefill_tokens=64, context_limit=100)
    engine.submit(
        Submit(key="a", prompt=[1], choices=[Choice(0)], sample=Sample(seed=0, max_tokens=4), grammar='start: "a"')
    )
    assert drain(engine).refused["a"].kind == "invalid_request"


def test_abort_while_the_grammar_is_made_ready(paths: dict[str, Path]) -> None:
    model = Model(paths["hermes"])
    model.submit("a", ask(), Constraint(kind="json_object"))
    model.engine.abort([("a", -1)])
    assert not model.engine.has_work
    assert drain(model.engine, Collected()).ids == {}


@pytest.mark.parametrize("size", [31, 32, 33, 400])
def test_masks_are_read_bit_by_bit(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    allowed = torch.rand(3, size, generator=generator) < 0.5
    words = -(-size // 32)
    masks = torch.zeros(3, words, dtype=torch.int64)
    for row in range(3):
        for token in range(size):
            masks[row, token // 32] |= int(allowed[row, token]) << (token % 32)
    packed = masks.to(torch.int32).numpy()
    logits = torch.randn(5, size, generator=generator)
    before = logits.clone()
    apply_masks(logits, [0, 3, 4], packed)
    assert torch.equal(logits[[1, 2]], before[[1, 2]])
    assert torch.equal(logits[[0, 3, 4]], before[[0, 3, 4]].masked_fill(~allowed, -torch.inf))


def test_a_matcher_ends_once(paths: dict[str, Path]) -> None:
    model = Model(paths["hermes"])
    ready = model.text.constrain(ask(), Constraint(kind="regex", value="ab"), [5])
    assert ready is not None
    job = Submit(key="a", prompt=[5], choices=[Choice(0)], sample=Sample(seed=0, max_tokens=9), grammar=ready.result())
    matcher: Matcher = model.grammars.open(job).result()[0]
    ids = model.text.encode(Prompt(text="ab"))[1:]
    assert not matcher.is_over
    matcher.accept(ids)
    assert matcher.is_over
    matcher.accept([2])
    assert matcher.is_over and not matcher.error
