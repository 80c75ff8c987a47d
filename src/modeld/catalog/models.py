# SPDX-License-Identifier: GPL-3.0-only
"""Which models there are: scan, ids, aliases, per-model settings, name -> ModelSpec; rule: ids are look-up keys, never paths.

Ids are file names with `.gguf`:
  1. a split model `big-00001-of-00003.gguf` … is `big.gguf`;
  2. where several models would get the same id, all of them get the path below the models folder instead (`a/big.gguf`);
  3. where that still clashes (a split model beside a file `big.gguf`), the split model gets the path of its first part.

A broken file stays in the table with the reason in `unavailable`. What the operator should know besides is in `notes`.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Final

from modeld.catalog.beside import with_companions
from modeld.catalog.folder import SUFFIX, FoundFile, find_files
from modeld.catalog.headers import HASH_BYTES, Facts, HeaderCache, printable
from modeld.catalog.kinds import kind_of, modalities, reads_whole
from modeld.catalog.launch import ModelOverride, PartialOptions, resolve_options, usable_cpu_count
from modeld.catalog.layers import ENCODERS
from modeld.catalog.names import LATEST, fold, quant_by_name, shown_name, stem, tag_names
from modeld.core.model import MemoryShape, ModelId, ModelSpec
from modeld.errors import UnknownModel

__all__ = ["Catalog", "ModelOverride", "ModelTable", "PartialOptions"]

NAME_LENGTH_MAX: Final = 512
"""Longer names are unknown without a look."""
NEAR_MAX: Final = 3
NEAR_SEARCH_MAX: Final = 300
"""Names compared for near matches: a request for an unknown model must not cost more than a known one by orders of magnitude."""
MISSING_NAMED_MAX: Final = 3

_SPLIT = re.compile(r"(?P<base>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE | re.DOTALL)
_UNNAMED = ModelId("")
PROJECTOR_PREFIX: Final = "mmproj"
_NO_NAME: Final = frozenset((PROJECTOR_PREFIX, "model", "f16", "bf16", "f32", "q8_0"))
"""Words that say nothing about whose projector it is."""
PROJECTOR_FAMILY: Final = "clip"
_TOKENS = re.compile(r"[^-_.\s]+")


@dataclass(frozen=True, slots=True)
class ModelTable:
    """The catalogue at one moment. `models` is in id order; `notes` are sentences for the operator, without paths of this machine."""

    models: Mapping[ModelId, ModelSpec]
    notes: tuple[str, ...] = ()
    _names: Mapping[str, ModelId] = field(init=False, repr=False, compare=False)
    _folded: Mapping[str, ModelId | None] = field(init=False, repr=False, compare=False)
    _tags: Mapping[str, ModelId] = field(init=False, repr=False, compare=False)
    _folded_tags: Mapping[str, ModelId | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ordered = {key: self.models[key] for key in sorted(self.models)}
        names = dict(_implied_names(ordered.values()))
        for spec in ordered.values():
            for alias in spec.aliases:
                names.setdefault(alias, spec.id)
        tags = tag_names(ordered.values(), names)
        object.__setattr__(self, "models", ordered)
        object.__setattr__(self, "_names", names)
        object.__setattr__(self, "_folded", fold(names))
        object.__setattr__(self, "_tags", tags)
        object.__setattr__(self, "_folded_tags", fold(tags))

    def resolve(self, name: str) -> ModelId:
        """The id that `name` stands for; upper and lower case may be mixed up where that is unambiguous.

        1. an id, an id without `.gguf`, an alias;
        2. `base:quant` for the id `base.quant.gguf` or `base-quant.gguf`, where there is one such model;
        3. `X:latest` for whatever X stands for.

        Raises UnknownModel, which names up to three near matches.
        """
        model = self._find(name)
        if model is None:
            raise UnknownModel(self._unknown(name))
        return model

    def ollama_name(self, spec: ModelSpec) -> str:
        """The name for Ollama's lists: `base:quant`, else `stem:latest`. It resolves to the model, whatever else the table holds."""
        return shown_name(spec, self._find)

    def _find(self, name: str) -> ModelId | None:
        if len(name) > NAME_LENGTH_MAX:
            return None
        while True:
            key = name.casefold()
            found = self._names.get(name) or self._folded.get(key) or self._tags.get(name) or self._folded_tags.get(key)  # 1, 2
            if found is not None or not key.endswith(LATEST):
                return found
            name = name[: -len(LATEST)]  # 3

    def _unknown(self, name: str) -> str:
        shown = printable(name, 80) + ("…" if len(name) > 80 else "")
        if not self.models:
            return f'model "{shown}" is not here; the models folder holds no model yet'
        near = self._near(name)
        hint = f"; did you mean {' or '.join(json_quoted(item) for item in near)}?" if near else "."
        return f"model {json_quoted(shown)} is not here{hint} GET /models lists all"

    def _near(self, name: str) -> list[str]:
        """Ids and aliases that contain the name, or what stands before its tag, then those that differ in few letters."""
        if not 0 < len(name) <= NAME_LENGTH_MAX:
            return []
        wanted = name.casefold().removesuffix(SUFFIX) or SUFFIX
        aliases = (alias for spec in self.models.values() for alias in spec.aliases)
        spellings = [(item.casefold().removesuffix(SUFFIX), item) for item in (*self.models, *aliases)]
        bare = wanted.partition(":")[0] or wanted
        near = [item for key, item in spellings if wanted in key or bare in key][:NEAR_MAX]
        if len(near) < NEAR_MAX:
            close = dict.fromkeys(get_close_matches(wanted[:128], [key for key, _ in spellings[:NEAR_SEARCH_MAX]], n=NEAR_MAX))
            near += [item for wish in close for key, item in spellings if key == wish and item not in near]
        return near[:NEAR_MAX]


