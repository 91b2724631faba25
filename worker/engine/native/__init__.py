"""Native code for CPUs: packed products, attention over the paged cache, a whole forward pass.

- `source/`: C++ with C's calling convention; needs a compiler with vector extensions (GCC, Clang) and nothing else
- `build`: compiles it once per machine into the user's cache directory
- `library`: loads it and mirrors its structures
- `matrix`, `paging`, `decoder`: what the engine uses, on tensors
"""
