# SPDX-License-Identifier: GPL-3.0-only
"""Every setting, declared once; rule: a field of `Settings` is the flag, the variable, the file key, its type and help.

`vram_budget_mb` is `--vram-budget-mb`, `MODELD_VRAM_BUDGET_MB` and the file key `vram_budget_mb`. Durations are float seconds,
`*_mb` is MiB, `*_bytes` bytes. "auto" and "none" are None.
"""

# ruff: noqa: RUF009  (each default is a call on purpose: `setting` returns a dataclass field that carries the declaration)

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from modeld.config import amounts
from modeld.config import values as v
from modeld.config.declaration import Setting, setting
from modeld.core.budget import Wish
from modeld.core.model import LOCAL, Degrade, DeviceId, EvictionPolicy, FlashAttention, KvType, Limits, ModelKind, Priority

if TYPE_CHECKING:
    from modeld.catalog.models import ModelOverride

LISTEN, MEMORY, LINES, BODIES = "Listening and access", "Models and memory", "Waiting and time limits", "Request bodies"
ENGINE, LOGS, BROWSER, FOLDERS = "Engine", "Logging", "Browser access (CORS)", "Folders"
GROUPS = (LISTEN, MEMORY, LINES, BODIES, ENGINE, LOGS, BROWSER, FOLDERS)

MIB = 1 << 20
SIZE_MB_MAX = 1 << 30
BYTES_MAX = 1 << 40


class AdapterName(StrEnum):
    EMBEDDED = "embedded"
    LLAMA_SERVER = "llama-server"
    EXTERNAL = "external"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    CONSOLE = "console"
    JSON = "json"


def _xdg(variable: str, fallback: str) -> Callable[[Mapping[str, str]], object]:
    """`$variable/modeld` when it is an absolute path (others are to be ignored), else the fallback."""

    def where(environ: Mapping[str, str]) -> object:
        base = environ.get(variable, "")
        return f"{base}/modeld" if base.startswith("/") else fallback

    return where


