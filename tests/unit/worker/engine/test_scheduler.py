"""Scheduling as scripts: jobs in, plans out."""

from worker.engine.blocks import BlockPool
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence
from worker.protocol import Choice, Sample, Submit


class Script:
    """A scheduler whose plans are carried out at once; the next token is always 7."""

    def __init__(self, *, num_blocks=100, block_tokens=4, slots=4, step_tokens=10):
        self.pool = BlockPool(num_blocks, block_tokens)
        self.scheduler = Scheduler(self.pool, slots=slots, step_tokens=step_tokens)
        self.arrivals = 0
        self.sequences = {}

    def add(self, key, num_prompt, *, n=1, batch=False, first=100):
        prompt = [first + index for index in range(num_prompt)]
        job = Submit(key=key, prompt=prompt, choices=[], sample=Sample(seed=0, max_tokens=50), batch_class=batch)
        for index in range(n):
            block_tokens = self.pool.block_tokens
            sequence = Sequence(
                job, Choice(index), arrival=self.arrivals, context_limit=1000, block_tokens=block_tokens
            )
            self.sequences[key, index] = sequence
            self.scheduler.add(sequence)
        self.arrivals += 1

    def step(self):
        """The plan's rows as (key, choice, start, stop)."""
        plan = self.scheduler.schedule()
        for row in plan.rows:
            is_sampled = row.is_sampled
            self.scheduler.commit(row)
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
    assert script.step()[1] == ("b", 0, 4, 8)
    assert script.sequences["b", 0].num_cached == 4


def test_further_choices_wait_for_the_first_ones_prompt_and_share_its_blocks():
    script = Script(block_tokens=4, step_tokens=10)
    script.add("a", 14, n=3)
    script.add("b", 2, first=500)
    assert script.step() == [("a", 0, 0, 10)]
    assert script.step() == [("a", 0, 10, 14), ("b", 0, 0, 2)]  # others need not wait for the choices
    assert script.step() == [("a", 0, 14, 15), ("b", 0, 2, 3), ("a", 1, 12, 14), ("a", 2, 12, 14)]
    tables = [script.sequences["a", index].table.blocks[:3] for index in range(3)]
    assert tables[0] == tables[1] == tables[2]


def test_choices_do_not_wait_for_one_that_was_aborted():
    script = Script(step_tokens=10)
    script.add("a", 14, n=2)
    script.step()
    script.scheduler.abort("a", 0)
    assert script.step() == [("a", 1, 8, 14)]  # it even finds what was computed so far


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
    assert script.pool.num_free == 5


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
    assert script.pool.num_free == 20
    assert script.step() == []
