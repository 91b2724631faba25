import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.stepping import CheckingRunner, Collected, drain, make_job, next_token
from worker import stamp
from worker.engine.cache_space import WindowCap
from worker.engine.engine import Engine
from worker.engine.errors import DeviceLost, OutOfMemory
from worker.protocol import Choice, Prefilling, Submit

VOCABULARY = 50


def make_engine(*, num_blocks=40, block_tokens=4, slots=4, prefill_tokens=10, context_limit=100, cap=None, **options):
    runner = CheckingRunner(num_blocks, block_tokens, VOCABULARY, cap=cap)
    engine = Engine(
        runner,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        slots=slots,
        prefill_tokens=prefill_tokens,
        context_limit=context_limit,
        cap=cap,
        **options,
    )
    return engine, runner


def expect(prompt, num_tokens, stop_ids=()):
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(next_token(ids, VOCABULARY))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt) :]


def prompt_of(length, seed=1):
    return [(seed * 7 + index * index) % VOCABULARY for index in range(length)]


def test_a_job_ends_with_length():
    engine, _ = make_engine()
    engine.submit(make_job("a", prompt_of(13), 6))
    collected = drain(engine)
    assert collected.ids["a", 0] == expect(prompt_of(13), 6)
    assert collected.finish["a", 0] == "length"


def test_a_stop_id_ends_it_and_is_reported():
    tokens = expect(prompt_of(13), 6)
    engine, _ = make_engine()
    engine.submit(make_job("a", prompt_of(13), 6, stop_ids=[tokens[3]]))
    collected = drain(engine)
    assert collected.ids["a", 0] == expect(prompt_of(13), 6, [tokens[3]])
    assert collected.finish["a", 0] == "stop"


def test_the_context_limit_ends_it():
    engine, _ = make_engine(context_limit=16)
    engine.submit(make_job("a", prompt_of(13), 60))
    collected = drain(engine)
    assert len(collected.ids["a", 0]) == 3
    assert collected.finish["a", 0] == "length"


def test_a_resumed_choice_goes_on_at_its_position():
    whole = expect(prompt_of(13), 8)
    engine, _ = make_engine()
    job = make_job("a", prompt_of(13), 8)
    job.choices = [Choice(0, whole[:5])]
    engine.submit(job)
    collected = drain(engine)
    assert collected.starts["a", 0] == 5
    assert collected.ids["a", 0] == whole[5:]


@pytest.mark.parametrize(("resume", "stop_ids", "finish"), [([1, 2, 3], [], "length"), ([1, 9], [9], "stop")])
def test_a_resume_prefix_that_is_complete_finishes_at_once(resume, stop_ids, finish):
    engine, runner = make_engine()
    job = make_job("a", prompt_of(5), 3, stop_ids=stop_ids)
    job.choices = [Choice(0, resume)]
    engine.submit(job)
    assert engine.has_work
    (output,) = engine.step().outputs
    assert (output.start, output.ids, output.finish) == (len(resume), [], finish)
    assert not runner.plans and not engine.has_work


def test_cached_prompt_tokens_are_told_once_per_choice():
    engine, _ = make_engine()
    engine.submit(make_job("a", prompt_of(13), 4, n=2))
    collected = drain(engine)
    assert collected.cached == {("a", 0): 0, ("a", 1): 12}


def test_abort_while_prefilling_says_nothing_more():
    engine, _ = make_engine()
    free = engine.step().blocks_free
    engine.submit(make_job("a", prompt_of(30), 4))
    engine.step()
    engine.abort([("a", -1)])
    assert not engine.has_work
    step = engine.step()
    assert (step.outputs, step.refused, step.running, step.blocks_free) == ([], [], 0, free)


def test_abort_of_one_choice_leaves_the_others():
    engine, _ = make_engine()
    engine.submit(make_job("a", prompt_of(6), 9, n=3))
    collected = Collected()
    for _ in range(4):
        collected.take(engine.step())
    engine.abort([("a", 1)])
    drain(engine, collected)
    assert set(collected.finish) == {("a", 0), ("a", 2)}


