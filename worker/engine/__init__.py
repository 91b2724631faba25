"""The inference engine: continuous batching over a paged KV cache.

The serving loop is three verbs (`engine.Engine.step`): schedule, run, postprocess.

- `sequence`, `plan`: what is computed, and one step of it
- `scheduler`, `line`, `chunk`, `pace`, `admission`: who runs next, and how much at once; what cannot run at all
- `speculation`, `lookup`: tokens guessed ahead
- `guard`: one bad row costs its own job
- `cache_space`, `branches`, `host_tier`: which blocks sequences hold, and what is found again
- `blocks`, `free_runs`, `prefix`, `block_table`: a pool of cache blocks
- `runner`, `prepared`: a plan through a model, by the path that suits it
- `fast`: the families in most use, computed by a decoder of our own
- `paged_model`, `surgery`: any other, by transformers' modules and faster ones in their place
- `vision`: images in prompts, on that general path
- `parallel`: one replica over several devices
- `linears`, `native`: packed and quantised weights; the library in C++
- `attention`, `paged`, `cache`, `tiles`, `kernels`: how the model's own modules read the paged cache
- `probe`, `self_test`: whether a model can be served so
- `sampler`, `draw`, `penalties`: logits to tokens
- `rank`, `process`, `backends`, `synthetic`: the process around it

Everything up to and including the blocks, and `tiles`, is plain Python: no tensors, no clock, no I/O.
"""
