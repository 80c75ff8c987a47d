# SPDX-License-Identifier: GPL-3.0-only
"""The child of the embedded engine: llama.cpp's own HTTP server inside this process; rule: standard library and xllamacpp, nothing else.

Run as a file: `python -I -S worker.py PARENT_PID`, or `… worker.py PARENT_PID describe`. One JSON line on standard input says the rest
(arguments and environment can be read by others), see `Parameters`. From then on standard input is a life line.

llama.cpp holds the interpreter lock while it loads, so no Python code can watch the parent meanwhile. Both ties work without it:
PR_SET_PDEATHSIG, and a signal that the kernel sends when the life line breaks.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import sys
from typing import Any, TypedDict

EXIT_LOAD_FAILED = 3
EXIT_NO_ENGINE = 4
LAYERS_ALL = 999
READY = '{"modeld":"ready"}'
LIFE_LINE = ("F_SETSIG", 10)
"""fcntl's command that chooses the signal; Python has no name for it."""

LOADING_VERBOSITY, SERVING_VERBOSITY = 4, 3
"""llama.cpp tells the sizes of its buffers at 4; 3 is its default."""
SET_VERBOSITY = "_Z30common_log_set_verbosity_tholdi"
"""`common_log_set_verbosity_thold(int)` of llama.cpp's common/log.h."""

_PR_SET_PDEATHSIG = 1


class Parameters(TypedDict):
    """The line on standard input. `import_path` is the folder that holds the xllamacpp package; `pooling` "" = it writes text.

    lora, draft     files that are loaded beside the model; `draft_kv_type` is of the draft model's own cache
    """

    import_path: str
    model: str
    socket: str
    alias: str
    mmproj: str | None
    lora: list[str]
    draft: str | None
    draft_kv_type: str
    ctx: int
    parallel: int
    threads: int
    ngl: int
    batch: int
    ubatch: int
    devices: list[str]
    tensor_split: list[int]
    kv_type: str
    flash_attn: str
    kv_unified: bool
    cache_ram_mb: int
    ctx_checkpoints: int
    pooling: str


def bind_to_parent(parent: int) -> None:
    """Die with `parent`, by SIGKILL; leave no core file. Ends the process when the parent is gone already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(EXIT_LOAD_FAILED)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def read_line(fd: int) -> bytes:
    """The first line, byte for byte unbuffered from then on."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(fd, 65536)
        if not part:
            os._exit(EXIT_LOAD_FAILED)
        line += part
    return line


def hold_life_line(fd: int) -> None:
    """KILL for this process as soon as the pipe's other end closes (or says anything). Needs no thread and no lock."""
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, LIFE_LINE[1], signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    # Closed before the signal was armed: nothing will come, so look once. A pipe without writers is readable (end of file).
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        os.read(fd, 1)
        os._exit(EXIT_LOAD_FAILED)
    os.set_blocking(fd, True)


def apply(params: Any, wanted: Parameters, engine: Any) -> None:
    """Set every value that matters explicitly, so that nothing is left to llama.cpp's own guesses."""
    kv_type = engine.ggml_type[f"GGML_TYPE_{wanted['kv_type'].upper()}"]
    flash = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}[wanted["flash_attn"]]
    params.model.path = wanted["model"]
    params.hostnames = [wanted["socket"]]
    params.model_alias = {wanted["alias"]}
    params.n_ctx = wanted["ctx"]
    params.n_parallel = wanted["parallel"]
    params.kv_unified = wanted["kv_unified"]
    params.n_batch = wanted["batch"]
    params.n_ubatch = wanted["ubatch"]
    params.cache_type_k = kv_type
    params.cache_type_v = kv_type
    params.flash_attn_type = engine.llama_flash_attn_type[f"LLAMA_FLASH_ATTN_TYPE_{flash}"]
    params.n_gpu_layers = LAYERS_ALL if wanted["ngl"] < 0 else wanted["ngl"]
    place(params, wanted, engine)
    params.cpuparams.n_threads = wanted["threads"]
    params.cpuparams_batch.n_threads = wanted["threads"]
    params.fit_params = False
    params.cache_ram_mib = wanted["cache_ram_mb"]
    params.n_ctx_checkpoints = wanted["ctx_checkpoints"]
    params.ui = False
    params.endpoint_slots = True
    params.endpoint_metrics = False
    params.endpoint_props = False
    params.verbosity = LOADING_VERBOSITY
    params.warmup = True
    params.offline = True
    params.n_threads_http = wanted["parallel"] + 4
    params.sse_ping_interval = -1  # a ping is neither the first byte of an answer nor a sign that it moves
    if wanted["pooling"]:
        params.embedding = True
        params.pooling_type = engine.llama_pooling_type[f"LLAMA_POOLING_TYPE_{wanted['pooling'].upper()}"]
    if wanted["mmproj"]:
        params.mmproj.path = wanted["mmproj"]
    _apply_beside(params, wanted, engine)


