"""Empties a worker, or uses it again, by a record in the plan bucket."""

import time

from gateway.cli.errors import CliError
from gateway.cli.intents import operator_name
from gateway.cli.operate import connected
from shared import names
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.messages import encode
from shared.records import DrainRecord
from shared.settings import BusSettings


async def drain(settings: BusSettings, worker: str, *, undo: bool, wait_s: float) -> None:
    """Write what is wanted; with `wait_s`, return when nothing of the worker is left. Raises CliError."""
    async with connected(settings) as (bus, fleet):
        if worker not in fleet.workers and worker not in fleet.drains:
            raise CliError(f"no worker {worker} (there are: {', '.join(sorted(fleet.workers)) or 'none'})")
        plan = Bucket(bus, names.PLAN)
        if undo:
            await plan.delete(names.drain_key(worker))
            return
        record = DrainRecord(worker=worker, by=operator_name(), at_s=time.time())
        await plan.put(names.drain_key(worker), encode(record))
        if wait_s:
            await _until_empty(fleet, worker, wait_s)


async def _until_empty(fleet: Fleet, worker: str, wait_s: float) -> None:
    def is_empty(fleet: Fleet) -> bool:
        want = fleet.wants.get(worker)
        return not any(one.worker == worker for one in fleet.replicas.values()) and not (want and want.models)

    try:
        await fleet.wait_for(is_empty, wait_s)
    except TimeoutError:
        left = sorted(one.model for one in fleet.replicas.values() if one.worker == worker)
        raise CliError(f"{worker} still has {', '.join(left) or 'an assignment'} after {wait_s:g} s") from None
