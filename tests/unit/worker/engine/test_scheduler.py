"""Scheduling as scripts: jobs in, plans out."""

from worker.engine.cache_space import CacheSpace
from worker.engine.pace import Pace
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence
from worker.protocol import Choice, Sample, Submit


class Script:
    """A scheduler whose plans are carried out at once; the next token is always 7."""

    def __init__(self, *, num_blocks=100, block_tokens=4, slots=4, step_tokens=10, pace=None):
        self.space = CacheSpace(num_blocks, block_tokens)
        self.scheduler = Scheduler(self.space, slots=slots, step_tokens=step_tokens, pace=pace)
        self.arrivals = 0
        self.sequences = {}

    def add(self, key, num_prompt, *, n=1, batch=False, first=100, owner=""):
        prompt = [first + index for index in range(num_prompt)]
        sample = Sample(seed=0, max_tokens=50)
        job = Submit(key=key, prompt=prompt, choices=[], sample=sample, batch_class=batch, owner=owner)
        for index in range(n):
            block_tokens = self.space.block_tokens
            sequence = Sequence(
                job, Choice(index), arrival=self.arrivals, context_limit=10_000, block_tokens=block_tokens
            )
            self.sequences[key, index] = sequence
            self.scheduler.add(sequence)
        self.arrivals += 1

    def step(self):
        """The plan's rows as (key, choice, start, stop)."""
        plan = self.scheduler.schedule()
        for row in plan.rows:
            is_sampled = row.is_sampled
            self.scheduler.commit(row, row.stop)
            if is_sampled:
                row.sequence.ids.append(7)
        return [(row.sequence.key, row.sequence.choice, row.start, row.stop) for row in plan.rows]


def test_a_prompt_is_computed_in_chunks_of_the_budget_and_then_decodes():
    script = Script(step_tokens=10)
    script.add("a", 23)
    assert [script.step() for _ in range(4)] == [
        [("a", 0, 0, 10)],
        [("a", 0, 10, 20)],
        [("a", 0, 20, 23)],
        [("a", 0, 23, 24)],
    ]


def test_decode_rows_come_first_and_prefill_takes_the_rest_of_the_budget():
    script = Script(step_tokens=10)
    script.add("a", 4)
    script.step()
    script.add("b", 12, first=200)
    script.add("c", 12, first=300)
    assert script.step() == [("a", 0, 4, 5), ("b", 0, 0, 9)]
    assert script.step() == [("a", 0, 5, 6), ("b", 0, 9, 12), ("c", 0, 0, 6)]


def test_interactive_jobs_go_before_batch_jobs_and_each_class_by_arrival():
    script = Script(slots=1)
    script.add("batch", 2, batch=True)
    script.add("first", 2, first=200)
    script.add("second", 2, first=300)
    order = []
    for key in ("first", "second", "batch"):
        order.append(script.step()[0][0])
        script.scheduler.abort(key)
    assert order == ["first", "second", "batch"]


def test_slots_bound_the_running_sequences():
    script = Script(slots=2)
    for number in range(3):
        script.add(str(number), 2, first=100 * number)
    script.step()
    assert (script.scheduler.num_running, script.scheduler.num_waiting) == (2, 1)


def test_a_budget_below_the_slots_still_leaves_room_for_prefill():
    script = Script(slots=4, step_tokens=1)
    for number in range(4):
        script.add(str(number), 1, first=100 * number)
    script.step()
    script.scheduler.abort("3")
    script.add("late", 9, first=900)
    assert ("late", 0, 0, 2) in script.step()