class Catalog:
    """Scans one folder, and remembers headers between scans.

    options_for(name) gives the operator's settings for an id, the general ones merged in; `override_names` are the names that have
    settings of their own, in the operator's spelling (an id, with or without `.gguf`): such a spelling is what options_for gets then.
    """

    def __init__(
        self,
        models_dir: Path,
        options_for: Callable[[str], ModelOverride],
        header_cache: Path | None,
        override_names: Iterable[str] = (),
    ) -> None:
        self._models_dir = models_dir
        self._options_for = options_for
        self._override_names = tuple(override_names)
        self._headers = HeaderCache(header_cache)
        self._cpu_count = usable_cpu_count()
        self._lock = threading.Lock()

    def scan(self) -> ModelTable:
        """Look at the folder as it is now. Blocks for as long as the disk does: run it in a thread. Never raises for what lies there."""
        with self._lock:
            files, notes = find_files(self._models_dir)
            facts = {file.relative: self._facts(file) for file in files}
            projectors = [file for file in files if _is_projector(file, facts[file.relative])]
            drafts = group([file for file in files if not _is_projector(file, facts[file.relative])], facts)
            _name_drafts(drafts)
            heads = {draft.id: draft.facts[0] for draft in drafts}
            notes += attach_projectors(drafts, projectors, facts)
            bare = {draft.id: bare_spec(draft, facts) for draft in drafts}
            settings, more = self._settings(bare)
            notes += more
            aliases, more = _claim_aliases(bare, settings)
            notes += more
            models = {key: self._whole(spec, heads[key], settings[key], aliases[key]) for key, spec in bare.items()}
            if note := self._headers.keep({*(file.path for file in files), *(path for spec in models.values() for path in spec.files)}):
                notes.append(note)
            return ModelTable(models, tuple(notes))

    def _whole(self, spec: ModelSpec, head: Facts, override: ModelOverride, aliases: tuple[str, ...]) -> ModelSpec:
        return with_companions(finished(spec, head, override, aliases, self._cpu_count), override.lora, override.draft, self._headers)

    def _facts(self, file: FoundFile) -> Facts:
        if file.problem or file.status is None:
            return Facts(reason=file.problem)
        return self._headers.facts(file.path, file.status)

    def _settings(self, bare: Mapping[ModelId, ModelSpec]) -> tuple[dict[ModelId, ModelOverride], list[str]]:
        """Find each model's settings, by the operator's spelling where there is one."""
        names = _implied_names(bare.values())
        spelling: dict[ModelId, str] = {}
        notes = []
        for name in sorted(self._override_names, key=lambda name: (name not in bare, name)):
            model = names.get(name)
            shown = json_quoted(printable(name, 80))
            if model is None:
                notes.append(f"settings are given for model {shown}, which is not in the models folder")
            elif model in spelling:
                notes.append(f"settings for {shown} are ignored: {json_quoted(spelling[model])} names the same model")
            else:
                spelling[model] = name
        return {model: self._options_for(spelling.get(model, model)) for model in bare}, notes


