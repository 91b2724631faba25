"""The front of a replica: NATS and text on one side, the rank process on the other. No torch, no device.

Life of a job here: `pull` takes it, `request` checks and resolves it, `jobs` holds what it is doing, `rank_link` hands
it to the rank; each step comes back through `choice` (ids to text) and leaves through `publisher`. `front` joins them.
Everything that decides (`request`, `choice`, `jobs`, `owners`, `health`, `pull.PullState`) is free of I/O and clocks.
"""
