"""``python -m tests.support.compile_kernels CAPABILITY``: compile all Triton kernels for a device that is not there."""

import os
import sys

os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from worker.engine.cuda import triton_attention as attention
from worker.engine.cuda import triton_operations as operations
from worker.engine.cuda import triton_sampler as sampler

HALF, FLOAT, INT, DOUBLE, FP8 = "*bf16", "*fp32", "*i32", "*fp64", "*fp8e4nv"
CUT = {"BLOCK": 1024, "BLOCKS": 8}
LANES = {"SPLITS": 32}


def compile_kernel(
    capability: int, kernel, types: dict[str, str], constants: dict[str, object], warps: int = 4
) -> None:
    """Compile for these types of arguments, and tell how large the result is."""
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs=values)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    print(f"{kernel.__name__}: {len(made.asm['cubin'])} bytes, shared memory {made.metadata.shared}")


def numbers(names: str) -> dict[str, str]:
    """Whole numbers of these names."""
    return dict.fromkeys(names.split(), "i32")


def main(capability: int) -> None:
    """Each kernel once, the larger ones as they are for an 8B model."""
    asked = dict.fromkeys(("query", "keys", "values", "sinks"), HALF) | numbers("num_tokens table_width num_splits")
    asked |= dict.fromkeys(("starts", "lengths", "tables"), INT) | {"scale": "fp32", "softcap": "fp32"}
    shape = {
        "HEADS": 32, "KV_HEADS": 8, "KEY_DIM": 128, "VALUE_DIM": 128, "KEY_BLOCK": 128, "VALUE_BLOCK": 128, "PAGE": 256,
        "KEYS": 64, "IS_EXACT": False,
    }  # fmt: skip
    plain = shape | {"ROWS": 16, "WINDOW": 0, "HAS_SOFTCAP": False, "HAS_SINKS": False, "IS_SPLIT": True}
    strange = shape | {"ROWS": 64, "WINDOW": 1024, "HAS_SOFTCAP": True, "HAS_SINKS": True, "IS_SPLIT": False}
    compile_kernel(capability, attention._attend, asked | {"out": FLOAT, "lse": FLOAT}, plain)
    compile_kernel(capability, attention._attend, asked | {"out": HALF, "lse": HALF}, strange)
    compile_kernel(
        capability,
        attention._join,
        {"parts": FLOAT, "lse": FLOAT, "out": HALF, "num_lines": "i32"},
        {"VALUE_DIM": 128, "VALUE_BLOCK": 128, "SPLITS": 5, "SPLIT_BLOCK": 8},
        2,
    )
    compile_kernel(
        capability,
        operations._norm,
        {"x": HALF, "residual": HALF, "weight": FLOAT, "out": HALF, "size": "i32", "epsilon": "fp32"},
        {"BLOCK": 4096, "HAS_RESIDUAL": True},
        8,
    )
    compile_kernel(
        capability,
        operations._turn_and_store,
        dict.fromkeys(("qkv", "query", "keys", "values"), HALF)
        | dict.fromkeys(("query_norm", "key_norm", "cosine", "sine"), FLOAT)
        | {"slots": INT, "epsilon": "fp32"},
        {
            "HEADS": 32, "KV_HEADS": 8, "DIM": 128, "HALF": 64, "BLOCK": 128, "HAS_QUERY_NORM": True,
            "HAS_KEY_NORM": True,
        },
        1,
    )  # fmt: skip
    gate = {"gate_up": HALF, "out": HALF, "size": "i32"}
    for activation in range(3):
        compile_kernel(capability, operations._gate, gate, {"ACTIVATION": activation, "BLOCK": 1024})
    out = FP8 if capability >= 89 else HALF
    quantize = {"x": HALF, "out": out, "scales": FLOAT, "size": "i32", "limit": "fp32"}
    compile_kernel(capability, operations._quantize, quantize, {"BLOCK": 4096}, 8)
    of_logits = {"logits": HALF, "peaks": FLOAT, "settings": DOUBLE, "allowed": INT} | numbers(
        "size num_rows num_splits"
    )
    peaks = {"logits": HALF, "peaks": FLOAT, "tokens": INT} | numbers("size num_splits")
    compile_kernel(capability, sampler._peaks, peaks, CUT)
    search = {"settings": DOUBLE, "parts": DOUBLE, "limits": INT, "allowed": INT}
    search |= numbers("num_rows num_splits size shift")
    tally = of_logits | search | {"before": DOUBLE, "last_shift": "i32"}
    compile_kernel(capability, sampler._tally, tally, {"STEP": 3, "LAST_WIDTH": 16, "IS_MASS": True} | LANES | CUT)
    compile_kernel(capability, sampler._settle, search, {"STEP": 7, "WIDTH": 8, "IS_MASS": True} | LANES)
    compile_kernel(capability, sampler._weigh, of_logits | {"masses": DOUBLE}, LANES | CUT)
    pick = of_logits | {"masses": DOUBLE, "tokens": INT, "out": INT}
    compile_kernel(capability, sampler._pick, pick, {"NONE": -1, "IS_RANDOM": True} | LANES | CUT)


if __name__ == "__main__":
    main(int(sys.argv[1]))