def _apply_beside(params: Any, wanted: Parameters, engine: Any) -> None:
    """Adapters, each as it is, and the draft model."""
    adapters = []
    for path in wanted["lora"]:
        one = engine.CommonAdapterLoraInfo()
        one.path, one.scale = path, 1.0
        adapters.append(one)
    if adapters:
        params.lora_adapters = adapters
    if wanted["draft"]:
        draft = params.speculative.draft
        draft.mparams.path = wanted["draft"]
        draft.n_gpu_layers = params.n_gpu_layers
        draft.cache_type_k = draft.cache_type_v = engine.ggml_type[f"GGML_TYPE_{wanted['draft_kv_type'].upper()}"]
        draft.cpuparams.n_threads = wanted["threads"]
        draft.cpuparams_batch.n_threads = wanted["threads"]
        params.speculative.types = [engine.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]


def place(params: Any, wanted: Parameters, engine: Any) -> None:
    """On the devices that were chosen, and on no device at all when no layer is to be on one: else each takes memory that nobody counted.

    The engine knows them by their number among those that it would use by itself.
    """
    if wanted["ngl"] == 0:
        params.split_mode = engine.llama_split_mode.LLAMA_SPLIT_MODE_NONE
        params.main_gpu = -1
        return
    chosen = wanted["devices"]
    if not chosen:
        return
    kinds: dict[str, list[str]] = {"GPU": [], "IGPU": []}
    for device in map(described, engine.get_device_info()):
        kinds.setdefault(device["type"].rpartition("_")[2], []).append(device["name"])
    names = kinds["GPU"] or kinds["IGPU"]
    if any(name not in names for name in chosen):
        raise RuntimeError(f"the device is gone: the engine has {', '.join(names) or 'none'}")
    if len(chosen) == 1:
        params.split_mode = engine.llama_split_mode.LLAMA_SPLIT_MODE_NONE
        params.main_gpu = names.index(chosen[0])
        return
    params.split_mode = engine.llama_split_mode.LLAMA_SPLIT_MODE_LAYER
    shares = dict(zip(chosen, wanted["tensor_split"] or [1] * len(chosen), strict=True))
    split = list(params.tensor_split)
    split[: len(names)] = [float(shares.get(name, 0)) for name in names]
    params.tensor_split = split


def quieten() -> None:
    """From now on the log says what it says by default. Another build may lack the function: then it stays as it is."""
    from xllamacpp import xllamacpp as extension

    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(extension.__file__)[SET_VERBOSITY](SERVING_VERBOSITY)


def serve(wanted: Parameters) -> int:
    """Load and serve until killed. Returns an exit code only when the load failed."""
    sys.path.append(wanted["import_path"])
    try:
        import xllamacpp as engine
    except ImportError as error:
        sys.stderr.write(f"modeld: the engine cannot be imported: {error}\n")
        return EXIT_NO_ENGINE
    params = engine.CommonParams()
    try:
        apply(params, wanted, engine)
    except RuntimeError as error:
        sys.stderr.write(f"modeld: {error}\n")
        return EXIT_LOAD_FAILED
    # The engine points standard output elsewhere while it runs as somebody's child.
    out = os.dup(1)
    try:
        _server = engine.Server(params)  # kept for as long as we live
    except RuntimeError as error:
        sys.stderr.write(f"modeld: load failed: {error}\n")
        return EXIT_LOAD_FAILED
    quieten()
    os.write(out, READY.encode() + b"\n")
    while True:  # default action of TERM ends us; the engine's own slow farewell never runs
        signal.pause()


def describe(import_path: str) -> int:
    """One JSON line: the devices the engine can use."""
    sys.path.append(import_path)
    try:
        import xllamacpp as engine
    except ImportError as error:
        sys.stderr.write(f"modeld: the engine cannot be imported: {error}\n")
        return EXIT_NO_ENGINE
    sys.stdout.write(json.dumps({"devices": [described(one) for one in engine.get_device_info()]}) + "\n")
    return 0


def described(one: Any) -> dict[str, Any]:
    """One device, as far as this build tells of it: bytes, and the address of its card."""
    kind = str(getattr(one["type"], "name", one["type"]))
    total, free = int(one.get("memory_total", 0)), int(one.get("memory_free", 0))
    return {
        "name": str(one["name"]),
        "description": str(one["description"]),
        "type": kind,
        "total": total,
        "free": free,
        "pci": str(one.get("device_id", "")),
    }


def main(argv: list[str]) -> int:
    """The exit code."""
    bind_to_parent(int(argv[0]))
    wanted = json.loads(read_line(0))
    if argv[1:] == ["describe"]:
        return describe(wanted["import_path"])
    hold_life_line(0)
    return serve(wanted)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
