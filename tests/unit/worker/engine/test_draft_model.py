"""Guesses of a draft model: they change no output, its cache holds what it reads, and it is asked where that pays."""

import random
from concurrent.futures import Future

import pytest
import torch

from tests.support.models import generate, make_model
from tests.support.stepping import CheckingRunner, Collected, drain, make_job, next_token
from worker.engine.cache_space import WindowCap
from worker.engine.draft_model import DraftModel
from worker.engine.engine import Engine
from worker.engine.errors import DeviceLost
from worker.engine.lookup import Lookup
from worker.engine.native import library
from worker.engine.plan import Sampled, StepPlan
from worker.engine.prepared import AS_IS, PathChoice
from worker.engine.probe import probe
from worker.engine.runner import TorchRunner

VOCABULARY = 50
BLOCK = 4


class Clock:
    """Time that passes only while somebody computes."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed:
    """A runner whose steps take so long; `wrong` makes it say something else now and then."""

    def __init__(self, runner, clock, step_s, *, wrong=lambda row, position: False):
        self.runner, self.clock, self.step_s, self.wrong = runner, clock, step_s, wrong
        self.vocab_size = runner.vocab_size
        self.num_plans = self.num_tokens = self.num_drafts = 0
        self.failed: list[BaseException] = []

    def run(self, plan: StepPlan) -> list[Sampled]:
        self.num_plans += 1
        self.num_tokens += plan.num_tokens
        self.num_drafts += plan.num_drafts
        self.clock.now += self.step_s * (1 + 0.02 * plan.num_tokens)
        try:
            tokens = self.runner.run(plan)
        except BaseException as error:
            self.failed.append(error)
            raise
        kept = [(row, position) for row in plan.rows for position in plan.kept(row)]
        return [
            Sampled((token.id + 1) % self.vocab_size, token.logprob) if self.wrong(row, position) else token
            for token, (row, position) in zip(tokens, kept, strict=True)
        ]

    def transfer(self, transfers):
        self.runner.transfer(transfers)


def sometimes(row, position):
    return (position * 7 + len(row.sequence.key)) % 5 == 0


def make_engine(*, num_blocks=60, slots=4, wrong=sometimes, draft_s=0.1, small=None, cap=None, num_host_blocks=0):
    clock = Clock()
    runner = Timed(CheckingRunner(num_blocks, BLOCK, VOCABULARY, cap=cap), clock, 1.0)
    small = Timed(small or CheckingRunner(num_blocks, BLOCK, VOCABULARY), clock, draft_s, wrong=wrong)
    engine = Engine(
        runner,
        num_blocks=num_blocks,
        block_tokens=BLOCK,
        slots=slots,
        prefill_tokens=24,
        context_limit=200,
        cap=cap,
        num_host_blocks=num_host_blocks,
        draft=(small, 200),
        clock=clock,
    )
    return engine, runner, small


def expect(prompt, num_tokens):
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(next_token(ids, VOCABULARY))
    return ids[len(prompt) :]


def prompt_of(length, seed=1):
    return [(seed * 7 + index * index) % VOCABULARY for index in range(length)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["roomy", "tight", "window"])
def test_whatever_happens_outputs_are_the_same_and_the_small_cache_holds_what_is_read(seed, kind, monkeypatch):
    """Joins, prefixes found again, several choices, preemption, cancels: the checking runners verify every slot."""
    monkeypatch.setattr(Lookup, "find", lambda self, ids, count: ())
    cap = WindowCap(9, 20) if kind == "window" else None
    engine, runner, small = make_engine(
        num_blocks=25 if kind == "tight" else 60, cap=cap, num_host_blocks=20 if kind == "tight" else 0
    )
    chance = random.Random(seed)
    collected, jobs, aborted = Collected(), {}, set()
    for number in range(14):
        prompt = prompt_of(chance.choice((3, 17, 30, 45)), chance.randrange(2)) + prompt_of(chance.randrange(5), number)
        job = make_job(str(number), prompt, chance.randrange(1, 40), n=chance.choice((1, 1, 2)))
        jobs[str(number)] = job
        engine.submit(job)
        for _ in range(chance.randrange(8)):
            collected.take(engine.step())
        if chance.random() < 0.15:
            gone = chance.choice(list(jobs))
            engine.abort([(gone, -1)])
            aborted.add(gone)
    drain(engine, collected)
    for key, job in jobs.items():
        for choice in job.choices:
            if key not in aborted:
                assert collected.ids[key, choice.index] == expect(job.prompt, job.sample.max_tokens)
    assert not small.failed and not runner.failed
    assert runner.num_drafts > 20


def test_a_prompt_that_was_read_is_not_read_again():
    engine, _, small = make_engine(wrong=lambda row, position: False)
    prompt = prompt_of(60)
    engine.submit(make_job("a", prompt, 30))
    drain(engine)
    before = small.num_tokens
    engine.submit(make_job("b", prompt, 10))  # too short an answer to read so much for
    num_plans = small.num_plans
    drain(engine)
    assert small.num_plans > num_plans and small.num_tokens - before < 40
    assert not small.failed


def seconds(*, wrong, draft_s, num_jobs, num_tokens=150, speculate=True):
    clock = Clock()
    runner = Timed(CheckingRunner(600, BLOCK, VOCABULARY), clock, 1.0)
    small = Timed(CheckingRunner(600, BLOCK, VOCABULARY), clock, draft_s, wrong=wrong)
    engine = Engine(
        runner,
        num_blocks=600,
        block_tokens=BLOCK,
        slots=16,
        prefill_tokens=400,
        context_limit=400,
        speculate=speculate,
        draft=(small, 400),
        clock=clock,
    )
    for number in range(num_jobs):
        engine.submit(make_job(str(number), prompt_of(20, number), num_tokens))
    drain(engine)
    return clock.now, small


@pytest.mark.parametrize("num_jobs", [1, 4])
def test_right_guesses_make_it_faster(num_jobs, monkeypatch):
    monkeypatch.setattr(Lookup, "find", lambda self, ids, count: ())
    plain, _ = seconds(wrong=None, draft_s=0.1, num_jobs=num_jobs, speculate=False)
    guessed, _ = seconds(wrong=lambda row, position: position % 9 == 0, draft_s=0.1, num_jobs=num_jobs)
    assert plain > 2 * guessed


@pytest.mark.parametrize(("draft_s", "num_jobs"), [(0.1, 1), (0.1, 6), (0.6, 1), (3.0, 2)])
def test_wrong_or_dear_guesses_cost_next_to_nothing(draft_s, num_jobs, monkeypatch):
    monkeypatch.setattr(Lookup, "find", lambda self, ids, count: ())
    plain, _ = seconds(wrong=None, draft_s=draft_s, num_jobs=num_jobs, speculate=False, num_tokens=200)
    guessed, small = seconds(wrong=lambda row, position: True, draft_s=draft_s, num_jobs=num_jobs, num_tokens=200)
    assert small.num_plans > 0
    assert guessed < plain / 0.9


def test_each_request_is_measured_by_itself(monkeypatch):
    monkeypatch.setattr(Lookup, "find", lambda self, ids, count: ())
    clock = Clock()
    runner = Timed(CheckingRunner(200, BLOCK, VOCABULARY), clock, 1.0)
    small = Timed(CheckingRunner(200, BLOCK, VOCABULARY), clock, 0.1, wrong=lambda row, _: row.sequence.key == "bad")
    engine = Engine(
        runner,
        num_blocks=200,
        block_tokens=BLOCK,
        slots=4,
        prefill_tokens=99,
        context_limit=300,
        draft=(small, 300),
        clock=clock,
    )
    steps = {}
    for key in ("good", "bad"):
        engine.submit(make_job(key, prompt_of(20), 120))
    number, collected = 0, Collected()
    while engine.has_work:
        collected.take(engine.step())
        number += 1
        steps |= {key: number for key, _ in collected.finish if key not in steps}
    assert steps["good"] < 60 < steps["bad"]


class Anything:
    """A grammar that forbids nothing, and knows what it was told."""

    is_over, error = False, ""

    def __init__(self):
        self.ids = []

    def accept(self, ids):
        self.ids += ids

    def open(self, job):
        ready = Future()
        ready.set_result([self])
        return ready


def test_a_row_held_to_a_grammar_goes_token_by_token_beside_others_that_guess(monkeypatch):
    monkeypatch.setattr(Lookup, "find", lambda self, ids, count: ())
    engine, runner, small = make_engine(wrong=lambda row, position: False)
    engine._grammars = grammar = Anything()
    plans, run = [], runner.run
    runner.run = lambda plan: (plans.append(plan), run(plan))[1]
    engine.submit(make_job("free", prompt_of(10), 60))
    held = make_job("held", prompt_of(14), 20)
    held.grammar = "anything"
    engine.submit(held)
    collected = drain(engine)
    assert collected.ids["held", 0] == expect(prompt_of(14), 20) == grammar.ids
    assert collected.ids["free", 0] == expect(prompt_of(10), 60)
    rows = [row for plan in plans for row in plan.rows]
    assert not any(row.drafts for row in rows if row.sequence.key == "held")
    beside = [plan for plan in plans if len(plan.rows) == 2]
    assert any(row.drafts for plan in beside for row in plan.rows) and not small.failed


def test_a_cancelled_stream_with_guesses_leaves_its_room(monkeypatch):
    monkeypatch.setattr(Lookup, "find", lambda self, ids, count: ())
    engine, _, small = make_engine(wrong=lambda row, position: False)
    free = engine.step().blocks_free
    for steps in (1, 4, 9):  # in its prompt, while the small model reads, with guesses
        engine.submit(make_job("a", prompt_of(45, steps), 60, n=2))
        for _ in range(steps):
            engine.step()
        engine.abort([("a", -1)])
        assert engine.step().blocks_free == free
    assert not small.failed


class Broken(CheckingRunner):
    """A small model that fails on one request."""

    def run(self, plan):
        if any(row.sequence.key == "strange" for row in plan.rows):
            raise ValueError("not finite")
        return super().run(plan)


def test_a_draft_model_that_fails_costs_guesses_and_nothing_else(monkeypatch):
    monkeypatch.setattr(Lookup, "find", lambda self, ids, count: ())
    engine, runner, small = make_engine(small=Broken(60, BLOCK, VOCABULARY))
    engine.submit(make_job("strange", prompt_of(10), 30))
    assert drain(engine).ids["strange", 0] == expect(prompt_of(10), 30)
    assert len(small.failed) == 1
    engine.submit(make_job("other", prompt_of(12), 30))
    assert drain(engine).ids["other", 0] == expect(prompt_of(12), 30)
    assert runner.num_drafts > 10 and len(small.failed) == 1


def test_a_lost_device_is_not_hidden():
    class Lost(CheckingRunner):
        def run(self, plan):
            raise DeviceLost("gone")

    engine, _, _ = make_engine(small=Lost(60, BLOCK, VOCABULARY))
    engine.submit(make_job("a", prompt_of(10), 30))
    with pytest.raises(DeviceLost):
        drain(engine)


@pytest.mark.parametrize(("small_vocabulary", "limit"), [(20, 200), (VOCABULARY, 25)])
def test_what_the_small_model_cannot_read_is_not_given_to_it(small_vocabulary, limit):
    clock = Clock()
    small = Timed(CheckingRunner(60, BLOCK, small_vocabulary), clock, 0.1)
    engine = Engine(
        Timed(CheckingRunner(60, BLOCK, VOCABULARY), clock, 1.0),
        num_blocks=60,
        block_tokens=BLOCK,
        slots=4,
        prefill_tokens=24,
        context_limit=200,
        draft=(small, limit),
        clock=clock,
    )
    read = []
    run = small.run
    small.run = lambda plan: (read.extend(plan.rows), run(plan))[1]
    engine.submit(make_job("a", prompt_of(10), 40))
    assert drain(engine).ids["a", 0] == expect(prompt_of(10), 40)
    assert all(max(row.ids) < small_vocabulary and row.stop <= limit for row in read)


def test_guesses_end_before_a_token_that_the_large_model_does_not_have():
    clock = Clock()
    model = DraftModel(
        Timed(CheckingRunner(60, BLOCK, 900), clock, 0.1),
        block_tokens=BLOCK,
        vocab_size=30,
        context_limit=200,
        clock=clock,
    )
    engine, _, _ = make_engine()
    engine.submit(make_job("a", prompt_of(10), 40))
    engine.step()
    (sequence,) = engine._scheduler._running
    engine._space.grow(sequence, 40)
    (guess,) = model.guess([(sequence, 8)], 1.0)
    assert len(guess) < 8 and all(token < 30 for token in guess)


# With real models. The small one is the large one again, made to err now and then.

PATHS = {"as-is": AS_IS, "fast-native": PathChoice(), "fast-torch": PathChoice(is_native=False)}
CASES = [
    pytest.param("qwen3", "as-is"),
    pytest.param("gemma3_text", "fast-native"),
    pytest.param("mistral", "fast-torch", marks=pytest.mark.slow),
    pytest.param("qwen3_moe", "as-is", marks=pytest.mark.slow),
    pytest.param("gpt_oss", "as-is", marks=pytest.mark.slow),
    pytest.param("qwen3", "fast-native", marks=pytest.mark.slow),
    pytest.param("llama", "fast-native", marks=pytest.mark.slow),
    pytest.param("phi3", "fast-native", marks=pytest.mark.slow),
    pytest.param("gemma2", "fast-torch", marks=pytest.mark.slow),
]


def make_real(model_type, path, *, speculate=True, num_blocks=64, wrong=sometimes):
    if path == "fast-native" and library.find() is None:
        pytest.skip("there is no native library")
    module, clock = make_model(model_type), Clock()
    windows = [shape.window for shape in probe(module).layers.values() if shape.window]
    cap = WindowCap(max(windows), 24) if windows else None
    options = {"verify": False, "choice": PATHS[path]}
    runner = TorchRunner(module, "cpu", torch.float32, num_blocks, BLOCK, cap=cap, **options)
    small = TorchRunner(make_model(model_type), "cpu", torch.float32, num_blocks, BLOCK, **options)
    timed = Timed(runner, clock, 1.0), Timed(small, clock, 0.1, wrong=wrong)
    engine = Engine(
        timed[0],
        num_blocks=num_blocks,
        block_tokens=BLOCK,
        slots=4,
        prefill_tokens=16,
        context_limit=200,
        cap=cap,
        speculate=speculate,
        draft=(timed[1], 200),
        clock=clock,
    )
    return engine, *timed


@pytest.mark.parametrize(("model_type", "path"), CASES)
@pytest.mark.parametrize("num_blocks", [64, 18], ids=["roomy", "preempting"])
def test_greedy_output_equals_generate(model_type, path, num_blocks, monkeypatch):
    monkeypatch.setattr(Lookup, "find", lambda self, ids, count: ())
    engine, runner, small = make_real(model_type, path, num_blocks=num_blocks)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(2, 250, (length,), generator=generator).tolist() for length in (5, 23, 12)]
    prompts.append([*prompts[1], 9, 8])  # finds the second one's blocks
    collected = Collected()
    for number, prompt in enumerate(prompts):
        engine.submit(make_job(str(number), prompt, 20))
        for _ in range(3):
            collected.take(engine.step())
    drain(engine, collected)
    for number, prompt in enumerate(prompts):
        assert collected.ids[str(number), 0] == generate(model_type, tuple(prompt), 20)
    assert runner.num_drafts > 10 and not small.failed


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1.0, "top_p": 0.9, "seed": 5},
        {"temperature": 0.8, "top_k": 9, "min_p": 0.05, "seed": 6},
        {"temperature": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.3, "logprobs": 2, "seed": 7},
        {"temperature": 1.0, "logit_bias": {7: 3.0}, "seed": 8},
    ],
    ids=lambda fields: " ".join(name for name in fields if name != "seed"),
)
def test_seeded_output_is_the_same_and_the_small_model_guesses_it(fields, monkeypatch):
    monkeypatch.setattr(Lookup, "find", lambda self, ids, count: ())
    prompt = list(range(5, 30))

    def run(speculate, **more):
        engine, runner, small = make_real("qwen3", "as-is", speculate=speculate, wrong=lambda row, position: False)
        engine.submit(make_job("a", prompt, 24, n=2, **fields, **more))
        collected = drain(engine)
        assert not small.failed
        return collected, runner

    plain, plain_runner = run(False)
    guessed, runner = run(True)
    assert guessed.ids == plain.ids
    for name, logprobs in plain.logprobs.items():
        for one, other in zip(guessed.logprobs[name], logprobs, strict=True):
            assert one.id == other.id and one.logprob == pytest.approx(other.logprob, abs=1e-4)
    # The same random number makes the same choice: nearly every guess is right, at any temperature.
    assert runner.num_plans < 0.6 * plain_runner.num_plans
    stop = plain.ids["a", 0][11]
    stopped, _ = run(True, stop_ids=[stop])
    for name, ids in stopped.ids.items():
        whole = plain.ids[name]
        assert ids == whole[: whole.index(stop) + 1 if stop in whole else None]