def finished(spec: ModelSpec, head: Facts, override: ModelOverride, aliases: tuple[str, ...], cpu_count: int) -> ModelSpec:
    """The spec with the operator's word, and the options that follow. `head` is what its first file says."""
    kind, pooling = kind_of(head, override.kind)
    whole = reads_whole(head, pooling)
    return replace(
        spec,
        aliases=aliases,
        kind=kind,
        pooling=pooling,
        options=resolve_options(override.options, spec.ctx_train, cpu_count, embeds=pooling != "", reads_whole=whole),
        vram_mb=override.vram_mb,
        pinned=override.pinned,
        preload=override.preload,
        ttl_seconds=override.ttl_seconds,
        priority=override.priority,
        degrade=override.degrade,
    )


@dataclass(slots=True)
class Draft:
    """A model while the table is made. `parts` are the files that are there, in order; `missing` names the first absent ones."""

    short: str
    folder: str
    parts: list[FoundFile]
    facts: list[Facts]
    split: bool = False
    missing: list[str] = field(default_factory=list)
    missing_count: int = 0
    id: ModelId = _UNNAMED
    projector: FoundFile | None = None


def json_quoted(text: str) -> str:
    """In double quotes, with quotes and backslashes escaped; `text` is printable already."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _implied_names(specs: Iterable[ModelSpec]) -> dict[str, ModelId]:
    """Names a model has by itself: its id; the id without `.gguf`; for a split model the first part's name. Ambiguous ones are left out."""
    ids: dict[str, ModelId] = {}
    claims: defaultdict[str, set[ModelId]] = defaultdict(set)
    for spec in specs:
        ids[spec.id] = spec.id
        others: list[str] = [spec.id]
        if len(spec.parts) > 1:
            others.append(spec.parts[0].rpartition("/")[2])
        for name in others:
            claims[name].add(spec.id)
            if name.lower().endswith(SUFFIX):
                claims[name[: -len(SUFFIX)]].add(spec.id)
    return {name: next(iter(owners)) for name, owners in claims.items() if len(owners) == 1} | ids


def _is_projector(file: FoundFile, facts: Facts) -> bool:
    return file.file_name.lower().startswith(PROJECTOR_PREFIX) or facts.family == PROJECTOR_FAMILY


def group(files: list[FoundFile], facts: Mapping[str, Facts]) -> list[Draft]:
    """Group the parts of split models; every other file is a model of its own."""
    drafts = []
    splits: defaultdict[tuple[str, str, int], dict[int, FoundFile]] = defaultdict(dict)
    for file in files:
        match = _SPLIT.fullmatch(file.file_name)
        number, count = (int(match["number"]), int(match["count"])) if match else (0, 0)
        if match and 1 <= number <= count:
            splits[file.folder, match["base"], count][number] = file
        else:
            drafts.append(Draft(file.file_name, file.folder, [file], [facts[file.relative]]))
    for (folder, base, count), there in splits.items():
        parts = [there[number] for number in sorted(there)]
        draft = Draft(base + SUFFIX, folder, parts, [facts[part.relative] for part in parts], split=True)
        absent = (number for number in range(1, count + 1) if number not in there)
        draft.missing = [f"{base}-{number:05d}-of-{count:05d}{SUFFIX}" for number in islice(absent, MISSING_NAMED_MAX)]
        draft.missing_count = count - len(parts)
        drafts.append(draft)
    return drafts


