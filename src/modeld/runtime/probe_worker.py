# SPDX-License-Identifier: GPL-3.0-only
"""The child that asks llama.cpp what a model would take, without allocating it; rule: standard library and xllamacpp's .so, nothing else.

Run as a file: `python -I -S probe_worker.py PARENT_PID`. One JSON line on standard input says the rest, see `Question`; one JSON line for
each of its contexts comes back, see `Reply`. llama.cpp ends a process in which its own assertions fail, so every question has its own.

The library's structs are written out below as they stand in one build. Before anything is asked, its own default values must lie where
they are expected: in another layout a number would land in another field.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int, c_int32, c_size_t, c_uint32, c_void_p
from typing import Any, TypedDict

EXIT_ORPHAN = 3
EXIT_REFUSED = 4
EXIT_UNASKABLE = 5
NICENESS = 10
ADDRESS_BYTES_MAX = 16 << 30
"""Of address space, not of memory. The state of recurrent layers is really allocated even in a dry run."""
BUFFER_TYPES_MAX = 256
ERROR_CHARS_MAX = 400
KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
"""Names of ggml's types -> their numbers."""
FLASH = {"auto": -1, "off": 0, "on": 1}

_PR_SET_PDEATHSIG = 1
_LOG_ERROR = 4
_LOAD_MODE_NONE = 0


class ContextWanted(TypedDict):
    """One context. `outputs` is how many rows of logits one batch may give; 0 = one for each token. `pooling` -1 = none is asked for."""

    ctx: int
    parallel: int
    batch: int
    ubatch: int
    outputs: int
    kv_type: str
    flash_attn: str
    kv_unified: bool
    embeddings: bool
    pooling: int


class Question(TypedDict):
    """The line on standard input. `ngl` -1 = all layers on the device.

    repack    weights may be copied into a layout of the CPU's own
    seconds   of CPU time, at most
    enough    seconds after which no further context is asked about
    """

    library: str
    model: str
    ngl: int
    repack: bool
    seconds: int
    enough: float
    contexts: list[ContextWanted]


class Reply(TypedDict, total=False):
    """One answer: by name of the buffer type, bytes of the model, context and compute buffers; or an error."""

    buffers: dict[str, list[int]]
    error: str


class ModelParams(Structure):
    """llama.h, `llama_model_params`."""

    _fields_ = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    ]


class ContextParams(Structure):
    """llama.h, `llama_context_params`, as the build has it: one pointer more than b11434, which is left alone."""

    _fields_ = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int),
        ("type_v", c_int),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("unnamed", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


MODEL_DEFAULTS: dict[str, Any] = {"n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "use_extra_bufts": True}
CONTEXT_DEFAULTS: dict[str, Any] = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_outputs_max_per_seq": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": -1.0,
    "yarn_beta_fast": -1.0,
    "yarn_beta_slow": -1.0,
    "defrag_thold": -1.0,
    "type_k": 1,
    "type_v": 1,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
}
"""What llama.cpp fills in where it is not zero."""


class _Node(Structure):
    """A node of a `std::map<buffer type, {model, context, compute}>` as libstdc++ lays it out."""


_Node._fields_ = [
    ("color", c_int),
    ("parent", c_void_p),
    ("left", POINTER(_Node)),
    ("right", POINTER(_Node)),
    ("key", c_void_p),
    ("bytes", c_size_t * 3),
]


class _Map(Structure):
    """libstdc++'s `std::map`: comparator, header node (color, root, first, last), count."""

    _fields_ = [
        ("compare", c_void_p),
        ("color", c_int),
        ("root", POINTER(_Node)),
        ("first", c_void_p),
        ("last", c_void_p),
        ("count", c_size_t),
    ]


_LogCallback = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)