def test_prefill_is_reported_once_a_second():
    now = [0.0]
    engine, _ = make_engine(clock=lambda: now[0])
    engine.submit(make_job("a", prompt_of(60), 2))
    collected = Collected()
    for _ in range(5):
        collected.take(engine.step())
        now[0] += 0.5
    assert collected.prefilling == [Prefilling("a", 10, 60), Prefilling("a", 30, 60), Prefilling("a", 50, 60)]


class TestRefusal:
    def refused(self, job: Submit, **options):
        engine, _ = make_engine(**options)
        engine.submit(job)
        (refused,) = engine.step().refused
        assert not engine.has_work
        return refused.kind, refused.message

    def test_prompt_as_long_as_the_context(self):
        kind, message = self.refused(make_job("a", prompt_of(20), 5), context_limit=20)
        assert kind == "context_length_exceeded"
        assert "maximum context length is 20 tokens. However, your messages resulted in 20 tokens." in message

    def test_more_than_the_cache_ever_holds(self):
        kind, message = self.refused(make_job("a", prompt_of(20), 30), num_blocks=10)
        assert kind == "capacity"
        assert "49" in message and "40" in message

    @pytest.mark.parametrize(
        ("job", "words"),
        [
            (make_job("a", []), "empty"),
            (make_job("a", [1, 50]), "Token id 50"),
            (make_job("a", [-1]), "Token id -1"),
            (make_job("a", [1], n=0), "choices"),
            (make_job("a", [1], 0), "max_tokens"),
            (make_job("a", [1], temperature=-1.0), "temperature"),
            (make_job("a", [1], temperature=float("nan")), "temperature"),
            (make_job("a", [1], top_p=0.0), "top_p"),
            (make_job("a", [1], top_k=-1), "top_k"),
            (make_job("a", [1], min_p=1.5), "min_p"),
            (make_job("a", [1], repetition_penalty=0.0), "repetition_penalty"),
            (make_job("a", [1], frequency_penalty=float("inf")), "frequency_penalty"),
            (make_job("a", [1], logit_bias={50: 1.0}), "logit_bias"),
            (make_job("a", [1], logprobs=-1), "logprobs"),
        ],
    )
    def test_bad_input_is_named(self, job, words):
        kind, message = self.refused(job)
        assert kind == "invalid_request"
        assert words in message

    def test_too_many_waiting(self):
        kind, message = self.refused(make_job("a", [1], n=5), max_waiting=4)
        assert (kind, "4" in message) == ("capacity", True)

    def test_a_key_used_twice_ends_both(self):
        engine, _ = make_engine()
        engine.submit(make_job("a", prompt_of(5)))
        engine.step()
        engine.submit(make_job("a", prompt_of(5)))
        step = engine.step()
        assert [refused.kind for refused in step.refused] == ["invalid_request"]
        assert (step.outputs, engine.has_work) == ([], False)


