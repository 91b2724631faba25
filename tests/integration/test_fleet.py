"""The typed view of both buckets."""

from shared import names
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.messages import encode
from shared.records import (
    AssignmentRecord,
    GatewayRecord,
    IntentRecord,
    LeaseRecord,
    ModelRecord,
    ReplicaRecord,
    WorkerRecord,
)

MODEL = "org/Model-1.0"


async def test_every_kind_of_record(bus, connect):
    fleet_bucket, plan_bucket = Bucket(bus, names.FLEET), Bucket(bus, names.PLAN)
    worker = WorkerRecord(name="gpu1", incarnation="i", host="h")
    replica = ReplicaRecord(id="r1", model=MODEL, worker="gpu1", state="ready")
    other = ReplicaRecord(id="r2", model="else", worker="gpu1", state="loading")
    gateway = GatewayRecord(id="g1", host="h", url="http://h")
    lease = LeaseRecord(holder="g1", epoch=7)
    model = ModelRecord(id=MODEL, source="org/Model-1.0")
    intent = IntentRecord(model=MODEL, want="loaded")
    want = AssignmentRecord(worker="gpu1", epoch=7, generation=1)
    await fleet_bucket.put(names.worker_key("gpu1"), encode(worker))
    await fleet_bucket.put(names.replica_key("r1"), encode(replica))
    await plan_bucket.put(names.model_key(MODEL), encode(model))

    async with Fleet(await connect("worker")) as fleet:
        assert (fleet.workers, fleet.replicas, fleet.models) == ({"gpu1": worker}, {"r1": replica}, {MODEL: model})
        changes = []
        fleet.on_change(lambda key, record: changes.append((key, record)))
        await fleet_bucket.put(names.replica_key("r2"), encode(other))
        await fleet_bucket.put(names.gateway_key("g1"), encode(gateway))
        await fleet_bucket.put(names.LEASE_PLACER, encode(lease))
        await plan_bucket.put(names.intent_key(MODEL), encode(intent))
        revision = await plan_bucket.put(names.want_key("gpu1"), encode(want))
        await fleet.wait_for(lambda f: f.wants and f.leases, 5)
        assert (fleet.gateways, fleet.leases) == ({"g1": gateway}, {"placer": lease})
        assert (fleet.intents, fleet.wants) == ({MODEL: intent}, {"gpu1": want})
        assert fleet.replicas_of(MODEL) == [replica]
        assert (names.want_key("gpu1"), want) in changes and len(changes) == 5
        assert fleet.revision(names.want_key("gpu1")) == revision

        await plan_bucket.delete(names.model_key(MODEL))
        await fleet_bucket.delete(names.replica_key("r1"))
        await fleet.wait_for(lambda f: not f.models and "r1" not in f.replicas, 5)


async def test_foreign_keys_do_no_harm(bus, connect):
    plan = Bucket(bus, names.PLAN)
    await plan.put("note.from-an-operator", b"hello")
    await plan.put("model.no=slug", encode(ModelRecord(id="x", source="x")))
    await plan.put("intent.m", b"{not json")
    async with Fleet(await connect("worker")) as fleet:
        await plan.delete("model.no=slug")
        await plan.delete("note.from-an-operator")
        await plan.put(names.intent_key("m"), encode(IntentRecord(model="m", want="unloaded")))
        await fleet.wait_for(lambda f: list(f.intents) == ["m"], 5)
        assert fleet.models == {}
