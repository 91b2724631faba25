"""Jobs with a bound on their reasoning: what the rank is told."""

import pytest

from shared.messages import Job, Prompt, Sampling
from tests.support.letters import Letters
from worker.front.effects import Effects
from worker.front.errors import Unservable
from worker.front.jobs import JobTable
from worker.front.request import Limits, reserve, resolve
from worker.protocol import Thinking

DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "max_tokens": None}
LIMITS = Limits(100, 500, (0,), DEFAULTS)


class Thinker(Letters):
    def thinking(self, prompt: Prompt, budget: int, *, prompt_ids: list[int]) -> Thinking | None:
        return Thinking(budget=budget, opening=[1], closing=[2], is_open=prompt_ids[-1] == 1)


@pytest.mark.parametrize("budget", [None, 5])
def test_the_rank_is_told_of_a_budget(budget: int | None) -> None:
    job = Job(id="a", model="m", reply="r", prompt=Prompt(ids=[3, 1]), sampling=Sampling(thinking_budget=budget))
    table, fx = JobTable(Thinker(), max_reply_bytes=1 << 20), Effects()
    run = table.take(job, "ack", 0.0, fx)
    assert run is not None
    table.accept(run, resolve(job, [3, 1], LIMITS), "f", 0.0, fx)
    (submit,) = fx.submits
    wanted = None if budget is None else Thinking(budget=budget, opening=[1], closing=[2], is_open=True)
    assert submit.thinking == wanted


def test_a_budget_of_nothing_is_refused() -> None:
    job = Job(id="a", model="m", reply="r", prompt=Prompt(ids=[3]), sampling=Sampling(thinking_budget=0))
    with pytest.raises(Unservable) as caught:
        resolve(job, [3], LIMITS)
    assert caught.value.param == "thinking_budget"


@pytest.mark.parametrize(("max_tokens", "kept"), [(None, 100), (7, 7), (400, 100)])
def test_what_a_shortened_prompt_leaves_free(max_tokens: int | None, kept: int) -> None:
    assert reserve(Sampling(max_tokens=max_tokens), 400) == kept
