# SPDX-License-Identifier: GPL-3.0-only
"""`modeld inspect FILE…`: what a model is and what it costs, part by part; rule: no daemon, no settings, nothing is loaded.

With --json standard output holds one object a line, with the keys of `KEYS` in that order, and nothing else; what cannot be answered is
said on standard error, and the other files are answered all the same.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from modeld.catalog.launch import ModelOverride
    from modeld.core.footprint import Known
    from modeld.core.inspection import Inspection
    from modeld.core.model import ModelSpec

KEYS = (
    *("id", "path", "arch", "family", "quant", "params", "file_bytes", "ctx_train", "ctx", "parallel"),
    *("weights_bytes", "kv_bytes", "compute_bytes", "host_bytes", "total_bytes", "source"),
)
_FLAGS = ("ctx", "parallel", "ubatch", "kv_type", "flash_attn", "ngl")
"""Flags that stand for the setting `llama_…` of the same name, and take what that takes."""
_PARAMETER_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"))


def _inspect(files: tuple[str, ...], mmproj: str | None, unified: bool | None, probe: bool, as_json: bool, **flags: str | None) -> None:
    from modeld.cli import client
    from modeld.cli.probing import ask
    from modeld.core.inspection import inspection
    from modeld.errors import ModeldError

    override = _override(flags, unified)
    failed = 0
    for number, file in enumerate(files):
        try:
            spec = _model(file, mmproj, override)
        except ModeldError as error:
            click.echo(f"modeld: {client.plain(error.message)}", err=True)
            failed += 1
            continue
        known, note = ask(spec) if probe else (_nothing_known(), "")
        if note:
            click.echo(f"modeld: {client.plain(Path(file).name)}: {client.plain(note)}", err=True)
        seen = inspection(spec, known)
        if as_json:
            click.echo(json.dumps(as_data(spec, seen)))
        else:
            click.echo(("\n" if number else "") + as_text(spec, seen))
    if failed:
        raise click.exceptions.Exit(1)


def as_data(spec: ModelSpec, seen: Inspection) -> dict[str, Any]:
    """The object for programs. Sizes in bytes."""
    values = (
        *(spec.id, spec.path, spec.family, spec.family, spec.quant, spec.parameters, spec.size_bytes, spec.ctx_train),
        *(spec.options.ctx, spec.options.parallel, seen.weights_bytes, seen.kv_bytes, seen.compute_bytes, seen.host_bytes),
        *(seen.total_bytes, str(seen.source)),
    )
    return dict(zip(KEYS, values, strict=True))


def as_text(spec: ModelSpec, seen: Inspection) -> str:
    """The same for people: what it is, then what it costs."""
    from modeld.cli import client

    facts = [(name, text) for name, text in _facts(spec, seen) if text]
    wide = max(len(name) for name, _ in facts)
    lines = [client.plain(spec.id), *(f"  {name.ljust(wide)}  {client.plain(text)}" for name, text in facts), ""]
    most = max((part.bytes for part in seen.parts), default=0)
    amounts = [client.mib(part.bytes) for part in seen.parts] + [client.mib(seen.total_bytes)]
    wide = max(len(amount) for amount in amounts)
    rows = [
        [f"  {part.name}", amount.rjust(wide), _certainty(part.name, str(part.source), seen), client.bar(part.bytes, most)]
        for part, amount in zip(seen.parts, amounts, strict=False)
    ]
    rows.append(["  sum", amounts[-1].rjust(wide), str(seen.source), ""])
    rows += [[f"  {part.name}", client.mib(part.bytes).rjust(wide), "a bound, not in the sum", ""] for part in seen.outside]
    lines.append(client.table(["  PART", "MiB".rjust(wide), "SOURCE", ""], rows))
    return "\n".join(lines)


def parameters(count: int) -> str:
    """A number of parameters as people say it."""
    for unit, letter in _PARAMETER_UNITS:
        if count >= unit:
            return f"{count / unit:.3g}{letter} parameters"
    return f"{count} parameters" if count else "unknown number of parameters"


def _facts(spec: ModelSpec, seen: Inspection) -> list[tuple[str, str]]:
    from modeld.cli.client import mib

    options = spec.options
    files = f"{len(spec.parts)} files" if len(spec.parts) > 1 else "1 file"
    slots = f"{options.parallel} slot{'s' if options.parallel > 1 else ''}"
    shared = "one cache for all" if options.kv_unified else "a cache for each"
    trained = f"trained for {spec.ctx_train}" if spec.ctx_train else "the header does not say what it was trained for"
    template = "chat template" + (", calls tools" if spec.takes_tools else "") if spec.has_chat_template else "no chat template"
    layers = ", ".join(f"{layers.count} {layers.kind}" for layers in seen.layers)
    launch = f"KV {options.kv_type}, flash attention {options.flash_attn}, ubatch {options.ubatch}, "
    return [
        ("name", spec.name),
        (
            "model",
            f"{spec.family}, {parameters(spec.parameters)}, {spec.quant or 'unknown quantisation'}, {mib(spec.size_bytes)} MiB in {files}",
        ),
        (
            "kind",
            f"{spec.kind}" + (f", pooling {spec.pooling}" if spec.pooling else "") + f"; takes {', '.join(spec.modalities)}; {template}",
        ),
        ("layers", f"{spec.memory.layers}: {layers}" if layers else ""),
        ("context", f"{trained}; here {options.ctx} over {slots}, {shared}"),
        ("launch", launch + ("all layers on the device" if options.ngl < 0 else f"{options.ngl} layers on the device")),
        ("projector", Path(spec.mmproj).name if spec.mmproj else ""),
    ]


def _certainty(name: str, source: str, seen: Inspection) -> str:
    """Where a figure comes from, and how sure it is."""
    from modeld.core.inspection import CONTEXT, WEIGHTS

    if name.startswith((WEIGHTS, CONTEXT)) and name != "context checkpoints":
        return "header, to the byte" if seen.certain else "header; this family was never compared"
    return {"formula": "formula, a bound", "probed": "probed: llama.cpp's own"}.get(source, source)


# --- what was asked for -----------------------------------------------------------------------------------------------


def _override(flags: dict[str, str | None], unified: bool | None) -> ModelOverride:
    """The flags as launch options. Raises UsageError."""
    from modeld.catalog.launch import ModelOverride, PartialOptions

    given = {name: _value(name, text) for name in _FLAGS if (text := flags.get(name)) is not None}
    return ModelOverride(options=PartialOptions(kv_unified=unified, **given))


def _value(name: str, text: str) -> Any:
    """A flag read as its setting is. Raises UsageError."""
    from modeld.config.amounts import CtxMax
    from modeld.config.settings import TABLE
    from modeld.config.values import Context, Unacceptable, quoted

    try:
        value = TABLE[f"llama_{name}"].kind.parse(text, Context({}, Path(), text=True))
    except Unacceptable as error:
        raise click.UsageError(f"--{name.replace('_', '-')}: {quoted(text)} {error}") from None
    if isinstance(value, CtxMax):
        raise click.UsageError(f"--ctx: {quoted(text)} depends on a budget; name tokens, or ask `modeld plan` for the largest context")
    return value


def _model(file: str, mmproj: str | None, override: ModelOverride) -> ModelSpec:
    """The model at `file`, if it can be launched so. Raises ModelUnavailable, BadRequest."""
    from modeld.catalog.alone import model_at
    from modeld.core.memory import ROW_BYTES, flash
    from modeld.errors import BadRequest

    spec = model_at(Path(file), override, None if mmproj is None else Path(mmproj))
    kv_type = spec.options.kv_type
    if ROW_BYTES[kv_type][0] > 1 and not flash(spec.memory, spec.options):
        why = "the family runs without it" if spec.memory.no_flash else "--flash-attn off"
        raise BadRequest(f"{file}: llama.cpp refuses a {kv_type} cache without flash attention ({why}); take f16, bf16 or f32")
    return spec


def _nothing_known() -> Known:
    from modeld.core.footprint import Known

    return Known()


def _complete_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """GGUF files, and the folders on the way to them."""
    folder, _, start = incomplete.rpartition("/")
    try:
        with os.scandir(folder or ("/" if incomplete.startswith("/") else ".")) as entries:
            found = [entry.name + ("/" if entry.is_dir() else "") for entry in entries if entry.name.startswith(start)]
    except OSError:
        return []
    names = [name for name in sorted(found) if name.endswith("/") or name.lower().endswith(".gguf")]
    return [CompletionItem(f"{folder}/{name}" if folder or incomplete.startswith("/") else name) for name in names]


def _kv_types(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from modeld.core.model import KvType

    return [CompletionItem(word) for word in KvType if word.startswith(incomplete)]


command = click.Command(
    name="inspect",
    callback=_inspect,
    params=[
        click.Argument(["files"], metavar="FILE...", nargs=-1, required=True, shell_complete=_complete_files),
        click.Option(["--ctx"], metavar="N", help="Tokens of context over all slots.  [default: the model's own, at most 8192]"),
        click.Option(["--parallel"], metavar="N", help="Slots.  [default: 4]"),
        click.Option(["--unified/--no-unified"], default=None, help="One cache for all slots, or one for each.  [default: one for all]"),
        click.Option(["--ubatch"], metavar="N", help="Physical batch in tokens.  [default: 512]"),
        click.Option(
            ["--kv-type"], metavar="TYPE", help="Type of the cache: f16, bf16, f32, q8_0, q4_0, …  [default: f16]", shell_complete=_kv_types
        ),
        click.Option(["--flash-attn"], metavar="on|off|auto", help="Flash attention.  [default: auto]"),
        click.Option(["--ngl"], metavar="N", help="Layers on the device; 0 = all on the CPU, -1 = all on the device.  [default: -1]"),
        click.Option(
            ["--mmproj"], metavar="FILE", help="Its projector.  [default: the one that lies beside it]", shell_complete=_complete_files
        ),
        click.Option(["--probe/--no-probe"], default=True, help="Ask llama.cpp for its compute buffers (default), or use the formula."),
        click.Option(["as_json", "--json"], is_flag=True, help="Print one JSON object a line, and nothing else."),
    ],
    help="""\
Say what a model file is, and what it would cost, part by part.

Nothing is loaded, and no daemon is asked. Of a split model any part names the whole. Weights and context follow from the header to the
byte; the compute buffers are asked of llama.cpp itself, which allocates nothing for the answer. docs/memory.md explains each figure.

\b
modeld inspect model.gguf
modeld inspect model.gguf --ctx 32768 --kv-type q8_0
modeld inspect big-00001-of-00003.gguf --ngl 0
modeld inspect *.gguf --json | jq -s 'map({id, total_bytes})'""",
)
