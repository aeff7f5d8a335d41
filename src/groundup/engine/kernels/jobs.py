"""What the library's functions are told, as ctypes sees it: field by field the structures of jobs.h."""

import ctypes
from ctypes import c_double, c_float, c_int32, c_int64, c_void_p


class MatrixFields(ctypes.Structure):
    _fields_ = (
        ("values", c_void_p),
        ("scales", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("group", c_int64),
        ("format", c_int64),
    )


class ActivationsFields(ctypes.Structure):
    _fields_ = (
        ("values", c_void_p),
        ("scales", c_void_p),
        ("running_sums", c_void_p),
        ("rows", c_int64),
        ("first", c_int64),
        ("stride", c_int64),
    )


class QuantizeJob(ctypes.Structure):
    _fields_ = (("input", c_void_p), ("input_stride", c_int64), ("width", c_int64), ("out", ActivationsFields))


class RoundJob(ctypes.Structure):
    _fields_ = QuantizeJob._fields_


class LinearJob(ctypes.Structure):
    _fields_ = (
        ("weight", MatrixFields),
        ("input", ActivationsFields),
        *((name, c_void_p) for name in ("bias", "residual", "out")),
        ("out_stride", c_int64),
        ("peaks", c_void_p),
        ("peak_stride", c_int64),
    )


class GatherJob(ctypes.Structure):
    _fields_ = (
        ("weight", MatrixFields),
        ("ids", c_void_p),
        ("count", c_int64),
        ("out", c_void_p),
        ("width", c_int64),
    )


class NormJob(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("input", "out", "weight", "bias")),
        *((name, c_int64) for name in ("rows", "width", "input_stride", "out_stride", "weights")),
        ("eps", c_float),
        ("centred", c_int32),
        ("plus_one", c_int32),
    )


class RopeJob(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "cosine", "sine", "positions")),
        *((name, c_int64) for name in ("rows", "heads", "head_dim", "dims", "stride")),
        ("interleaved", c_int32),
    )


class ActivateJob(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("gate", "up", "out")),
        *((name, c_int64) for name in ("rows", "width", "gate_stride", "up_stride", "out_stride")),
        ("activation", c_int32),
        *((name, c_float) for name in ("sharpness", "limit", "up_offset")),
    )


class AddJob(ctypes.Structure):
    _fields_ = (("x", c_void_p), ("y", c_void_p), ("count", c_int64))


class MixJob(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "streams", "weights", "gates", "kinds")),
        *((name, c_int64) for name in ("rows", "width", "terms", "stream_stride")),
    )


class GateJob(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("input", "weight", "x", "base", "out")),
        *((name, c_int64) for name in ("rows", "heads", "head_dim", "channels", "input_stride")),
        ("factor", c_float),
    )


class CombineJob(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("y", "weights", "places", "base", "out")),
        *((name, c_int64) for name in ("rows", "width", "choices")),
    )


class DrawFields(ctypes.Structure):
    _fields_ = (
        ("temperature", c_double),
        ("top_k", c_int64),
        *((name, c_double) for name in ("top_p", "min_p", "number")),
    )


class ChosenFields(ctypes.Structure):
    _fields_ = (("token", c_int64), ("logprob", c_double), ("normaliser", c_double))


class ChooseJob(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("logits", "draws", "chosen")),
        *((name, c_int64) for name in ("rows", "width", "stride")),
        ("peaks", c_void_p),
        ("peak_stride", c_int64),
    )


class KeyValueBlocksFields(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
        *((name, c_int64) for name in ("kv_heads", "head_dim", "block_size")),
        ("bits", c_int32),
    )


class StoreJob(ctypes.Structure):
    _fields_ = (
        ("blocks", KeyValueBlocksFields),
        *((name, c_void_p) for name in ("keys", "values", "slots")),
        *((name, c_int64) for name in ("rows", "key_stride", "value_stride", "windowed")),
    )


class AttentionJob(ctypes.Structure):
    _fields_ = (
        ("blocks", KeyValueBlocksFields),
        *((name, c_void_p) for name in ("queries", "out", "block_table", "query_starts", "key_counts", "sinks")),
        *((name, c_int64) for name in ("sequences", "heads", "query_stride", "out_stride", "table_stride")),
        *((name, c_int64) for name in ("window", "windowed")),
        ("scale", c_float),
        ("softcap", c_float),
    )


class Instruction(ctypes.Structure):
    _fields_ = (("operation", c_int64), ("job", c_void_p), ("jobs", c_int64))


class GroupedJob(ctypes.Structure):
    _fields_ = (("products", c_void_p), ("count", c_int64), ("groups", c_int64), ("starts", c_void_p))


class LowRankFields(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("down", "up")),
        ("rank", c_int64),
        *((name, c_int32) for name in ("down_bits", "up_bits")),
    )


class AdaptJob(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("input", "ids", "out")),
        *((name, c_int64) for name in ("width", "outputs", "number")),
    )


class AdaptedTokensFields(ctypes.Structure):
    _fields_ = (("changes", c_void_p), ("tokens", c_void_p), ("count", c_int64))


class ProgramJob(ctypes.Structure):
    _fields_ = (
        ("instructions", c_void_p),
        *((name, c_int64) for name in ("count", "tokens", "sequences", "table_stride")),
        *((name, c_void_p) for name in ("positions", "slots", "block_table", "query_starts", "key_counts")),
        *((name, c_void_p) for name in ("window_slots", "window_table", "adapted")),
        ("adapters", c_int64),
    )


# The operations of a program, by the numbers that the library gives them.
OPERATIONS = (
    *(QuantizeJob, LinearJob, NormJob, RopeJob, ActivateJob, AddJob, StoreJob, AttentionJob),
    *(GatherJob, MixJob, GateJob, CombineJob, GroupedJob, AdaptJob, RoundJob),
)

# The library's functions, without `groundup_`, and what each is told.
FUNCTIONS: dict[str, type[ctypes.Structure]] = {
    "gather": GatherJob,
    "quantize": QuantizeJob,
    "round": RoundJob,
    "linear": LinearJob,
    "norm": NormJob,
    "rope": RopeJob,
    "activate": ActivateJob,
    "add": AddJob,
    "choose": ChooseJob,
    "store": StoreJob,
    "attend": AttentionJob,
    "program": ProgramJob,
}