class TestFailure:
    def test_only_the_job_that_fails_alone_is_refused(self):
        engine, runner = make_engine()
        for key in ("a", "bad", "c"):
            engine.submit(make_job(key, prompt_of(9, ord(key[0])), 6))
        collected = Collected()
        for _ in range(4):
            collected.take(engine.step())
        runner.poison.add(("bad", 0))
        drain(engine, collected)
        assert collected.refused["bad"].kind == "engine_error"
        assert collected.refused["bad"].message == "ValueError: bad row"
        assert set(collected.finish) == {("a", 0), ("c", 0)}
        assert collected.ids["a", 0] == expect(prompt_of(9, ord("a")), 6)
        assert engine.step().blocks_free == 40

    def test_all_choices_of_the_failing_job_leave(self):
        engine, runner = make_engine()
        engine.submit(make_job("bad", prompt_of(9), 6, n=3))
        engine.submit(make_job("good", prompt_of(5), 6))
        collected = Collected()
        for _ in range(3):
            collected.take(engine.step())
        runner.poison.add(("bad", 1))
        collected.take(engine.step())
        held = {name: len(ids) for name, ids in collected.ids.items() if name[0] == "bad"}
        drain(engine, collected)
        assert list(collected.refused) == ["bad"]
        assert held == {name: len(ids) for name, ids in collected.ids.items() if name[0] == "bad"}
        assert collected.ids["good", 0] == expect(prompt_of(5), 6)

    def test_rows_that_only_fail_together_go_on(self):
        engine, runner = make_engine()
        for key in ("a", "b"):
            engine.submit(make_job(key, prompt_of(9, ord(key)), 6))
        runner.fails_together = True
        collected = drain(engine)
        assert collected.ids["a", 0] == expect(prompt_of(9, ord("a")), 6)
        assert not collected.refused

    def test_one_of_many_is_found_in_few_runs(self):
        engine, runner = make_engine(slots=16, prefill_tokens=200, num_blocks=200)
        for number in range(16):
            engine.submit(make_job(str(number), prompt_of(9, number), 6))
        collected = Collected()
        collected.take(engine.step())
        runner.poison.add(("11", 0))
        before = len(runner.plans)
        collected.take(engine.step())
        assert list(collected.refused) == ["11"]
        assert len(runner.plans) - before == 9  # all; halves, quarters, eighths and pairs, each with and without it
        drain(engine, collected)
        assert {name: len(ids) for name, ids in collected.ids.items() if name[0] != "11"} == {
            (str(number), 0): 6 for number in range(16) if number != 11
        }

    def test_a_step_too_large_for_the_memory_is_divided_and_nobody_fails(self):
        engine, runner = make_engine(prefill_tokens=40)
        runner.memory_tokens = 12
        for number in range(3):
            engine.submit(make_job(str(number), prompt_of(30, number), 6))
        collected = drain(engine)
        assert not collected.refused
        for number in range(3):
            assert collected.ids[str(number), 0] == expect(prompt_of(30, number), 6)
        assert sum(plan.num_tokens > 12 for plan in runner.plans) <= 4  # those of the first step: it learns what fits

    def test_steps_grow_again_when_memory_is_back(self):
        engine, runner = make_engine(prefill_tokens=40, context_limit=1000, num_blocks=300, speculate=False)
        runner.memory_tokens = 12
        engine.submit(make_job("a", prompt_of(40), 700))
        collected = Collected()
        collected.take(engine.step())
        runner.memory_tokens = None
        drain(engine, collected)
        engine.submit(make_job("b", prompt_of(90, 5), 3))
        drain(engine, collected)
        assert [plan.num_tokens for plan in runner.plans[-5:]] == [40, 40, 10, 1, 1]

    def test_a_row_for_which_there_is_no_memory_at_all_fails_alone(self):
        engine, runner = make_engine()
        engine.submit(make_job("large", prompt_of(9), 30))
        engine.submit(make_job("small", prompt_of(5), 6))
        collected = Collected()
        collected.take(engine.step())
        compute = runner.run

        def run(plan):
            if any(row.sequence.key == "large" for row in plan.rows):
                raise OutOfMemory("none left")
            return compute(plan)

        runner.run = run
        drain(engine, collected)
        assert (collected.refused["large"].kind, len(collected.ids["small", 0])) == ("capacity", 6)
        assert "none left" in collected.refused["large"].message

    def test_a_full_replica_lets_jobs_wait(self):
        """Six times what the cache holds: all come to their end."""
        engine, _ = make_engine(num_blocks=12, slots=8)
        for number in range(12):
            engine.submit(make_job(str(number), prompt_of(14, number), 8))
        step = engine.step()
        assert (step.refused, step.waiting > 6) == ([], True)
        collected = drain(engine)
        assert [collected.finish[str(number), 0] for number in range(12)] == ["length"] * 12
        assert not collected.refused

    def test_a_lost_device_ends_the_engine(self):
        engine, runner = make_engine()
        engine.submit(make_job("a", prompt_of(9)))

        def run(plan):
            raise DeviceLost("gone")

        runner.run = run
        with pytest.raises(DeviceLost):
            engine.step()