def _name_drafts(drafts: list[Draft]) -> None:
    """Give ids by the module's three rules; a clash that is left (unprintable names that look alike) gets a number."""
    short = Counter(draft.short for draft in drafts)

    def long(draft: Draft) -> str:
        return f"{draft.folder}/{draft.short}" if draft.folder else draft.short

    wanted = [draft.short if short[draft.short] == 1 else long(draft) for draft in drafts]
    clashes = Counter(wanted)
    taken: Counter[str] = Counter()
    for draft, name in zip(drafts, wanted, strict=True):
        if clashes[name] > 1 and draft.split:
            name = draft.parts[0].relative
        taken[name] += 1
        draft.id = ModelId(name if taken[name] == 1 else f"{name}~{taken[name]}")


def attach_projectors(drafts: list[Draft], projectors: list[FoundFile], facts: Mapping[str, Facts]) -> list[str]:
    """Attach each `mmproj*` file to the models of its folder that it belongs to; return notes on those that belong to none.

    1. One that names no model (`mmproj-F16.gguf`): to all models of its folder, when their names begin with the same word.
    2. Else to those that share most leading words with it: all words of either, or two at least.
    3. Else to the only model of a folder below the models folder: such a folder holds one model's files.
    A projector of another model would keep a healthy model from loading: in doubt it is attached to nobody, with a note.
    Where a model has several, an F16 one is preferred (every backend is fast with it), then the smallest.
    """
    notes = []
    offers: defaultdict[int, list[tuple[int, bool, int, str, FoundFile]]] = defaultdict(list)
    for projector in projectors:
        fact = facts[projector.relative]
        shown = json_quoted(projector.file_name)
        if fact.reason:
            notes.append(f"projector {shown} {fact.reason}")
            continue
        words = _words(projector.file_name)
        beside = {index: _words(draft.short) for index, draft in enumerate(drafts) if draft.folder == projector.folder}
        shared = {index: _shared(words, theirs) for index, theirs in beside.items()}
        most = max(shared.values(), default=0)
        generic = not words and len({tuple(theirs[:1]) for theirs in beside.values()}) == 1  # 1
        named = any(count == most >= min(2, len(words), len(beside[index])) > 0 for index, count in shared.items())  # 2
        alone = len(beside) == 1 and projector.folder != ""  # 3
        if not (generic or named or alone):
            why = "there is none in its folder" if not beside else "no name there matches its own"
            notes.append(f"projector {shown} belongs to no model: {why}")
            continue
        size = projector.status.st_size if projector.status else 0
        for index, count in shared.items():
            if count == most:
                offers[index].append((-count, not fact.f16, size, projector.relative, projector))
    for index, candidates in offers.items():
        drafts[index].projector = min(candidates)[-1]
    return notes


def _words(file_name: str) -> list[str]:
    words = _TOKENS.findall(file_name.lower().removesuffix(SUFFIX))
    return [word for word in words if word not in _NO_NAME]


def _shared(left: list[str], right: list[str]) -> int:
    """How many leading words are the same."""
    count = 0
    while count < min(len(left), len(right)) and left[count] == right[count]:
        count += 1
    return count