def test_a_repeated_prompt_is_found_but_for_its_last_token():
    script = Script(block_tokens=4)
    script.add("a", 8)
    script.step()
    script.add("b", 8)
    assert script.step()[1] == ("b", 0, 7, 8)  # the second block is shared in part, so it was copied
    assert script.sequences["b", 0].num_cached == 7
    first, second = (script.sequences[key, 0].table.blocks for key in "ab")
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_further_choices_wait_for_the_first_ones_prompt_and_share_its_blocks():
    script = Script(block_tokens=4, step_tokens=10)
    script.add("a", 14, n=3)
    script.add("b", 2, first=500)
    assert script.step() == [("a", 0, 0, 8), ("b", 0, 0, 2)]  # others need not wait for the choices
    assert script.step() == [("b", 0, 2, 3), ("a", 0, 8, 14)]
    assert script.step() == [("a", 0, 14, 15), ("a", 1, 13, 14), ("a", 2, 13, 14), ("b", 0, 3, 4)]
    tables = [script.sequences["a", index].table.blocks[:3] for index in range(3)]
    assert tables[0] == tables[1] == tables[2]


def test_choices_do_not_wait_for_one_that_was_aborted():
    script = Script(step_tokens=10)
    script.add("a", 14, n=2)
    script.step()
    script.scheduler.abort("a", 0)
    assert script.step() == [("a", 1, 10, 14)]  # it even finds what was computed so far


def test_the_newest_is_preempted_when_blocks_run_out_and_comes_back():
    script = Script(num_blocks=5, block_tokens=2, step_tokens=10)
    script.add("old", 3)
    script.add("new", 3, first=200)
    script.step()  # two blocks each, one is left
    script.step()
    assert script.step() == [("old", 0, 4, 5)]
    assert script.scheduler.num_waiting == 1
    assert script.sequences["new", 0].num_computed == 0
    script.scheduler.abort("old")
    (row,) = script.step()
    assert row[0] == "new" and row[3] == len(script.sequences["new", 0].ids) - 1
    script.scheduler.abort("new")
    assert script.space.num_free == 5


def test_batch_jobs_are_preempted_before_interactive_ones():
    script = Script(num_blocks=5, block_tokens=2, step_tokens=10)
    script.add("batch", 3, batch=True)
    script.step()
    script.add("interactive", 3, first=200)
    for _ in range(4):
        rows = script.step()
    assert [row[0] for row in rows] == ["interactive"]


def test_one_that_does_not_fit_waits_and_keeps_its_place():
    script = Script(num_blocks=6, block_tokens=4, step_tokens=30)
    script.add("a", 12)
    script.step()
    script.add("large", 16, first=200)
    script.add("small", 2, first=300)
    assert [row[0] for row in script.step()] == ["a"]
    script.scheduler.abort("a")
    assert [row[0] for row in script.step()] == ["large", "small"]


def test_admission_leaves_a_block_for_each_running_sequence():
    script = Script(num_blocks=4, block_tokens=4, step_tokens=30)
    script.add("a", 7)
    script.step()  # two blocks, and soon a third
    script.add("b", 5, first=200)
    assert [row[0] for row in script.step()] == ["a"]
    assert script.scheduler.num_waiting == 1


def test_abort_frees_in_every_phase():
    script = Script(num_blocks=20, step_tokens=5, slots=2)
    for number, key in enumerate(("decoding", "prefilling", "waiting")):
        script.add(key, 3 if number == 0 else 11, first=100 * number)
    script.step()
    script.step()
    for key in ("decoding", "prefilling", "waiting", "unknown"):
        script.scheduler.abort(key)
    assert script.space.num_free == 20
    assert script.step() == []


