# SPDX-License-Identifier: GPL-3.0-only
"""Puts the settings together; rule: flags > environment > file > defaults, and the first thing wrong ends it with one line.

The file is the one `--config` names, else `MODELD_CONFIG`, else `config.yaml` (.yml, .toml, .json) in `$XDG_CONFIG_HOME/modeld` if it is
there; `none` reads no file. Relative paths start at the file's folder in a file, and at the current folder in flags and variables. An
empty variable counts as not set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modeld.config import files
from modeld.config.checks import findings
from modeld.config.declaration import Setting
from modeld.config.settings import MODEL_TABLE, TABLE, ModelSettings, Settings, plain_id
from modeld.config.values import Context, Unacceptable, nearest, quoted
from modeld.errors import ConfigError

CONFIG_ENV = "MODELD_CONFIG"
NO_FILE = "none"
MODELS_MAX = 10_000
SECRET_SHOWN = "********"  # noqa: S105  what is shown instead

_ORCHESTRATOR = re.compile(r"MODELD_(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_\d+_(?:TCP|UDP)(?:_[A-Z]+)?)")
"""What container orchestrators add by themselves when a service is called modeld; with MODELD_PORT=tcp://… they are not ours."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value came from. `kind` is flag, env, file or default; `name` the flag, the variable or the path."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return {"flag": f"flag {self.name}", "env": f"environment {self.name}", "file": f"file {self.name}"}.get(self.kind, "default")

    def short(self, key: str) -> str:
        """As `config show` prints it: flag, env NAME, file PATH:key or default."""
        return {"flag": f"flag {self.name}", "env": f"env {self.name}", "file": f"file {self.name}:{key}"}.get(self.kind, "default")


DEFAULT = Source("default")


@dataclass(frozen=True, slots=True)
class Loaded:
    """The effective settings, the source of each key (`models.ID.KEY` for a model's own), and the file read, if any."""

    settings: Settings
    sources: Mapping[str, Source]
    file: Path | None = None
    flags: Mapping[str, object] = field(default_factory=dict, repr=False)
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    config: str | None = None

    def source(self, key: str) -> Source:
        return self.sources.get(key, DEFAULT)

    def again(self) -> Loaded:
        """The same flags and environment over the file as it is now. Raises ConfigError; this one stays valid."""
        return load(self.flags, self.environ, config=self.config)


def load(flags: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None, *, config: str | None = None) -> Loaded:
    """Reads and checks everything. Raises ConfigError, one line that names source, key and value.

    flags    setting key -> text, bool, or a sequence of text for lists; None = not given
    environ  os.environ when None
    config   what --config said, or None
    """
    environ = dict(os.environ if environ is None else environ)
    flags = {key: value for key, value in (flags or {}).items() if value is not None and value != ()}
    here = Context(environ, Path.cwd(), text=True)
    path = _find_file(config, environ, here)
    content: dict[str, Any] = {}
    if path is not None:
        try:
            content = files.read(path)
        except files.Unreadable as error:
            raise ConfigError(f"file {shown_path(path)}: {error}") from None
    values: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    in_file = Context(environ, path.parent if path else Path.cwd(), text=False)
    for key, raw, source in _given(flags, environ, content, path):
        if key == "models":
            values[key] = _models(raw, source, in_file, sources)
            continue
        values[key] = _parse(TABLE[key], key, raw, source, in_file if source.kind == "file" else here)
        sources[key] = source
    for key, declared in TABLE.items():
        if key not in values:
            values[key] = declared.default_value(in_file)
    settings = Settings(**values)
    loaded = Loaded(settings, MappingProxyType(sources), path, MappingProxyType(flags), MappingProxyType(environ), config)
    _check(loaded)
    return loaded


def shown_path(path: Path) -> str:
    """A path on one line."""
    return files.one_line(str(path)) if not str(path).isprintable() else str(path)


def _find_file(config: str | None, environ: Mapping[str, str], here: Context) -> Path | None:
    source, text = ("flag --config", config) if config is not None else (f"environment {CONFIG_ENV}", environ.get(CONFIG_ENV, ""))
    if text.strip():
        if text.strip() == NO_FILE:
            return None
        path = _absolute(text.strip(), here)
        if not path.exists():
            raise ConfigError(f'{source}: key "config": {quoted(text)} does not exist')
        return path
    if config is not None:
        raise ConfigError('flag --config: key "config": "" is not a path')
    base = environ.get("XDG_CONFIG_HOME", "")
    folder = _absolute(f"{base if base.startswith('/') else '~/.config'}/modeld", here)
    found = [folder / f"config{extension}" for extension in files.EXTENSIONS if (folder / f"config{extension}").is_file()]
    if len(found) > 1:
        raise ConfigError(f"file {shown_path(found[0])}: {found[1].name} lies beside it; keep one, or name one with --config")
    return found[0] if found else None


def _absolute(text: str, here: Context) -> Path:
    from modeld.config.values import expand

    try:
        return expand(text, here)
    except Unacceptable as error:
        raise ConfigError(f"file {quoted(text)}: {error}") from None


