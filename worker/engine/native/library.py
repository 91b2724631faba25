"""The native library, loaded, and its structures. `source/library.cpp` says what each function does."""

import ctypes
import functools
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p

import torch  # noqa: F401  first of all, so that the library takes torch's OpenMP threads and not a second pool

from shared import log
from worker.engine.errors import NativeUnavailable
from worker.engine.native.build import library_path

_log = log.get(__name__)


class Matrix(Structure):
    """A packed linear layer."""

    _fields_ = [
        ("data", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("columns", c_int64),
        ("depth", c_int64),
        ("kind", c_int32),
    ]


class Part(Structure):
    """Some rows of a weight that is to be packed."""

    _fields_ = [("rows", c_void_p), ("count", c_int64)]


class Cache(Structure):
    """One layer's keys and values."""

    _fields_ = [
        ("keys", c_void_p),
        ("values", c_void_p),
        ("kv_heads", c_int64),
        ("slots", c_int64),
        ("key_dim", c_int64),
        ("value_dim", c_int64),
        ("is_bfloat16", c_int32),
    ]


class Attention(Structure):
    """A call of attention."""

    _fields_ = [
        ("cache", Cache),
        ("heads", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
        ("window", c_int64),
        ("sinks", c_void_p),
    ]


class Layer(Structure):
    """One decoder layer."""

    _fields_ = [
        ("qkv", Matrix),
        ("output", Matrix),
        ("gate", Matrix),
        ("up", Matrix),
        ("down", Matrix),
        ("input_norm", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("after_attention", c_void_p),
        ("mlp_norm", c_void_p),
        ("after_mlp", c_void_p),
        ("cache", Cache),
        ("window", c_int64),
        ("rope", c_int32),
        ("table", c_int32),
    ]


class Model(Structure):
    """A decoder."""

    _fields_ = [
        ("layers", POINTER(Layer)),
        ("num_layers", c_int64),
        ("embedding", Matrix),
        ("head", Matrix),
        ("final_norm", c_void_p),
        ("hidden", c_int64),
        ("heads", c_int64),
        ("head_dim", c_int64),
        ("ffn", c_int64),
        ("rotary_dim", c_int64),
        ("epsilon", c_float),
        ("scale", c_float),
        ("softcap", c_float),
        ("final_softcap", c_float),
        ("embedding_scale", c_float),
        ("frequencies", c_void_p * 2),
        ("rope_scale", c_float * 2),
        ("activation", c_int32),
    ]


class Tables(Structure):
    """Where a step's tokens go, and where its sequences are, for one kind of layer."""

    _fields_ = [("slots", c_void_p), ("spans", c_void_p), ("runs", c_void_p)]


class Step(Structure):
    """A step's tokens."""

    _fields_ = [
        ("rows", c_int64),
        ("num_spans", c_int64),
        ("num_kept", c_int64),
        ("ids", c_void_p),
        ("positions", c_void_p),
        ("kept", c_void_p),
        ("tables", Tables * 2),
        ("logits", c_void_p),
    ]


_MIRRORED = (Matrix, Cache, Layer, Model, Step)
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "plexus_lanes": (c_int32, []),
    "plexus_layout": (c_int64, [c_int32]),
    "plexus_packed_bytes": (c_int64, [POINTER(Matrix)]),
    "plexus_padded_columns": (c_int64, [POINTER(Matrix)]),
    "plexus_pack": (None, [POINTER(Matrix), POINTER(Part), c_int32, c_int32]),
    "plexus_unpack_rows": (None, [POINTER(Matrix), c_void_p, c_int64, c_void_p]),
    "plexus_linear": (None, [POINTER(Matrix), c_void_p, c_int64, c_int32, c_void_p, c_int32]),
    "plexus_rms_norm": (None, [c_void_p, c_void_p, c_int64, c_int64, c_float, c_int32, c_void_p]),
    "plexus_attention": (
        None,
        [POINTER(Attention), c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p, c_int32],
    ),
    "plexus_workspace": (c_void_p, []),
    "plexus_free_workspace": (None, [c_void_p]),
    "plexus_forward": (None, [POINTER(Model), POINTER(Step), c_void_p, c_int32]),
}


@functools.cache
def load() -> ctypes.CDLL:
    """The library. Raises NativeUnavailable, with the reason."""
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise NativeUnavailable(f"{path} cannot be loaded: {error}") from error
    for which, structure in enumerate(_MIRRORED):
        assert library.plexus_layout(which) == ctypes.sizeof(structure), structure
    return library


@functools.cache
def find() -> ctypes.CDLL | None:
    """The library, or None where there is none; the log says why, once."""
    try:
        return load()
    except NativeUnavailable as error:
        _log.warning("native.unavailable", reason=str(error))
        return None