class TestTurns:
    def test_an_owner_with_one_job_does_not_wait_behind_thirty_of_another(self):
        script = Script(slots=1, step_tokens=30)
        for number in range(30):
            script.add(f"many {number}", 4, owner="many", first=100 * number)
        script.step()
        script.add("one", 4, owner="one", first=5000)
        script.scheduler.abort("many 0")
        assert script.step()[0][0] == "one"

    def test_owners_get_equal_shares_of_tokens_and_not_of_jobs(self):
        script = Script(slots=1, step_tokens=30)
        for number in range(9):
            script.add(f"long {number}", 20, owner="long", first=1000 * number)
            script.add(f"short {number}", 5, owner="short", first=1000 * number + 500)
        order = []
        for _ in range(10):
            key = script.step()[0][0]
            order.append(key.split()[0])
            script.scheduler.abort(key)
        assert order == ["long", "short", "short", "short", "short", "long", "short", "short", "short", "short"]

    def test_nobody_saves_up_while_away(self):
        script = Script(slots=1, step_tokens=30)
        script.add("a 0", 4, owner="a")
        for _ in range(40):
            script.step()
        for number in (1, 2):
            script.add(f"a {number}", 4, owner="a", first=1000 * number)
            script.add(f"new {number}", 4, owner="new", first=1000 * number + 500)
        order = []
        script.scheduler.abort("a 0")
        for _ in range(4):
            key = script.step()[0][0]
            order.append(key)
            script.scheduler.abort(key)
        assert order == ["new 1", "a 1", "new 2", "a 2"]

    def test_batch_gets_every_ninth_turn_and_keeps_its_place_then(self):
        script = Script(slots=1, step_tokens=30)
        script.add("batch", 4, batch=True)
        script.step()
        for number in range(20):
            script.add(str(number), 4, first=200 + 100 * number)
        order = []
        for _ in range(10):
            key = script.step()[0][0]  # the batch job gave up its slot at once
            order.append(key)
            if key == "batch":
                assert script.step()[0][0] == "batch"  # and is not sent away again
            script.scheduler.abort(key)
        assert order == ["0", "1", "2", "3", "4", "5", "6", "7", "batch", "8"]

    def test_a_batch_job_that_was_sent_away_finds_what_it_had_computed(self):
        script = Script(slots=1, step_tokens=30, block_tokens=4)
        script.add("batch", 11, batch=True)
        script.step()
        script.add("urgent", 3, first=500)
        assert script.step() == [("urgent", 0, 0, 3)]
        script.scheduler.abort("urgent")
        assert script.step() == [("batch", 0, 11, 12)]


class TestChunks:
    def paced(self, **options):
        """A pace at which ten rows decode in 20 ms and a prompt token costs 1 ms."""
        pace = Pace()
        pace.learn(10, 0.020, num_decoding=10)
        pace.learn(100, 0.100, num_decoding=0)
        return Script(pace=pace, slots=16, step_tokens=512, num_blocks=2000, **options)

    def running(self, count):
        script = self.paced()
        for number in range(count):
            script.add(str(number), 1, first=10_000 + 100 * number)
        script.step()
        return script

    def test_a_long_prompt_joins_in_chunks_that_running_streams_bear(self):
        script = self.running(10)
        script.add("long", 4096, first=20_000)
        for _ in range(20):
            rows = script.step()
            assert len(rows) == 11
            assert rows[-1][3] - rows[-1][2] == 14  # 20 ms and 14 ms more

    def test_without_running_streams_it_takes_the_whole_budget(self):
        script = self.paced()
        script.add("long", 4096)
        assert script.step() == [("long", 0, 0, 512)]

    def test_few_streams_wait_for_many_prompts(self):
        script = self.running(2)
        for number in range(10):
            script.add(f"prompt {number}", 400, first=20_000 + 1000 * number)
        rows = script.step()
        assert sum(stop - start for _, _, start, stop in rows) - 2 == 280  # 0.7 x 20 tokens, times 4 x 10 / 2

    def test_a_short_prompt_passes_a_long_one_and_both_move_on(self):
        script = Script(step_tokens=20)
        script.add("long", 300, first=1000)
        script.step()
        script.add("short", 12)
        assert script.step() == [("long", 0, 20, 30), ("short", 0, 0, 10)]
        assert script.step() == [("long", 0, 30, 48), ("short", 0, 10, 12)]

    def test_the_one_whose_owner_had_least_is_first_among_prompts(self):
        script = Script(step_tokens=20, num_blocks=200)
        script.add("long", 300, owner="a", first=1000)
        script.step()
        script.step()
        script.add("other", 290, owner="b", first=2000)
        assert script.step() == [("long", 0, 40, 60)]  # as much as it had, but its turn is past
        assert script.step() == [("long", 0, 60, 70), ("other", 0, 0, 10)]  # half by what they had, half by need
        script.scheduler.abort("long")
        assert script.step() == [("other", 0, 10, 30)]
