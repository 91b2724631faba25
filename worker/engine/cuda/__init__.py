"""The engine on CUDA devices.

- `options`: which pieces may be used; each can be switched off
- `page_cache`, `step`: the cache in pages, and a step's rows as tensors
- `attention`: paged attention by torch's FlashAttention, by a Triton kernel, or by gathering; the first that is right
- `operations`: the small operations between matrix products, in torch; `triton_operations` has them as kernels
- `choosing`, `draws`: which token each row chooses, without a sort and without the host; `triton_sampler` as kernels
- `linears`, `surgery`: matrix products, in the weights' type or in fp8
- `decoder`, `models`: a forward pass by hand-written decoder or by transformers' modules
- `static`, `capture`, `graph_runner`: decode steps recorded once for each size of batch, and started ahead of the host
- `prepare`, `runner`: from a loaded model to the engine's `Runner`

Everything but the Triton kernels also runs on a CPU, which is how it is tested without a device.
"""
