"""What the leader remembers of the fleet between two plans. Pure: the time is passed in.

Records say how things are; rules also need how they were: when a model was last served, how often a load failed, who
asked for what, how much a load took. All of it can be lost: a new leader starts without, and only waits longer or
tries once more. What loads took is kept in the plan bucket.
"""

from collections.abc import Collection

import msgspec

from gateway.placement.clocks import Clocks
from gateway.placement.view import Backlog, Size, View, variant
from shared.fleet import Fleet
from shared.records import Failure, MeasuredRecord, Measurement, ReplicaRecord, WorkerRecord
from shared.settings import EvictionSettings, PlacementSettings

AVOID_S = 60.0  # a worker that failed with a model is not tried again before, once it failed often
RETURN_S = 60.0  # a worker that restarts is back by then: nothing is refused for good in its absence
NEVER_S = 600.0  # nor one on which it does not even fit alone
FORGET_ASKED_S = 10.0  # gateways ask again every two seconds
MAX_ASKED = 10_000
ROUGHLY = 0.02  # a figure that moved by less says nothing new


class History:
    """The leader's memory."""

    def __init__(self) -> None:
        self._asked: dict[str, tuple[float, float]] = {}  # by model: since, heard last
        self._served: dict[str, float] = {}  # by model: last seen with a ready replica
        self._failures: dict[tuple[str, str], Failure] = {}  # (worker, model)
        self._counts: dict[tuple[str, str], int] = {}
        self._present: set[str] = set()  # workers
        self._departed: dict[str, float] = {}  # workers that went, and when
        self._incarnations: dict[str, str] = {}
        self._noted: dict[tuple[str, str], float] = {}  # when each failure was, by its worker's clock
        self._clocks = Clocks()

    def ask(self, model: str, now: float) -> None:
        """A gateway has jobs that wait for this model."""
        if model in self._asked:
            self._asked[model] = (self._asked[model][0], now)
        elif len(self._asked) < MAX_ASKED:
            self._asked[model] = (now, now)

    def observe(self, fleet: Fleet, now: float) -> None:
        """Take in the records as they are."""
        ready = {(one.worker, one.model) for one in fleet.replicas.values() if one.state == "ready"}
        served = {model for _, model in ready}
        self._departed |= dict.fromkeys(self._present - fleet.workers.keys(), now)
        self._present = set(fleet.workers)
        self._departed = {
            name: at for name, at in self._departed.items() if name not in self._present and now - at < RETURN_S
        }
        self._served = {model: at for model, at in self._served.items() if model in fleet.models}
        self._served |= dict.fromkeys(served, now)
        self._asked = {
            model: (since, heard)
            for model, (since, heard) in self._asked.items()
            if model not in served and now - heard <= FORGET_ASKED_S
        }
        for pair in ready & self._counts.keys():
            self._counts.pop(pair)
            self._failures.pop(pair, None)
        self._clocks.keep(self._present)
        for worker in fleet.workers.values():
            self._clocks.saw(worker.name, worker.at_s, now)
            self._meet(worker)
            for failure in worker.failures:
                if (worker.name, failure.model) not in ready:
                    self._note(worker.name, failure)
        self._failures = {pair: one for pair, one in self._failures.items() if one.retry_at_s > now}
        if len(self._counts) > MAX_ASKED:
            self._counts.clear()

    def _meet(self, worker: WorkerRecord) -> None:
        """An agent that was started anew may have another token, directory or size: what failed before may go now."""
        if self._incarnations.get(worker.name, worker.incarnation) != worker.incarnation:
            gone = [pair for pair in self._failures if pair[0] == worker.name]
            for pair in gone:  # how often it failed is not forgotten: it may be the model that ends agents
                del self._failures[pair]
        self._incarnations[worker.name] = worker.incarnation
        if len(self._incarnations) > MAX_ASKED:
            self._incarnations.clear()

    def _note(self, worker: str, failure: Failure) -> None:
        """Unassigned, a worker forgets its failures; without memory two failing workers would swap for ever."""
        pair = (worker, failure.model)
        if self._noted.get(pair, 0.0) >= failure.at_s and pair in self._failures:
            return
        self._noted[pair] = failure.at_s
        if len(self._noted) > MAX_ASKED:
            self._noted.clear()
        failure = msgspec.structs.replace(
            failure,
            at_s=self._clocks.ours(worker, failure.at_s),
            retry_at_s=self._clocks.ours(worker, failure.retry_at_s),
        )
        count = self._counts[pair] = max(self._counts.get(pair, 0) + 1, failure.attempts)
        is_figure = failure.kind in (
            "does_not_fit",
            "underestimated",
        )  # it says what the model takes: not soon forgotten
        pause = NEVER_S if is_figure else min(AVOID_S, 2.0 ** min(count, 10))
        until = max(failure.retry_at_s, failure.at_s + (pause if failure.retry_at_s else AVOID_S))
        self._failures[pair] = msgspec.structs.replace(failure, retry_at_s=until, attempts=count)

    def measured(self, fleet: Fleet, now: float) -> list[MeasuredRecord]:
        """Records of what loads took that say something new."""
        news: dict[str, MeasuredRecord] = {}
        for replica in fleet.replicas.values():
            taken = max(replica.reserved_bytes, replica.measured_bytes)
            want = fleet.wants.get(replica.worker)
            assigned = next((one for one in want.models if one.model.id == replica.model), None) if want else None
            if replica.state != "ready" or not taken or assigned is None:
                continue
            kind = variant(assigned.model)
            record = news.get(replica.model) or fleet.measured.get(replica.model)
            if record is None or record.variant != kind:
                record = MeasuredRecord(model=replica.model, variant=kind)
            before = next((one for one in record.loads if one.worker == replica.worker), None)
            if before is not None and _is_near(before.bytes, taken) and abs(before.load_s - replica.load_s) < 1.0:
                continue
            latest = Measurement(worker=replica.worker, bytes=taken, load_s=replica.load_s, at_s=now)
            others = [one for one in record.loads if one.worker != replica.worker]
            news[replica.model] = msgspec.structs.replace(record, loads=[latest, *others][:64])
        return list(news.values())

    def view(
        self,
        fleet: Fleet,
        backlog: dict[str, Backlog],
        sizes: dict[str, Size],
        now: float,
        *,
        unsized: Collection[str] = (),
        is_settled: bool,
        placement: PlacementSettings,
        eviction: EvictionSettings,
    ) -> View:
        """Everything that a plan depends on, at this moment."""
        return View(
            models=dict(fleet.models),
            intents=dict(fleet.intents),
            workers=dict(fleet.workers),
            replicas={id: self._by_our_clock(one) for id, one in fleet.replicas.items()},
            wants=dict(fleet.wants),
            drains=dict(fleet.drains),
            measured=dict(fleet.measured),
            sizes=sizes,
            unsized=unsized,
            backlog=backlog,
            served=dict(self._served),
            asked={model: since for model, (since, _) in self._asked.items() if model in fleet.models},
            lost={worker for worker in fleet.wants if is_settled and worker not in fleet.workers},
            failures=dict(self._failures),
            is_settled=is_settled and not self._departed,
            placement=placement,
            eviction=eviction,
            now=now,
        )

    def _by_our_clock(self, replica: ReplicaRecord) -> ReplicaRecord:
        if self._clocks.is_right(replica.worker):
            return replica
        since, used = (self._clocks.ours(replica.worker, at) for at in (replica.since_s, replica.last_used_s))
        return msgspec.structs.replace(replica, since_s=since, last_used_s=used)


def _is_near(one: int, other: int) -> bool:
    return abs(one - other) <= ROUGHLY * max(one, other)