def _runtime_fallback() -> str:
    return "/run/modeld" if os.geteuid() == 0 else f"/tmp/modeld-{os.geteuid()}"  # noqa: S108  the runtime checks owner and mode


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What the file says of one model under `models`. `said` holds the keys given, so that "auto" can undo a setting for all."""

    llama_ctx: int | amounts.CtxMax | None = None
    llama_parallel: int | None = None
    llama_threads: int | None = None
    llama_ngl: int | None = None
    llama_batch: int | None = None
    llama_ubatch: int | None = None
    llama_kv_type: KvType | None = None
    llama_flash_attn: FlashAttention | None = None
    llama_kv_unified: bool | None = None
    llama_cache_ram_mb: int | None = None
    llama_ctx_checkpoints: int | None = None
    llama_extra_args: tuple[str, ...] = ()
    degrade: tuple[Degrade, ...] = ()
    lora: tuple[Path, ...] = ()
    draft: Path | None = None
    aliases: tuple[str, ...] = ()
    vram_mb: int | None = None
    pinned: bool = False
    ttl: float | None = None
    preload: bool = False
    priority: Priority = Priority.NORMAL
    kind: ModelKind | None = None
    said: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Settings:
    """The effective settings. Made by `load`; `Settings()` holds the defaults."""

    addr: v.ListenAddress = setting(
        v.ADDRESS,
        ":8080",
        LISTEN,
        "where to listen: :8080, 127.0.0.1:8080, [::1]:8080, name:8080, 8080 or unix:PATH; port 0 takes a free one",
    )
    allow_remote: bool = setting(v.BOOLEAN, False, LISTEN, "serve other machines than this one; without it only loopback peers are served")
    allowed_hosts: tuple[str, ...] = setting(
        v.listing(v.host_name),
        (),
        LISTEN,
        "further names a Host header may carry, besides loopback, the bound address and this host's name",
    )

    models_dir: Path = setting(v.PATH, "~/models/llm", MEMORY, "folder scanned for *.gguf, also below", shown="~/models/llm")
    rescan_interval: float = setting(
        v.duration(zero=False, minimum=0.1), "2s", MEMORY, "how often the models folder is looked at for changes"
    )
    default_model: str | None = setting(
        v.or_none(v.TEXT, "none"), "none", MEMORY, "model for requests that name none; without it they get a 404 that says so"
    )
    vram_budget_mb: amounts.Amount | None = setting(
        v.or_none(amounts.amount_per_device(0, SIZE_MB_MAX), "auto"),
        "auto",
        MEMORY,
        "MiB that all loaded models together may take, or of each device CUDA0=20000,CUDA1=8000; auto = what there is, 0 = unlimited",
    )
    vram_margin_mb: int = setting(
        v.integer(0, SIZE_MB_MAX, "MiB"),
        0,
        MEMORY,
        "MiB kept free inside the budget; 0 with vram_budget_mb: auto = 256 of a GPU, 5 % of main memory (512 to 2048)",
    )
    host_budget_mb: int | None = setting(
        v.or_none(v.integer(0, SIZE_MB_MAX, "MiB"), "auto"),
        "auto",
        MEMORY,
        "MiB of main memory for what models need beside GPUs with memory of their own; auto = what the machine has, 0 = unlimited",
    )
    degrade: tuple[Degrade, ...] = setting(
        amounts.steps(Degrade),
        (),
        MEMORY,
        "what may be given up, in this order, where a model does not fit: ctx (context), kv_type (smaller cache), ngl (layers on the GPU)",
        per_model=True,
    )

    max_queue_depth: int = setting(
        v.integer(1, 1_000_000), 32, LINES, "requests that may wait for one model; beyond it 429 with Retry-After"
    )
    max_wait: float = setting(
        v.duration(zero=False), "30s", LINES, "longest time in line, then 429; the clock stops when the model's own load starts"
    )
    fairness_wait: float = setting(
        v.duration(zero=False),
        "10s",
        LINES,
        "a model whose oldest request has waited so long is due: room is made for it, also where others are busy",
    )
    turn_max: float | None = setting(
        v.or_none(v.duration(zero=True), "auto"),
        "auto",
        LINES,
        "how long a due model, once loaded, may serve those who waited before another due one takes its place; auto = fairness_wait",
    )
    min_residency: float = setting(
        v.duration(zero=True),
        "5s",
        LINES,
        "longest time for which a freshly loaded model that is idle is kept for its own next request, from others that are not due",
    )
    preempt_after: float | None = setting(
        v.or_none(v.duration(zero=False), "off"),
        "off",
        LINES,
        "cut requests that still run so long after their model was closed for a due one; off = never",
    )
    eviction: EvictionPolicy = setting(
        v.choice(EvictionPolicy),
        "cost",
        LINES,
        "which idle model goes first: lru (least recently used) or cost (least worth keeping, by its load time, size and use)",
    )
    first_token_timeout: float = setting(
        v.duration(zero=True),
        "2m",
        LINES,
        "a model server on which no token came for so long before the first one is stopped as stuck; 0 = never",
    )
    inter_token_timeout: float = setting(v.duration(zero=True), "1m", LINES, "the same between two tokens; 0 = never")
    infer_timeout: float = setting(
        v.duration(zero=True), 0, LINES, "longest time from the start of a request to its last byte; 0 = no limit"
    )
    sse_heartbeat: float = setting(
        v.duration(zero=True),
        "5s",
        LINES,
        "how often an event stream that waits for its model gets a comment, so that clients do not time out; 0 = never",
    )
    drain_timeout: float = setting(
        v.duration(zero=True), "30s", LINES, "how long an unload by operator, reload or ttl waits for running requests"
    )
    stop_grace: float = setting(v.duration(zero=True), "3s", LINES, "time between TERM and KILL when a model's process is stopped")
    shutdown_timeout: float = setting(v.duration(zero=False), "5s", LINES, "time for the whole shutdown")

    max_body_bytes: int = setting(
        v.size_bytes(1, BYTES_MAX), 1 * MIB, BODIES, "largest body of POST /infer (bytes, or 64MiB, 512K; binary)"
    )
    max_api_body_bytes: int = setting(v.size_bytes(1, BYTES_MAX), 64 * MIB, BODIES, "largest body of all other routes")
    max_waiting_body_bytes: int = setting(v.size_bytes(1, BYTES_MAX), 256 * MIB, BODIES, "bytes held for all waiting requests together")

    adapter: AdapterName | None = setting(
        v.or_none(v.choice(AdapterName), "auto"),
        "auto",
        ENGINE,
        "what runs llama.cpp: embedded, llama-server (your binary) or external (already running); auto = by llama_url, llama_bin and GPU",
    )
    llama_bin: Path | None = setting(v.or_none(v.PROGRAM, "auto"), "auto", ENGINE, "path or name of a llama-server binary")
    llama_url: str | None = setting(
        v.or_none(v.URL, "auto"), "auto", ENGINE, "a llama.cpp server that already runs, as http(s)://host:port"
    )
    llama_api_key: str | None = setting(
        v.or_none(v.SECRET, "auto"), "auto", ENGINE, "key for llama_url, or @FILE whose first line holds it", secret=True
    )
    llama_ctx: int | amounts.CtxMax | None = setting(
        v.or_none(amounts.context_length(16, 1 << 26), "auto"),
        "auto",
        ENGINE,
        "tokens of context over all slots, as llama.cpp's -c; auto = the model's own, at most 8192; max = all that fits; max:N",
        per_model=True,
    )
    llama_parallel: int | None = setting(
        v.or_none(v.integer(1, 256), "auto"), "auto", ENGINE, "slots: requests a model serves at the same time; auto = 4", per_model=True
    )
    llama_threads: int | None = setting(
        v.or_none(v.integer(1, 512), "auto"), "auto", ENGINE, "threads that compute; auto = the cores of this machine", per_model=True
    )
    llama_ngl: int | None = setting(
        v.or_none(v.integer(-1, 10_000), "auto"), "auto", ENGINE, "layers on the GPU; -1 and auto = all", per_model=True
    )
    llama_batch: int | None = setting(
        v.or_none(v.integer(1, 1 << 20), "auto"), "auto", ENGINE, "logical batch in tokens, at least llama_ubatch", per_model=True
    )
    llama_ubatch: int | None = setting(
        v.or_none(v.integer(1, 1 << 20), "auto"),
        "auto",
        ENGINE,
        "physical batch in tokens; more is faster and takes more memory",
        per_model=True,
    )
    llama_kv_type: KvType | None = setting(
        v.or_none(v.choice(KvType), "auto"), "auto", ENGINE, "element type of the KV cache; auto = f16", per_model=True
    )
    llama_flash_attn: FlashAttention | None = setting(
        v.or_none(v.choice(FlashAttention), "auto"), "auto", ENGINE, "flash attention: on, off or auto", per_model=True
    )
    llama_kv_unified: bool | None = setting(
        v.or_none(v.BOOLEAN, "auto"), "auto", ENGINE, "one KV cache shared by all slots; auto = true", per_model=True
    )
    llama_cache_ram_mb: int | None = setting(
        v.or_none(v.integer(0, SIZE_MB_MAX, "MiB"), "auto"),
        "auto",
        ENGINE,
        "prompt cache of a model in host memory, MiB; 0 = none",
        per_model=True,
    )
    llama_ctx_checkpoints: int | None = setting(
        v.or_none(v.integer(0, 1024), "auto"),
        "auto",
        ENGINE,
        "states kept for each slot in host memory, so that recurrent and sliding-window models need not read a text again; auto = 0",
        per_model=True,
    )
    llama_extra_args: tuple[str, ...] = setting(
        v.listing(), (), ENGINE, "further llama-server arguments; none that move memory, the listener or files", per_model=True
    )

    log_level: LogLevel = setting(v.choice(LogLevel), "info", LOGS, "least severe message that is logged")
    log_format: LogFormat = setting(v.choice(LogFormat), "console", LOGS, "for people (console) or machines (json)")
    trace_file: Path | None = setting(
        v.or_none(v.PATH, "none"), "none", LOGS, "append each request and load to this file, for `modeld simulate`"
    )

    cors_enabled: bool = setting(v.BOOLEAN, False, BROWSER, "answer cross-origin requests of the origins below")
    cors_allowed_origins: tuple[str, ...] = setting(
        v.listing(v.origin), (), BROWSER, "origins such as https://app.example, or * for every page a user opens"
    )
    cors_allowed_methods: tuple[str, ...] = setting(v.listing(v.http_token), ("GET", "POST", "OPTIONS"), BROWSER, "methods a page may use")
    cors_allowed_headers: tuple[str, ...] = setting(
        v.listing(v.http_token),
        ("Authorization", "Content-Type", "X-Request-Id", "X-Modeld-Priority", "X-Modeld-Timeout"),
        BROWSER,
        "headers a page may send",
    )

    state_dir: Path = setting(
        v.PATH, _xdg("XDG_STATE_HOME", "~/.local/state/modeld"), FOLDERS, "files that outlive a restart", shown="$XDG_STATE_HOME/modeld"
    )
    runtime_dir: Path = setting(
        v.PATH, _xdg("XDG_RUNTIME_DIR", _runtime_fallback()), FOLDERS, "sockets of the running daemon", shown="$XDG_RUNTIME_DIR/modeld"
    )

    models: Mapping[str, ModelSettings] = field(default_factory=lambda: MappingProxyType({}))

    def budget_wish(self) -> Wish:
        """What the operator says about memory; core.budget makes a budget of it when the devices are known."""
        return Wish(self.vram_budget_mb, self.vram_margin_mb, self.host_budget_mb)

    def limits(self) -> Limits:
        """What the scheduler's decisions depend on. Of the budget, what is known without a look at the machine: auto is no limit yet."""
        budget = self.vram_budget_mb
        by_device = {DeviceId(f"local/{name}"): mb for name, mb in budget.items()} if isinstance(budget, Mapping) else {LOCAL: budget or 0}
        return Limits(
            budget_mb=MappingProxyType(by_device),
            margin_mb=self.vram_margin_mb,
            queue_depth_max=self.max_queue_depth,
            wait_max_seconds=self.max_wait,
            infer_timeout_seconds=self.infer_timeout,
            drain_timeout_seconds=self.drain_timeout,
            waiting_bytes_max=self.max_waiting_body_bytes,
            fairness_wait_seconds=self.fairness_wait,
            turn_max_seconds=self.turn_max,
            min_residency_seconds=self.min_residency,
            preempt_after_seconds=self.preempt_after,
            eviction=self.eviction,
            first_token_seconds=self.first_token_timeout,
            inter_token_seconds=self.inter_token_timeout,
        )

    def models_with_extra_args(self) -> str:
        """Where llama_extra_args are given, for a message: "for all", or names of `models`; empty when nowhere."""
        if self.llama_extra_args:
            return "for all"
        return ", ".join(sorted(name for name, own in self.models.items() if own.llama_extra_args))

    def for_model(self, model_id: str) -> ModelSettings:
        """What the file says of the model; the key is its id, with or without `.gguf`."""
        return self.models.get(plain_id(model_id), _NOTHING_SAID)

    def effective(self, model_id: str, key: str) -> Any:
        """A `llama_*` value for one model: its own, else the setting for all, else None (auto)."""
        own = self.for_model(model_id)
        return getattr(own if key in own.said else self, key)

    def override_for(self, model_id: str) -> ModelOverride:
        """All that is set for a model: its own keys over the `llama_*` settings for all. A None is the catalogue's to decide."""
        from modeld.catalog.models import ModelOverride, PartialOptions

        own = self.for_model(model_id)
        ctx = self.effective(model_id, "llama_ctx")
        most = isinstance(ctx, amounts.CtxMax)
        options = PartialOptions(
            ctx=(ctx.cap or None) if most else ctx,
            ctx_max=most,
            parallel=self.effective(model_id, "llama_parallel"),
            threads=self.effective(model_id, "llama_threads"),
            ngl=self.effective(model_id, "llama_ngl"),
            batch=self.effective(model_id, "llama_batch"),
            ubatch=self.effective(model_id, "llama_ubatch"),
            kv_type=self.effective(model_id, "llama_kv_type"),
            flash_attn=self.effective(model_id, "llama_flash_attn"),
            kv_unified=self.effective(model_id, "llama_kv_unified"),
            cache_ram_mb=self.effective(model_id, "llama_cache_ram_mb"),
            ctx_checkpoints=self.effective(model_id, "llama_ctx_checkpoints"),
            extra_args=self.effective(model_id, "llama_extra_args"),
        )
        return ModelOverride(
            options=options,
            aliases=own.aliases,
            vram_mb=own.vram_mb,
            pinned=own.pinned,
            ttl_seconds=own.ttl,
            preload=own.preload,
            priority=own.priority,
            kind=own.kind,
            degrade=self.effective(model_id, "degrade"),
            lora=own.lora,
            draft=own.draft,
        )