def _given(
    flags: Mapping[str, object], environ: Mapping[str, str], content: Mapping[str, Any], path: Path | None
) -> Iterator[tuple[str, object, Source]]:
    """Each key that is set anywhere, once, from the strongest source. Unknown names in any source raise."""
    seen: set[str] = set()
    for key, raw in flags.items():
        if key not in TABLE:
            raise ConfigError(f"flag {_flag(key)} is not known{nearest(_flag(key), [item.flag for item in TABLE.values()], '')}")
        seen.add(key)
        yield key, raw, Source("flag", TABLE[key].flag)
    by_env = {item.env: key for key, item in TABLE.items()}
    for name in sorted(environ):
        if not name.startswith("MODELD_") or name == CONFIG_ENV or _from_orchestrator(name, environ):
            continue
        if name == "MODELD_MODELS":
            raise ConfigError('environment MODELD_MODELS: key "models" can be set in a file only')
        if name not in by_env:
            hint = nearest(name, [*by_env, CONFIG_ENV], "")
            raise ConfigError(f"environment {name}: key {quoted(name[7:].lower())} = {quoted(environ[name])} is not known{hint}")
        key = by_env[name]
        if environ[name].strip() and key not in seen:
            seen.add(key)
            yield key, environ[name], Source("env", name)
    source = Source("file", shown_path(path) if path else "")
    known = [*TABLE, "models"]
    for key, raw in content.items():
        if key not in known:
            raise ConfigError(f"{source}: key {quoted(key)} = {quoted(raw)} is not known{nearest(key, known)}")
        if key not in seen:
            yield key, raw, source
        elif key in TABLE:
            # The stronger source wins, but a file that holds nonsense is wrong all the same.
            _parse(TABLE[key], key, raw, source, Context(environ, path.parent if path else Path.cwd(), text=False))


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _from_orchestrator(name: str, environ: Mapping[str, str]) -> bool:
    linked = re.match(r"(?:tcp|udp)://", environ.get("MODELD_PORT", ""))
    return bool(linked) and (name == "MODELD_PORT" or _ORCHESTRATOR.fullmatch(name) is not None)


def _parse(declared: Setting, key: str, raw: object, source: Source, ctx: Context) -> Any:
    try:
        if isinstance(raw, (list, tuple)) and not declared.kind.is_list:
            raise Unacceptable("is a list where one value belongs")
        return declared.kind.parse(raw, ctx)
    except Unacceptable as error:
        value = SECRET_SHOWN if declared.secret else quoted(raw)
        raise ConfigError(f"{source}: key {quoted(key)}: {value} {error}") from None


def _models(raw: object, source: Source, ctx: Context, sources: dict[str, Source]) -> Mapping[str, ModelSettings]:
    """The entries of `models`, by id without `.gguf`; notes the source of each key."""
    if raw is None:
        return MappingProxyType({})
    if not isinstance(raw, dict) or len(raw) > MODELS_MAX:
        raise ConfigError(f'{source}: key "models": {quoted(raw)} is not a mapping of model ids to their settings')
    found: dict[str, ModelSettings] = {}
    for name, entry in raw.items():
        if plain_id(name) in found:
            raise ConfigError(f"{source}: key {quoted(f'models.{name}')} stands there twice, with and without .gguf")
        found[plain_id(name)] = _model(name, entry, source, ctx, sources)
    return MappingProxyType(found)


def _model(name: str, entry: object, source: Source, ctx: Context, sources: dict[str, Source]) -> ModelSettings:
    where = f"models.{name}"
    if not name.strip() or not name.isprintable() or len(name) > 1000:
        raise ConfigError(f"{source}: key {quoted(where)} is not a model id")
    if entry is None:
        return ModelSettings()
    if not isinstance(entry, dict):
        raise ConfigError(f"{source}: key {quoted(where)}: {quoted(entry)} is not a mapping of settings")
    values: dict[str, Any] = {}
    for key, raw in entry.items():
        if key not in MODEL_TABLE:
            raise ConfigError(f"{source}: key {quoted(f'{where}.{key}')} = {quoted(raw)} {_unknown_model_key(name, key, raw)}")
        value = _parse(MODEL_TABLE[key], f"{where}.{key}", raw, source, ctx)
        sources[f"models.{plain_id(name)}.{key}"] = source
        values[key] = value
    return ModelSettings(**values, said=frozenset(values))


def _unknown_model_key(name: str, key: str, raw: object) -> str:
    if key.lower() == "gguf" and isinstance(raw, dict):
        return f'is not known; an id with a dot stands in quotes: "{name}.gguf"'
    if key in TABLE:
        return "cannot be set for one model"
    return f"is not known{nearest(key, list(MODEL_TABLE))}"


def _check(loaded: Loaded) -> None:
    for found in findings(loaded.settings):
        source = loaded.source(found.key)
        if source is DEFAULT and found.key.startswith("models."):
            source = Source("file", shown_path(loaded.file) if loaded.file else "")
        if source is DEFAULT and found.other and loaded.source(found.other) is not DEFAULT:
            source = loaded.source(found.other)  # nobody set the key itself: name who made it impossible
        value = "" if found.value is None else f" {quoted(found.value)}"
        raise ConfigError(f"{source}: key {quoted(found.key)}:{value} {found.text}")


def flag_values(key: str, given: Sequence[str]) -> object:
    """What a repeated flag means: all values of a list, else the last."""
    return tuple(given) if TABLE[key].kind.is_list else (given[-1] if given else None)


def parse_flag(key: str, text: str) -> Any:
    """One setting alone, as its flag would be read. Raises ConfigError."""
    return _parse(TABLE[key], key, text, Source("flag", TABLE[key].flag), Context(dict(os.environ), Path.cwd(), text=True))
