// Prints as JSON what the official client reads: node nats_reader.js MODULES URL USER PASSWORD COMMAND [ARGUMENT...]
const [modules, servers, user, pass, command, ...rest] = process.argv.slice(2);
const { connect, StringCodec } = require(modules + "/nats");
const text = StringCodec();

async function all(iterator) {
  const found = [];
  for await (const one of iterator) found.push(one);
  return found;
}

const commands = {
  async services(nc) {
    const client = nc.services.client();
    return { ping: await all(await client.ping()), info: await all(await client.info()), stats: await all(await client.stats()) };
  },
  async streams(nc) {
    const manager = await nc.jetstreamManager();
    const streams = await manager.streams.list().next();
    const consumers = await manager.consumers.list("JOBS").next();
    return { streams: streams.map((one) => one.config.name), consumers: consumers.map((one) => one.name) };
  },
  async bucket(nc, bucket, key) {
    const kv = await nc.jetstream().views.kv(bucket, { bindOnly: true });
    const history = await all(await kv.history({ key }));
    return {
      keys: await all(await kv.keys()),
      value: (await kv.get(key)).string(),
      history: history.map((one) => ({ revision: one.revision, operation: one.operation })),
    };
  },
  async watch(nc, bucket, key, value) {
    const kv = await nc.jetstream().views.kv(bucket, { bindOnly: true });
    const seen = [];
    const watching = await kv.watch({ key, include: "updates" });
    await kv.put(key, text.encode(value));
    await kv.delete(key);
    for await (const one of watching) {
      seen.push({ key: one.key, operation: one.operation, ...(one.operation === "PUT" ? { value: one.string() } : {}) });
      if (one.operation === "DEL") break;
    }
    return seen;
  },
};

(async () => {
  const nc = await connect({ servers, user, pass, inboxPrefix: "_INBOX_" + user });
  const found = await commands[command](nc, ...rest);
  console.log(JSON.stringify(found));
  await nc.close();
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
