# SPDX-License-Identifier: GPL-3.0-only
"""The sources put together: precedence, where each value came from, and one line for each mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from modeld.config import Loaded, Settings, load
from modeld.config.settings import TABLE
from modeld.core.budget import Wish
from modeld.core.model import Degrade, EvictionPolicy, Limits, ModelKind, Priority
from modeld.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
Load = Callable[..., Loaded]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def loaded(tmp_path: Path, home: Path) -> Load:
    """load(flags, environment, file text, extension): a world of its own for each test."""

    def go(
        flags: Mapping[str, object] | None = None, env: Mapping[str, str] | None = None, text: str | None = None, ext: str = "yaml"
    ) -> Loaded:
        config = None
        if text is not None:
            path = tmp_path / f"c.{ext}"
            path.write_text(text)
            config = str(path)
        return load(flags, {"HOME": str(home), "PATH": "/usr/bin:/bin", **(env or {})}, config=config)

    return go


@pytest.fixture
def refused(loaded: Load) -> Callable[..., str]:
    def go(*args: object, **more: object) -> str:
        with pytest.raises(ConfigError) as caught:
            loaded(*args, **more)
        assert "\n" not in caught.value.message
        return caught.value.message

    return go


# --- precedence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "env", "text", "seconds", "source"),
    [
        ({}, {}, None, 30, "default"),
        ({}, {}, "max_wait: 3\n", 3, "file {file}:max_wait"),
        ({}, {"MODELD_MAX_WAIT": "2s"}, "max_wait: 3\n", 2, "env MODELD_MAX_WAIT"),
        ({"max_wait": "1s"}, {"MODELD_MAX_WAIT": "2s"}, "max_wait: 3\n", 1, "flag --max-wait"),
        ({"max_wait": None}, {"MODELD_MAX_WAIT": " "}, "max_wait: 3\n", 3, "file {file}:max_wait"),
    ],
)
def test_flags_over_environment_over_file_over_default(
    loaded: Load, tmp_path: Path, flags: dict[str, object], env: dict[str, str], text: str | None, seconds: float, source: str
) -> None:
    result = loaded(flags, env, text)
    assert result.settings.max_wait == seconds
    assert result.source("max_wait").short("max_wait") == source.format(file=tmp_path / "c.yaml")


def test_every_key_can_come_from_every_source(loaded: Load) -> None:
    """One sample a key, as a variable, as a flag and as a file key, gives the same settings."""
    sample = {
        "addr": "127.0.0.1:9",
        "allow_remote": "yes",
        "allowed_hosts": "a.lan,b.lan",
        "models_dir": "/m",
        "rescan_interval": "9s",
        "default_model": "x",
        "vram_budget_mb": "9000",
        "vram_margin_mb": "9",
        "host_budget_mb": "9",
        "degrade": "kv_type,ctx",
        "max_queue_depth": "9",
        "max_wait": "9s",
        "fairness_wait": "9s",
        "turn_max": "9s",
        "min_residency": "9s",
        "preempt_after": "9s",
        "eviction": "lru",
        "first_token_timeout": "9s",
        "inter_token_timeout": "9s",
        "infer_timeout": "9m",
        "sse_heartbeat": "9s",
        "drain_timeout": "9s",
        "stop_grace": "1s",
        "shutdown_timeout": "9s",
        "max_body_bytes": "9KiB",
        "max_api_body_bytes": "9MiB",
        "max_waiting_body_bytes": "9GiB",
        "adapter": "external",
        "llama_bin": "/bin/sh",
        "llama_url": "http://a:1",
        "llama_api_key": "k",
        "llama_ctx": "9000",
        "llama_parallel": "9",
        "llama_threads": "9",
        "llama_ngl": "-1",
        "llama_batch": "900",
        "llama_ubatch": "90",
        "llama_kv_type": "q8_0",
        "llama_flash_attn": "on",
        "llama_kv_unified": "off",
        "llama_cache_ram_mb": "9",
        "llama_ctx_checkpoints": "9",
        "llama_extra_args": "--jinja",
        "log_level": "debug",
        "log_format": "json",
        "trace_file": "/t/trace.jsonl",
        "cors_enabled": "true",
        "cors_allowed_origins": "https://a",
        "cors_allowed_methods": "GET",
        "cors_allowed_headers": "X-A",
        "state_dir": "/s",
        "runtime_dir": "/r",
    }
    assert list(sample) == list(TABLE)
    by_env = loaded({}, {f"MODELD_{key.upper()}": value for key, value in sample.items()})
    by_flag = loaded(sample)
    typed = {key: int(value) if TABLE[key].kind.name.startswith("integer") else value for key, value in sample.items()}
    by_file = loaded({}, {}, json.dumps(typed), "json")
    assert by_env.settings == by_flag.settings == by_file.settings
    default = loaded().settings
    assert [key for key in TABLE if getattr(default, key) == getattr(by_env.settings, key)] == []
    for result, kind in ((by_env, "env"), (by_flag, "flag"), (by_file, "file")):
        assert {source.kind for source in result.sources.values()} == {kind}
        assert set(result.sources) == set(TABLE)


def test_defaults_are_those_of_the_class(loaded: Load, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert loaded().settings == Settings()


# --- files and folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ext", ["yaml", "yml", "toml", "json"])
def test_the_users_own_file_is_found(loaded: Load, home: Path, ext: str) -> None:
    folder = home / ".config" / "modeld"
    folder.mkdir(parents=True)
    (folder / f"config.{ext}").write_text({"toml": "max_wait = 7", "json": '{"max_wait": 7}'}.get(ext, "max_wait: 7"))
    result = loaded()
    assert result.settings.max_wait == 7
    assert result.file == folder / f"config.{ext}"
    assert loaded({}, {"MODELD_CONFIG": "none"}).file is None


def test_two_files_of_the_user_are_one_too_many(refused: Callable[..., str], tmp_path: Path) -> None:
    folder = tmp_path / "xdg" / "modeld"
    folder.mkdir(parents=True)
    for ext in ("yaml", "toml"):
        (folder / f"config.{ext}").write_text("")
    assert "config.toml lies beside it" in refused({}, {"XDG_CONFIG_HOME": str(tmp_path / "xdg")})


def test_config_flag_wins_over_its_variable(tmp_path: Path, home: Path) -> None:
    for name, wait in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.yaml").write_text(f"max_wait: {wait}\n")
    env = {"HOME": str(home), "MODELD_CONFIG": str(tmp_path / "a.yaml")}
    assert load({}, env).settings.max_wait == 1
    assert load({}, env, config=str(tmp_path / "b.yaml")).settings.max_wait == 2
    assert load({}, env, config="none").settings.max_wait == 30
    with pytest.raises(ConfigError, match=r'^environment MODELD_CONFIG: key "config": ".*nope.yaml" does not exist$'):
        load({}, {**env, "MODELD_CONFIG": str(tmp_path / "nope.yaml")})
    with pytest.raises(ConfigError, match=r"^flag --config: "):
        load({}, env, config="")


def test_relative_paths_start_at_the_file(loaded: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert loaded({}, {}, "models_dir: m\n").settings.models_dir == tmp_path / "m"
    assert loaded({"models_dir": "m"}, {}, "max_wait: 1\n").settings.models_dir == tmp_path / "elsewhere" / "m"
    assert loaded({}, {"MODELD_MODELS_DIR": "m"}).settings.models_dir == tmp_path / "elsewhere" / "m"
    assert loaded({}, {}, "addr: unix:s.sock\n").settings.addr.unix_path == str(tmp_path / "s.sock")


def test_folders_follow_xdg(loaded: Load, home: Path) -> None:
    bare = loaded().settings
    assert bare.models_dir == home / "models" / "llm"
    assert bare.state_dir == home / ".local" / "state" / "modeld"
    assert bare.runtime_dir.name.startswith("modeld")
    given = loaded({}, {"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r"}).settings
    assert (given.state_dir, given.runtime_dir) == (Path("/s/modeld"), Path("/r/modeld"))
    assert loaded({}, {"XDG_STATE_HOME": "relative"}).settings.state_dir == bare.state_dir


def test_again_reads_the_file_anew(loaded: Load, tmp_path: Path) -> None:
    first = loaded({"max_queue_depth": "3"}, {}, "max_wait: 1\n")
    (tmp_path / "c.yaml").write_text("max_wait: 2\n")
    second = first.again()
    assert (second.settings.max_wait, second.settings.max_queue_depth) == (2, 3)
    (tmp_path / "c.yaml").write_text("max_wait: x\n")
    with pytest.raises(ConfigError):
        first.again()
    assert first.settings.max_wait == 1


# --- mistakes: source, key, value, nearest ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "env", "text", "message"),
    [
        ({}, {}, "vram_budgt_mb: 5\n", 'file {file}: key "vram_budgt_mb" = 5 is not known; did you mean "vram_budget_mb"?'),
        ({}, {}, "zzz: 5\n", 'file {file}: key "zzz" = 5 is not known'),
        (
            {},
            {"MODELD_VRAM_BUDGT_MB": "5"},
            None,
            'environment MODELD_VRAM_BUDGT_MB: key "vram_budgt_mb" = "5" is not known; did you mean MODELD_VRAM_BUDGET_MB?',
        ),
        ({}, {"MODELD_CONFG": "5"}, None, 'environment MODELD_CONFG: key "confg" = "5" is not known; did you mean MODELD_CONFIG?'),
        ({"vram_budgt_mb": "5"}, {}, None, "flag --vram-budgt-mb is not known; did you mean --vram-budget-mb?"),
        ({}, {"MODELD_MODELS": "{}"}, None, 'environment MODELD_MODELS: key "models" can be set in a file only'),
        ({}, {}, "vram_budget_mb: many\n", 'file {file}: key "vram_budget_mb": "many" is not a whole number of MiB from 0 to 1073741824'),
        ({}, {}, "vram_budget_mb: -1\n", 'file {file}: key "vram_budget_mb": -1 is not a whole number'),
        ({}, {}, "vram_budget_mb: [1]\n", 'file {file}: key "vram_budget_mb": [1] is a list where one value belongs'),
        ({}, {}, "addr:\n", 'file {file}: key "addr": null is not a line of text'),
        ({}, {"MODELD_MAX_WAIT": "soon"}, None, 'environment MODELD_MAX_WAIT: key "max_wait": "soon" is not a duration'),
        ({"max_wait": "-1s"}, {}, None, 'flag --max-wait: key "max_wait": "-1s" is negative; it must be above 0'),
        ({}, {}, "fairness_wait: -5\n", 'file {file}: key "fairness_wait": -5 is negative; it must be above 0'),
        ({}, {}, "fairness_wait: 0\n", 'file {file}: key "fairness_wait": 0 is too short; this duration must be above 0'),
        (
            {},
            {"MODELD_MIN_RESIDENCY": "-1m"},
            None,
            'environment MODELD_MIN_RESIDENCY: key "min_residency": "-1m" is negative; 0s is the least',
        ),
        ({"turn_max": "-1"}, {}, None, 'flag --turn-max: key "turn_max": "-1" is negative; 0s is the least (or "auto")'),
        (
            {},
            {},
            "preempt_after: 0\n",
            'file {file}: key "preempt_after": 0 is too short; this duration must be above 0 (or "off")',
        ),
        ({"eviction": "lfu"}, {}, None, 'flag --eviction: key "eviction": "lfu" is not one of lru, cost; did you mean "lru"?'),
        (
            {},
            {},
            "models: {a: {priority: interactiv}}\n",
            'key "models.a.priority": "interactiv" is not one of interactive, normal, batch; did you mean "interactive"?',
        ),
        ({}, {}, "models: {a: {kind: embedding}}\n", '"embedding" is not one of auto, generate, embed, rerank; did you mean'),
        ({"kind": "embed"}, {}, None, "--kind"),
        ({}, {}, "models: {a: {fairness_wait: 5}}\n", 'key "models.a.fairness_wait" = 5 cannot be set for one model'),
        ({}, {}, "models: {a: {priorty: batch}}\n", 'key "models.a.priorty" = "batch" is not known; did you mean "priority"?'),
        (
            {},
            {},
            "log_level: warnin\n",
            'file {file}: key "log_level": "warnin" is not one of debug, info, warning, error; did you mean "warning"?',
        ),
        (
            {},
            {},
            "adapter: externl\n",
            'file {file}: key "adapter": "externl" is not one of auto, embedded, llama-server, external; did you mean "external"?',
        ),
        ({"max_wait": "1s"}, {}, "max_wait: soon\n", 'file {file}: key "max_wait": "soon" is not a duration'),
        ({}, {}, "models: [a]\n", 'file {file}: key "models": ["a"] is not a mapping'),
        ({}, {}, "models: {a: 5}\n", 'file {file}: key "models.a": 5 is not a mapping'),
        ({}, {}, "models: {a: {ttll: 5}}\n", 'file {file}: key "models.a.ttll" = 5 is not known; did you mean "ttl"?'),
        ({}, {}, "models: {a: {max_wait: 5}}\n", 'file {file}: key "models.a.max_wait" = 5 cannot be set for one model'),
        ({}, {}, "models: {a: {llama_url: 'http://a'}}\n", "cannot be set for one model"),
        ({}, {}, "models: {a: {ttl: x}}\n", 'file {file}: key "models.a.ttl": "x" is not a duration'),
        ({}, {}, "models: {a: {gguf: {ttl: 1}}}\n", 'an id with a dot stands in quotes: "a.gguf"'),
        ({}, {}, "models: {a: {}, a.gguf: {}}\n", 'key "models.a.gguf" stands there twice'),
        ({}, {}, "models: {'': {}}\n", "is not a model id"),
    ],
)
def test_each_mistake_is_one_line(
    refused: Callable[..., str], tmp_path: Path, flags: dict[str, object], env: dict[str, str], text: str | None, message: str
) -> None:
    assert (
        message.format(file=tmp_path / "c.yaml") in refused(flags, env, text)
        if "{file}" in message
        else message in refused(flags, env, text)
    )


def test_a_secret_is_not_told(refused: Callable[..., str], loaded: Load) -> None:
    assert "hunter" not in refused({"llama_api_key": "hunter two"})
    assert "hunter" not in repr(loaded({"llama_api_key": "hunter2"}))


def test_what_an_orchestrator_adds_is_not_ours(loaded: Load, refused: Callable[..., str]) -> None:
    """A service called modeld gives every container MODELD_PORT=tcp://… and its like; alone, MODELD_PORT is a mistake."""
    added = {
        "MODELD_PORT": "tcp://10.0.0.1:8080",
        "MODELD_SERVICE_HOST": "10.0.0.1",
        "MODELD_SERVICE_PORT": "8080",
        "MODELD_SERVICE_PORT_HTTP": "8080",
        "MODELD_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "MODELD_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    assert loaded({}, added).sources == {}
    assert "MODELD_PORT" in refused({}, {"MODELD_PORT": "8080"})
    assert "MODELD_PORTT" in refused({}, {**added, "MODELD_PORTT": "1"})


def test_files_that_cannot_be_read(refused: Callable[..., str], tmp_path: Path) -> None:
    assert re.match(r"file .*c\.toml: is not valid TOML: .*line 1", refused({}, {}, "a = \n", "toml"))
    assert "must end in .yaml" in refused({}, {}, "a=1", "ini")


# --- models -----------------------------------------------------------------------------------------------------------


def test_a_model_is_found_with_and_without_its_ending(loaded: Load, tmp_path: Path) -> None:
    text = (
        "llama_ctx: 4096\nllama_threads: 2\nmodels:\n  a.gguf: {llama_ctx: 1024, ttl: 5m, aliases: [x]}\n"
        "  b: {pinned: true, vram_mb: 7, priority: batch}\n  c:\n  d: {llama_ctx: auto}\n"
        "  e: {kind: RERANK}\n  f: {kind: auto}\n"
    )
    result = loaded({}, {}, text)
    settings = result.settings
    for name in ("a", "a.gguf"):
        over = settings.override_for(name)
        assert (over.options.ctx, over.options.threads, over.ttl_seconds, over.aliases) == (1024, 2, 300, ("x",))
    assert settings.override_for("b.gguf").pinned
    assert settings.override_for("b.gguf").vram_mb == 7
    assert settings.override_for("b.gguf").priority is Priority.BATCH
    assert settings.override_for("a.gguf").priority is Priority.NORMAL
    assert [settings.override_for(name).kind for name in "aef"] == [None, ModelKind.RERANK, None]
    assert settings.override_for("c.gguf") == settings.override_for("other.gguf")
    assert settings.override_for("d.gguf").options.ctx is None
    assert settings.override_for("other.gguf").options.ctx == 4096
    assert result.source("models.a.ttl").short("models.a.ttl") == f"file {tmp_path / 'c.yaml'}:models.a.ttl"


def test_limits_are_what_the_scheduler_takes(loaded: Load) -> None:
    limits = loaded({"vram_budget_mb": "100", "vram_margin_mb": "9", "max_wait": "4s"}).settings.limits()
    assert list(limits.budget_mb.values()) == [100]
    assert (limits.margin_mb, limits.wait_max_seconds, limits.queue_depth_max, limits.waiting_bytes_max) == (9, 4, 32, 256 << 20)


def test_limits_of_fairness(loaded: Load) -> None:
    flags = {
        "fairness_wait": "7s",
        "turn_max": "3s",
        "min_residency": "2s",
        "preempt_after": "4s",
        "eviction": "lru",
        "first_token_timeout": "90s",
        "inter_token_timeout": "0",
    }
    limits = loaded(flags).settings.limits()
    assert (limits.fairness_wait_seconds, limits.turn_seconds, limits.min_residency_seconds, limits.preempt_after_seconds) == (7, 3, 2, 4)
    assert (limits.eviction, limits.first_token_seconds, limits.inter_token_seconds) == (EvictionPolicy.LRU, 90, 0)
    assert loaded({"turn_max": "auto", "fairness_wait": "7s"}).settings.limits().turn_seconds == 7
    assert loaded({}, {}, "preempt_after: off\n").settings.limits().preempt_after_seconds is None


def test_what_is_not_set_is_what_the_scheduler_has_by_itself(loaded: Load) -> None:
    assert loaded().settings.limits() == Limits()


def test_limits_of_a_budget_that_is_not_known_yet(loaded: Load) -> None:
    """What auto comes to is known when the machine has been looked at."""
    assert loaded({"vram_budget_mb": "CUDA0=5,CUDA1=7"}).settings.limits().budget_mb == {"local/CUDA0": 5, "local/CUDA1": 7}
    assert loaded({"vram_budget_mb": "auto"}).settings.limits().budget_mb == {"local/all": 0}
    assert loaded({"vram_margin_mb": "3"}).settings.budget_wish() == Wish(None, 3, None)
    assert loaded({"vram_budget_mb": "0", "host_budget_mb": "8"}).settings.budget_wish() == Wish(0, 0, 8)


def test_the_most_context_and_what_may_be_given_up(loaded: Load) -> None:
    text = "llama_ctx: max\ndegrade: [ctx]\nmodels: {a: {llama_ctx: 'max:4096', degrade: none}, b: {llama_ctx: 512, degrade: [ngl, ctx]}}\n"
    settings = loaded({}, {}, text).settings
    found = {name: settings.override_for(f"{name}.gguf") for name in "abc"}
    assert [(one.options.ctx, one.options.ctx_max) for one in found.values()] == [(4096, True), (512, False), (None, True)]
    assert [one.degrade for one in found.values()] == [(), (Degrade.NGL, Degrade.CTX), (Degrade.CTX,)]
    assert loaded().settings.override_for("a.gguf").degrade == ()


# --- the examples that come with modeld -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "configs").iterdir()), ids=lambda path: path.name)
def test_each_example_loads(path: Path, home: Path) -> None:
    assert load({}, {"HOME": str(home)}, config=str(path)).file == path


def test_the_full_example_shows_every_default(home: Path, tmp_path: Path) -> None:
    """With every key uncommented it changes nothing, and it leaves none out."""
    text = re.sub(r"^#(?=[a-z_]+ = |\[)", "", (ROOT / "configs" / "full.toml").read_text(), flags=re.MULTILINE)
    path = tmp_path / "full.toml"
    path.write_text(text)
    result = load({}, {"HOME": str(home), "XDG_RUNTIME_DIR": "/run"}, config=str(path))
    assert set(TABLE) <= set(result.sources)
    default = load({}, {"HOME": str(home), "XDG_RUNTIME_DIR": "/run"}).settings
    assert {key: getattr(result.settings, key) for key in TABLE} == {key: getattr(default, key) for key in TABLE}