def bare_spec(draft: Draft, facts: Mapping[str, Facts]) -> ModelSpec:
    """The spec as far as the files tell."""
    head = draft.facts[0]
    files = [*draft.parts, draft.projector] if draft.projector else draft.parts
    known = [file.status for file in files if file.status]
    marks = ";".join(f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}" for status in known)
    bare = stem(draft.short)
    return ModelSpec(
        id=draft.id,
        path=draft.parts[0].path,
        parts=tuple(part.path for part in draft.parts),
        size_bytes=sum(part.status.st_size for part in draft.parts if part.status),
        fingerprint=hashlib.sha256(marks.encode()).hexdigest()[:16],
        name=head.name or bare,
        family=head.family,
        quant=head.quant or quant_by_name(bare),
        ctx_train=head.ctx_train,
        memory=_memory(draft.facts),
        header_hash=_header_hash(draft.facts),
        mmproj=draft.projector.path if draft.projector else None,
        mmproj_bytes=draft.projector.status.st_size if draft.projector and draft.projector.status else 0,
        unavailable=_unavailable(draft),
        modalities=modalities(facts[draft.projector.relative] if draft.projector else None),
        parameters=sum(part.parameters for part in draft.facts),
        size_label=head.size_label,
        embedding_length=head.embedding_length,
        vocabulary=head.vocabulary,
        logits=head.family not in ENCODERS,
        has_chat_template=head.has_chat_template,
        takes_tools=head.takes_tools,
        format_version=head.format_version,
        modified_unix=max((status.st_mtime for status in known), default=0.0),
    )


def _memory(parts: Sequence[Facts]) -> MemoryShape:
    """Of all parts: the first one says what the layers are, each adds its weights. Unknown in one is unknown in all."""
    first = parts[0]
    weights = [part.memory.weights_bytes for part in parts]
    left_out = [size for part in parts[1:] for number, size in part.blocks.items() if first.trunk and number >= first.trunk]
    return replace(
        first.memory,
        weights_bytes=max(0, sum(weights) - sum(left_out)) if all(weights) else 0,
        tied_bytes=0 if any(part.has_head for part in parts) else first.memory.tied_bytes,
        table_bytes=sum(part.memory.table_bytes for part in parts),
        head_bytes=sum(part.memory.head_bytes for part in parts),
        certain=first.memory.certain and all(weights),
    )


def _header_hash(parts: Sequence[Facts]) -> str:
    """Of all parts in their order; that of the only one where there is one."""
    if len(parts) == 1 or not all(part.header_hash for part in parts):
        return parts[0].header_hash if len(parts) == 1 else ""
    return hashlib.blake2b("".join(part.header_hash for part in parts).encode(), digest_size=HASH_BYTES).hexdigest()


def _unavailable(draft: Draft) -> str | None:
    """Why the model cannot be served, naming files but no folders; None when nothing is wrong."""
    if draft.missing:
        rest = draft.missing_count - len(draft.missing)
        more = f" and {rest} more" if rest else ""
        one = draft.missing_count == 1
        return f"{'part' if one else 'parts'} {', '.join(draft.missing)}{more} {'is' if one else 'are'} missing"
    for part, facts in zip(draft.parts, draft.facts, strict=True):
        if facts.reason:
            return f"{part.file_name} {facts.reason}"
    count = len(draft.parts)
    for index, (part, facts) in enumerate(zip(draft.parts, draft.facts, strict=True)):
        if facts.split_count != count or (count > 1 and facts.split_no != index):
            return f"{part.file_name} says it is part {facts.split_no + 1} of {facts.split_count}; its name must say the same"
    if not draft.facts[0].family:
        return f"{draft.parts[0].file_name} names no model family in its header"
    return None


def _claim_aliases(
    bare: Mapping[ModelId, ModelSpec], settings: Mapping[ModelId, ModelOverride]
) -> tuple[dict[ModelId, tuple[str, ...]], list[str]]:
    """Aliases that hold: never against an id, and the first model in id order where two want the same."""
    owners = _implied_names(bare.values())
    kept: dict[ModelId, tuple[str, ...]] = {}
    notes = []
    for model in sorted(bare):
        mine: list[str] = []
        for alias in settings[model].aliases:
            owner = owners.setdefault(alias, model)
            if owner != model:
                what = "the id" if alias in (owner, owner[: -len(SUFFIX)]) else "a name"
                notes.append(f"alias {json_quoted(printable(alias, 80))} of {model} is ignored: it is {what} of {owner}")
            elif alias != model and alias not in mine:
                mine.append(alias)
        kept[model] = tuple(mine)
    return kept, notes
