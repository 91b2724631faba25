"""How much memory a model needs, and who holds how much of which device. Pure.

A device is charged for everything that is assigned to it, loading on it, serving on it or leaving it, until the
replica's record is gone. Two views limit what is free: the books (the device's total less all charges) and what the
driver reported (less what was promised and not yet taken), for somebody outside of the fleet may use the device too.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.placement.view import View, variant
from shared import sources
from shared.records import Assigned, Device, ModelRecord, ReplicaRecord

TAKEN = ("ready", "draining")  # states in which the driver's figure already includes what a replica has


@dataclass(frozen=True)
class Need:
    """Memory on each device. 0 bytes: nobody knows yet."""

    bytes: int
    minimum_bytes: int  # 0: unknown
    source: str

    @property
    def is_known(self) -> bool:
        """Whether there is a figure at all."""
        return self.bytes > 0


def need(view: View, model: ModelRecord, worker: str) -> Need:
    """What a model needs on a worker, from the best source.

    1. What an earlier load took there, unless the worker said more since. 2. What the worker said that it lacked.
    3. What loads took elsewhere. 4. The estimate from the model's files. 5. The entry's floor. 6. Unknown.
    """
    size = view.sizes.get(model.id)
    floor = model.memory_floor_bytes
    least = max(size.minimum_bytes if size else 0, floor)
    record = view.measured.get(model.id)
    loads = record.loads if record and record.variant == variant(model) else []
    here = [one.bytes for one in loads if one.worker == worker]
    refused = {at: failure.needed_bytes for (at, name), failure in view.failures.items() if name == model.id}
    if here and here[0] >= refused.get(worker, 0):  # 1
        return Need(max(here[0], floor), least, f"measured on {worker}")
    if lacked := refused.get(worker, 0) or max(refused.values(), default=0):  # 2
        return Need(max(lacked, floor, size.wanted_bytes if size else 0), max(lacked, floor), "as the worker said")
    if loads:  # 3
        return Need(max(max(one.bytes for one in loads), floor), least, f"measured on {loads[0].worker}")
    if size:  # 4
        return Need(max(size.wanted_bytes, floor), least, "estimated from its files")
    if floor:  # 5
        return Need(floor, floor, "the floor of its entry")
    return Need(0, 0, "unknown")  # 6


@dataclass
class Holding:
    """One model's memory on one worker."""

    model: str
    worker: str
    devices: tuple[str, ...]
    bytes: int  # on each of them; 0 where nobody knows
    is_known: bool
    is_taken: bool  # the driver's figure includes it
    is_leaving: bool  # it will come back


@dataclass
class Site:
    """A device of a worker in the books."""

    worker: str
    device: Device
    holdings: list[Holding] = field(default_factory=list)
    claimed_bytes: int = 0  # of what is free or coming, by models that wait for it

    @property
    def charged_bytes(self) -> int:
        """Promised to somebody."""
        return sum(one.bytes for one in self.holdings)

    @property
    def is_in_doubt(self) -> bool:
        """Somebody loads here of whom nobody knows how much it will take: it may be everything."""
        return any(not one.is_known for one in self.holdings)

    @property
    def free_bytes(self) -> int:
        """What can be promised now."""
        if self.is_in_doubt:
            return 0
        pending = sum(one.bytes for one in self.holdings if not one.is_taken)
        free = min(self.device.total_bytes - self.charged_bytes, self.device.free_bytes - pending)
        return max(0, min(free, self.coming_bytes(())))

    def coming_bytes(self, leaving: Iterable[Holding]) -> int:
        """What can be promised once everything that leaves, and `leaving` as well, is gone, less what is claimed."""
        going = {id(one) for one in leaving} | {id(one) for one in self.holdings if one.is_leaving}
        staying = [one for one in self.holdings if id(one) not in going]
        if any(not one.is_known for one in staying):
            return 0
        gone = [one for one in self.holdings if id(one) in going]
        books = self.device.total_bytes - sum(one.bytes for one in staying)
        pending = sum(one.bytes for one in staying if not one.is_taken)
        driver = self.device.free_bytes - pending + sum(one.bytes for one in gone if one.is_taken)
        return min(books, driver) - self.claimed_bytes


class Books:
    """All devices of the fleet, and who holds them."""

    def __init__(self, view: View) -> None:
        self.sites: dict[tuple[str, str], Site] = {
            (worker.name, device.id): Site(worker.name, device)
            for worker in view.workers.values()
            for device in worker.devices
        }
        self._of_worker: dict[str, list[Site]] = defaultdict(list)
        for (worker_name, _), site in self.sites.items():
            self._of_worker[worker_name].append(site)
        self.holdings: dict[tuple[str, str], Holding] = {}
        places = {(worker, one.model.id): one for worker, want in view.wants.items() for one in want.models}
        taken_away = {(worker, one.model.id): one for worker in view.wants for one in view.leaving(worker)}
        there = {(one.worker, one.model): one for one in sorted(view.replicas.values(), key=lambda one: one.since_s)}
        for pair in sorted(places.keys() | taken_away.keys() | there.keys()):
            worker, model = pair
            if worker in view.workers:
                place = places.get(pair) or taken_away.get(pair)
                self.hold(_holding(view, worker, model, place, there.get(pair), is_leaving=pair not in places))

    def hold(self, holding: Holding) -> None:
        """Charge its devices."""
        self.holdings[holding.worker, holding.model] = holding
        for device in holding.devices:
            if site := self.sites.get((holding.worker, device)):
                site.holdings.append(holding)

    def drop(self, worker: str, model: str) -> None:
        """It holds nothing any more."""
        if holding := self.holdings.pop((worker, model), None):
            for device in holding.devices:
                if site := self.sites.get((worker, device)):
                    site.holdings.remove(holding)

    def of_worker(self, worker: str) -> list[Site]:
        """Its devices."""
        return self._of_worker.get(worker, [])


def _holding(
    view: View,
    worker: str,
    model: str,
    assigned: Assigned | None,
    replica: ReplicaRecord | None,
    *,
    is_leaving: bool,
) -> Holding:
    devices = tuple((replica.devices if replica else []) or (assigned.devices if assigned else []))
    if not devices:  # the worker chooses: it may be any of them
        devices = tuple(device.id for device in view.workers[worker].devices)
    promised = assigned.memory_bytes if assigned else 0
    reserved = max(replica.reserved_bytes, replica.measured_bytes) if replica else 0
    is_taken = replica is not None and replica.state in TAKEN
    yields = assigned is not None and assigned.unload_if_idle and replica is not None and replica.state == "draining"
    return Holding(
        model=model,
        worker=worker,
        devices=devices,
        # A replica that was granted its memory takes that; before, it may take what it was promised.
        bytes=reserved or promised,
        is_known=bool(reserved or promised) or is_taken or _has_nothing(view, worker, model, assigned, replica),
        is_taken=is_taken,
        is_leaving=is_leaving or yields,
    )


def _has_nothing(view: View, worker: str, model: str, assigned: Assigned | None, replica: ReplicaRecord | None) -> bool:
    """Before its grant a load has no memory: not while it downloads from a hub, nor while it waits after a failure.

    Files that lie on the worker are looked at in a moment, and the grant follows: of them nobody knows until they fail.
    """
    if replica is not None and (replica.state, replica.stage) != ("loading", "download"):
        return False
    if replica is not None and assigned is not None and not sources.is_path(assigned.model.source):
        return True
    return view.failing(worker, model) is not None