_NOTHING_SAID = ModelSettings()


def plain_id(model_id: str) -> str:
    """The id without `.gguf`: how entries of `models` are looked up."""
    return model_id[:-5] if model_id.lower().endswith(".gguf") else model_id


def _table() -> Mapping[str, Setting]:
    found = {}
    for item in fields(Settings):
        if declared := item.metadata.get("declared"):
            found[item.name] = Setting(
                item.name,
                declared.kind,
                declared.default,
                declared.group,
                declared.help,
                declared.shown,
                declared.per_model,
                declared.secret,
            )
    return MappingProxyType(found)


def _model_table() -> Mapping[str, Setting]:
    only = (
        Setting("aliases", v.listing(), (), MEMORY, "further names for the model"),
        Setting(
            "vram_mb", v.or_none(v.integer(0, SIZE_MB_MAX, "MiB"), "auto"), "auto", MEMORY, "memory the model needs, MiB; auto = estimated"
        ),
        Setting(
            "kind",
            v.or_none(v.choice(ModelKind), "auto"),
            "auto",
            ENGINE,
            "what it is started for: generate, embed or rerank; auto = by the file's header",
        ),
        Setting("lora", v.PATHS, (), ENGINE, "adapters (LoRA) that are loaded with it, as GGUF files"),
        Setting("draft", v.or_none(v.PATH, "none"), "none", ENGINE, "GGUF file of a smaller model that guesses its next tokens"),
        Setting("pinned", v.BOOLEAN, False, MEMORY, "never evict it once it is loaded"),
        Setting("ttl", v.or_none(v.duration(zero=False), "none"), "none", MEMORY, "unload it after so long without a request"),
        Setting("preload", v.BOOLEAN, False, MEMORY, "load it when the daemon starts"),
        Setting(
            "priority",
            v.choice(Priority),
            "normal",
            LINES,
            "class of its requests: interactive, normal or batch; a request may ask for a less urgent one",
        ),
    )
    return MappingProxyType({item.key: item for item in (*(s for s in TABLE.values() if s.per_model), *only)})


TABLE: Mapping[str, Setting] = _table()
"""Every setting that flags, variables and files share, in the order of the docs."""
MODEL_TABLE: Mapping[str, Setting] = _model_table()
"""The keys an entry of `models` may carry; files only."""
