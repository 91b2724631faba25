"""HTTP in, jobs out, tokens back; and the placement of models on workers.

One sentence a module, in the order in which a request meets them: `app` routes it, `body` reads it, a module of
`dialects` turns it into a `request`, `catalogue` knows the model, `exchange` owns it from there to its last byte,
`dispatch` publishes its job, `flight` is that job's state machine, `streams` routes deltas to flights, `supervise`
moves the jobs of dead replicas, `sse` frames what goes out, `errors` says what went wrong, `metrics` counts.
`responses` keeps answers that can be continued from; `counting` asks a worker how many tokens a prompt has.
"""
