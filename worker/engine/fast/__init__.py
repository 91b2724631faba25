"""The fast path: one hand-written decoder for the families that are most in use, instead of transformers' modules.

- `description`: what a decoder is made of, as plain values and references to its weights
- `families`: reads that off a loaded transformers model, or says why it cannot
- `native_decoder`: computes it in the native library, on a CPU
- `plain_decoder`: computes it in torch operations, where there is no native library
- `fast_model`: either of these with a paged cache, under the same interface as `worker.engine.paged_model`
"""
