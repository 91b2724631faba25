"""The worker: per host an agent, per replica a front and its ranks.

`agent` holds the host's assignment and its ledger of memory and cores; `front` speaks NATS and text for one replica;
`engine` is the rank process that owns a device. `text` and `models` serve the two latter. `counter` counts tokens.
"""
