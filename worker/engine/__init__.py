"""The inference engine: continuous batching over a paged KV cache.

The serving loop is three verbs (`engine.Engine.step`): schedule, run, postprocess.

- `sequence`, `plan`: what is computed, and one step of it
- `scheduler`, `admission`: who runs next; what cannot run at all
- `blocks`, `free_runs`, `prefix`, `block_table`: the pool of cache blocks and who holds which
- `runner`, `paged_model`: a plan through a transformers model
- `attention`, `paged`, `cache`, `tiles`, `kernels`: how the model's own modules read the paged cache
- `probe`, `self_test`: whether a model can be served so
- `sampler`, `draw`, `penalties`: logits to tokens
- `rank`, `backends`, `synthetic`: the process around it

Everything up to and including the blocks, and `tiles`, is plain Python: no tensors, no clock, no I/O.
"""