def test_the_stamp_tells_the_phase_and_what_to_expect():
    page = stamp.Stamp(stamp.create())
    now = [0.0]
    engine, runner = make_engine(stamp=page, clock=lambda: now[0])
    seen = []
    compute = runner.run

    def run(plan):
        seen.append(page.read())
        now[0] += 0.1 * plan.num_tokens
        return compute(plan)

    runner.run = run
    engine.submit(make_job("a", prompt_of(25), 4))
    drain(engine)
    assert [(reading.step, reading.phase) for reading in seen] == [
        (1, "prefill"),
        (2, "prefill"),
        (3, "prefill"),
        (4, "decode"),
        (5, "decode"),
        (6, "decode"),
    ]
    assert [reading.predicted_s for reading in seen] == pytest.approx([0, 1.0, 0.5, 0, 0.1, 0.1])
    assert page.read().phase == "idle"
    page.close()


jobs = st.lists(
    st.fixed_dictionaries(
        {
            "start": st.integers(0, 12),
            "length": st.integers(1, 30),
            "common": st.booleans(),
            "max_tokens": st.integers(1, 40),
            "owner": st.sampled_from("xy"),
            "n": st.integers(1, 3),
            "batch": st.booleans(),
            "resume": st.integers(0, 3),
            "abort": st.none() | st.integers(0, 25),
        }
    ),
    min_size=1,
    max_size=7,
)
one_job = {"common": True, "max_tokens": 3, "owner": "x", "n": 1, "batch": False, "resume": 0, "abort": None}
caps = st.none() | st.builds(WindowCap, window=st.integers(2, 13), num_blocks=st.integers(6, 20))


@settings(max_examples=100, deadline=None)
@given(
    jobs=jobs,
    num_more=st.integers(0, 22),
    slots=st.integers(1, 5),
    budget=st.integers(1, 20),
    cap=caps,
    num_host_blocks=st.sampled_from([0, 3, 30]),
    memory_tokens=st.none() | st.integers(1, 12),
)
@example(  # the second needs every block, and finds one of them shared in part
    jobs=[one_job | {"start": 0, "length": 22}, one_job | {"start": 12, "length": 30}],
    num_more=0,
    slots=1,
    budget=20,
    cap=None,
    num_host_blocks=0,
    memory_tokens=None,
)
def test_whatever_comes_every_job_ends_with_its_tokens(
    jobs, num_more, slots, budget, cap, num_host_blocks, memory_tokens
):
    """Any mixture in a cache that is often just enough for one: contents, budget, ends and accounts are right."""
    ticks = itertools.count()
    num_blocks = num_more + max(-(-(job["length"] + job["max_tokens"] - 1) // 4) for job in jobs)
    engine, runner = make_engine(
        num_blocks=num_blocks,
        slots=slots,
        prefill_tokens=budget,
        cap=cap,
        num_host_blocks=num_host_blocks,
        clock=lambda: float(next(ticks)),  # every step takes as long, so guessing always pays
    )
    runner.memory_tokens = memory_tokens
    prompts, aborted, collected = {}, set(), Collected()
    for now in range(1000):
        for number, job in enumerate(jobs):
            key = str(number)
            if job["start"] == now:
                prompts[key] = prompt_of(job["length"], 1 if job["common"] else number + 2)
                submit = make_job(key, prompts[key], job["max_tokens"], n=job["n"], batch=job["batch"])
                submit.owner = job["owner"]
                resume = expect(prompts[key], min(job["resume"], job["max_tokens"] - 1))
                submit.choices = [Choice(choice.index, resume) for choice in submit.choices]
                engine.submit(submit)
            if job["abort"] == now and key in prompts and (key, 0) not in collected.finish:
                engine.abort([(key, -1)])
                aborted.add(key)
        collected.take(engine.step())
        if now > 12 and not engine.has_work:
            break
    assert not engine.has_work and not collected.refused
    for number, job in enumerate(jobs):
        key = str(number)
        for choice in range(job["n"]):
            whole = expect(prompts[key], job["max_tokens"])
            got = collected.ids.get((key, choice), [])
            assert got == whole[collected.starts.get((key, choice), 0) :][: len(got)]
            if key not in aborted:
                assert collected.finish[key, choice] == "length"
                assert collected.starts[key, choice] + len(got) == job["max_tokens"]
    for plan in runner.plans:
        assert plan.num_tokens <= max(budget, slots + 1)
        assert len(plan.rows) <= slots
        assert len({id(row.sequence) for row in plan.rows}) == len(plan.rows)
    assert engine.step().blocks_free == num_blocks