class Library:
    """xllamacpp's shared object, with the few functions that are asked. Raises OSError, AttributeError or ValueError when it is another."""

    def __init__(self, path: str) -> None:
        so = ctypes.CDLL(path)
        self.errors: list[str] = []
        self._model_defaults = _function(so, "llama_model_default_params", ModelParams)
        self._context_defaults = _function(so, "llama_context_default_params", ContextParams)
        self._load = _function(so, "llama_model_load_from_file", c_void_p, c_char_p, ModelParams)
        self._init = _function(so, "llama_init_from_model", c_void_p, c_void_p, ContextParams)
        self._free = _function(so, "llama_free", None, c_void_p)
        self._breakdown = _function(so, "_Z26llama_get_memory_breakdownPK13llama_context", _Map, c_void_p)
        self._name = _function(so, "ggml_backend_buft_name", c_char_p, c_void_p)
        self._check(self._model_defaults(), MODEL_DEFAULTS)
        self._check(self._context_defaults(), CONTEXT_DEFAULTS)
        self._callback = _LogCallback(self._log)  # kept: the library calls it for as long as we live
        _function(so, "llama_log_set", None, _LogCallback, c_void_p)(self._callback, None)
        _function(so, "llama_backend_init", None)()

    def _log(self, level: int, text: bytes, _data: object) -> None:
        if level == _LOG_ERROR and len(self.errors) < 8:
            self.errors.append(text.decode("utf-8", "replace").strip())

    @staticmethod
    def _check(found: Structure, expected: dict[str, Any]) -> None:
        wanted = type(found)(**expected)  # zero elsewhere; field by field, because what lies between fields is anything
        if any(getattr(found, name) != getattr(wanted, name) for name, *_ in type(found)._fields_):
            raise ValueError(f"{type(found).__name__} has another layout in this build of llama.cpp")

    def load(self, path: str, ngl: int, *, repack: bool) -> int | None:
        """The model's address, None when llama.cpp refuses it. Allocates no weights."""
        params = self._model_defaults()
        params.n_gpu_layers = ngl
        params.use_extra_bufts = repack
        params.load_mode = _LOAD_MODE_NONE
        params.no_alloc = True
        address: int | None = self._load(os.fsencode(path), params)
        return address

    def ask(self, model: int, wanted: ContextWanted) -> Reply:
        """What one context over `model` takes."""
        params = self._context_defaults()
        params.n_ctx = wanted["ctx"]
        params.n_batch = wanted["batch"]
        params.n_ubatch = wanted["ubatch"]
        params.n_seq_max = wanted["parallel"]
        params.n_outputs_max = wanted["outputs"]
        params.type_k = params.type_v = KV_TYPES[wanted["kv_type"]]
        params.flash_attn_type = FLASH[wanted["flash_attn"]]
        params.kv_unified = wanted["kv_unified"]
        params.embeddings = wanted["embeddings"]
        params.pooling_type = wanted["pooling"]
        params.swa_full = False  # as llama-server does
        self.errors.clear()
        context = self._init(model, params)
        if not context:
            return {"error": self.first_error("llama.cpp makes no such context")}
        buffers: dict[str, list[int]] = {}
        _walk(self._breakdown(context).root, buffers, self._name)
        self._free(context)
        return {"buffers": buffers}

    def first_error(self, otherwise: str) -> str:
        """What llama.cpp said first: the cause, before each caller adds that it failed."""
        return (self.errors[0] if self.errors else otherwise)[:ERROR_CHARS_MAX]


def _function(so: ctypes.CDLL, name: str, restype: Any, *argtypes: Any) -> Any:
    found = getattr(so, name)
    found.restype = restype
    found.argtypes = argtypes
    return found


def _walk(root: Any, into: dict[str, list[int]], name: Any) -> None:
    """Add up every node below `root`. The map is small; the limit is for one that is not a map."""
    left = [root]
    seen = 0
    while left:
        pointer = left.pop()
        if not pointer:
            continue
        seen += 1
        if seen > BUFFER_TYPES_MAX:
            raise ValueError("the answer of llama.cpp has another layout in this build")
        node = pointer.contents
        sums = into.setdefault(name(node.key).decode("utf-8", "replace"), [0, 0, 0])
        for index in range(3):
            sums[index] += node.bytes[index]
        left += [node.left, node.right]


def bind_to_parent(parent: int) -> None:
    """Die with `parent`, by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(EXIT_ORPHAN)


def set_limits(seconds: int) -> None:
    """No core file, bounded CPU time and address space."""
    for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, ADDRESS_BYTES_MAX)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (most, most))


def answer(out: int, reply: Reply) -> None:
    """One line."""
    os.write(out, json.dumps(reply).encode() + b"\n")


def main(argv: list[str]) -> int:
    """The exit code: 0 when every context was answered, be it by an error of its own."""
    bind_to_parent(int(argv[0]))
    question: Question = json.loads(sys.stdin.readline())
    set_limits(question["seconds"])
    os.nice(NICENESS)
    out = os.dup(1)
    os.dup2(2, 1)  # the library prints to standard output, too
    try:
        library = Library(question["library"])
    except (OSError, AttributeError, ValueError) as error:
        answer(out, {"error": str(error)[:ERROR_CHARS_MAX]})
        return EXIT_UNASKABLE
    model = library.load(question["model"], question["ngl"], repack=question["repack"])
    if model is None:
        answer(out, {"error": library.first_error("llama.cpp refuses the model")})
        return EXIT_REFUSED
    enough = time.monotonic() + question["enough"]
    for wanted in question["contexts"]:
        answer(out, library.ask(model, wanted))
        if time.monotonic() > enough:
            break
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
