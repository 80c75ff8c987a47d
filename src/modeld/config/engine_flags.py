# SPDX-License-Identifier: GPL-3.0-only
"""Which llama-server flags llama_extra_args may not carry; rule: nothing that moves memory, the listener, files or the child's life.

The memory ledger and the supervisor were told how a child is started. A flag that changes either behind their back is refused with the
setting that does the same. llama.cpp reads `--ctx_size` like `--ctx-size`, so underscores are compared as dashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_MEMORY = "it changes memory that the budget was not told of"
_LISTENER = "modeld decides how it reaches its children"
_FILES = "it lets the model server reach files or programs"
_LIFE = "modeld decides when a child runs, and reads its log"
_MODEL = "the models folder decides which files are loaded"

_SETTING_FOR: Mapping[str, str] = {
    "llama_ctx": "-c --ctx-size --kv-unified-per-slot",
    "llama_parallel": "-np --parallel -ns --sequences",
    "llama_threads": "-t --threads",
    "llama_batch": "-b --batch-size",
    "llama_ubatch": "-ub --ubatch-size",
    "llama_kv_type": "-ctk -ctv --cache-type-k --cache-type-v",
    "llama_flash_attn": "-fa --flash-attn",
    "llama_ngl": "-ngl --gpu-layers --n-gpu-layers",
    "llama_cache_ram_mb": "-cram --cache-ram",
    "llama_kv_unified": "-kvu --kv-unified -no-kvu --no-kv-unified",
    "addr": "--host --port --reuse-port",
    "cors_allowed_origins": "--cors-origins --cors-methods --cors-headers --cors-credentials --no-cors-credentials",
    "llama_ctx_checkpoints": "-ctxcp --ctx-checkpoints --swa-checkpoints",
    "lora (of one model)": "--lora",
    "draft (of one model)": "-md --model-draft --spec-draft-model",
    "models_dir": "-m --model -mu --model-url -dr --docker-repo",
}

_REASON_FOR: Mapping[str, str] = {
    _MEMORY: (
        "--swa-full -kvo -nkvo --kv-offload --no-kv-offload -ts --tensor-split -sm --split-mode"
        " -mg --main-gpu -dev --device -ot --override-tensor -cmoe --cpu-moe -ncmoe --n-cpu-moe -ncffn --n-cpu-ffn --moe-cache-mib"
        " --mmap --no-mmap --mlock -dio -ndio --direct-io --no-direct-io -lm --load-mode -lzm --lazy-mode --no-host"
        " -nr --repack --no-repack"
        " --op-offload --no-op-offload --rpc --override-kv -mv --model-vocoder -ngld -ctkd -ctvd -devd -cd -otd -cmoed"
        " -ncmoed --ctx-size-draft --gpu-layers-draft --n-gpu-layers-draft --device-draft --cache-type-k-draft --cache-type-v-draft"
        " --override-tensor-draft --cpu-moe-draft --n-cpu-moe-draft --dflash --eagle3 --mtp --nextn -mm -mmu -mmdev"
        " --mtmd-batch-max-tokens --image-max-tokens -gan -gaw --grp-attn-n --grp-attn-w -bs --backend-sampling"
    ),
    _LISTENER: "-a --alias --path --api-prefix --ui --no-ui --webui --no-webui --slots --no-slots --props --embd-output-format",
    _FILES: "--slot-save-path --media-path --tools --tools-runtime -ag --agent --log-prompts-dir --video-ffmpeg-dir -lcs -lcd",
    _LIFE: (
        "-h --help --usage --version --list-devices -cl --cache-list --completion-bash --sleep-idle-seconds --log-disable --log-file"
        " --log-jsonl --log-colors --offline"
    ),
    _MODEL: "-hf -hfr -hff -hfv -hffv -hfd -hfrd -hft",
}

_REASON_FOR_PREFIX: Mapping[str, str] = {
    "-fit": _MEMORY,
    "--fit": _MEMORY,
    "--lora": _MEMORY,
    "--control-vector": _MEMORY,
    "--mmproj": _MEMORY,
    "--no-mmproj": _MEMORY,
    "--spec-": _MEMORY,
    "--draft": _MEMORY,
    "--ui-": _LISTENER,
    "--webui-": _LISTENER,
    "--no-ui-": _LISTENER,
    "--no-webui-": _LISTENER,
    "--ssl-": _LISTENER,
    "--api-key": _LISTENER,
    "--mcp-": _FILES,
    "--lookup-cache": _FILES,
    "--models-": _MODEL,
    "--no-models-": _MODEL,
    "--hf-": _MODEL,
}

_FREE_PREFIX = "--spec-ngram-"
"""Draft-free speculation: looks back in the text, loads nothing."""
_PRESET_ENDINGS = ("-default", "-spec")
"""llama.cpp's ready-made sets (`--…-default`): they download a model and set the port."""


def refused_flag(args: Iterable[str]) -> str | None:
    """Why the arguments are refused, naming the flag; None when they may stand. Continues a sentence that begins with the value."""
    for index, arg in enumerate(args):
        name = _name_of(arg)
        if name is None:
            if index == 0:
                return "does not begin with a flag"
            continue
        if way_out := _DIRECT.get(name):
            return f"holds {name}: use the setting {way_out}"
        if reason := _reason(name):
            return f"holds {name}, which is not allowed: {reason}"
        if any(char.isspace() for char in arg.partition("=")[0]):
            return f"holds {arg!r}: write the flag and its value as two items"
    return None


def _name_of(arg: str) -> str | None:
    """The flag without value, underscores as dashes; None for a plain value or a negative number."""
    words = arg.split()
    word = words[0] if words else ""
    if not word.startswith("-") or len(word) < 2 or word[1].isdigit() or word[1] == ".":
        return None
    name = word.partition("=")[0]
    return name.replace("_", "-") if name.startswith("--") else name


def _reason(name: str) -> str | None:
    if name in _PLAIN:
        return _PLAIN[name]
    if name.startswith(_FREE_PREFIX):
        return None
    if name.startswith("--") and name.endswith(_PRESET_ENDINGS):
        return _MODEL
    return next((reason for prefix, reason in _REASON_FOR_PREFIX.items() if name.startswith(prefix)), None)


_DIRECT = {flag: key for key, flags in _SETTING_FOR.items() for flag in flags.split()}
_PLAIN = {flag: reason for reason, flags in _REASON_FOR.items() for flag in flags.split()}
