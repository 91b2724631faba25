"""Which assignments count, and what they change. Pure."""

import msgspec

from shared.records import Assigned, AssignmentRecord


class Assignments:
    """The latest assignment of this host; older ones, of a leader that lost its lease, are refused."""

    def __init__(self) -> None:
        self.epoch = 0
        self.generation = 0
        self.models: dict[str, Assigned] = {}

    def accept(self, record: AssignmentRecord) -> bool:
        """Follow this record, unless a newer one was seen, or just this one."""
        if (record.epoch, record.generation) <= (self.epoch, self.generation):
            return False
        self.epoch, self.generation = record.epoch, record.generation
        self.models = {assigned.model.id: assigned for assigned in record.models}
        return True


def needs_restart(running: Assigned, wanted: Assigned) -> bool:
    """Whether a replica that was started for one must be started anew for the other."""
    return _essence(running) != _essence(wanted)


def _essence(assigned: Assigned) -> Assigned:
    """Everything that matters to a replica."""
    return Assigned(model=msgspec.structs.replace(assigned.model, created_s=0.0), devices=assigned.devices)
