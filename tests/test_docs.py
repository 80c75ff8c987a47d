# SPDX-License-Identifier: GPL-3.0-only
"""docs/ keeps up with the code: generated parts are current, nothing that exists is left out, links lead somewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from modeld import errors
from modeld.api import schemas
from modeld.api.metrics import Metrics
from modeld.api.protocol import ProtocolLimits
from modeld.api.server import EdgeOptions, build_app
from modeld.catalog import launch
from modeld.catalog.models import ModelTable
from modeld.cli.inspect import KEYS
from modeld.config.settings import TABLE
from modeld.core.estimate import need
from modeld.core.footprint import Source
from modeld.core.lifecycle import Signal, State, as_markdown
from modeld.core.model import AttentionLayers, KvType, LaunchOptions, MemoryShape, ModelId, ModelSpec, Widths
from modeld.core.whatif import Verdict
from modeld.runtime.child import _ALLOWED, LOG_LINES_MAX
from modeld.runtime.feed import Feed
from modeld.runtime.supervisor import EXITS_MAX

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def page(name: str) -> str:
    """The text of a page of docs/."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def anchors(path: Path) -> set[str]:
    """What a link may name after `#`."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        if name.startswith(("http://", "https://")):
            continue
        place = path.parent / name if name else path
        if not place.exists() or (anchor and place.suffix == ".md" and path.name != "CHANGELOG.md" and anchor not in anchors(place)):
            lost.append(target)
    assert lost == []


def test_the_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [str(path.name) for path in (ROOT / "docs").glob("*.md") if f"(docs/{path.name})" not in text] == []


# --- states.md --------------------------------------------------------------------------------------------------------


def test_the_table_of_states_is_the_one_of_the_code() -> None:
    """Put the output of `as_markdown()` at the end of docs/states.md when this fails."""
    assert page("states.md").endswith("\n\n" + as_markdown())


def test_every_state_and_signal_is_explained() -> None:
    text = page("states.md").removesuffix(as_markdown())
    assert [state for state in State if f"| **{state}** |" not in text] == []
    assert [signal for signal in Signal if f"| {signal} |" not in text] == []


# --- api.md -----------------------------------------------------------------------------------------------------------


def kinds(base: type[errors.ModeldError]) -> set[tuple[int, str]]:
    """(status, kind) of an error class and all below it that clients can get."""
    found = {pair for sub in base.__subclasses__() if sub.__module__ == errors.__name__ for pair in kinds(sub)}
    hidden = base in (errors.Refused, errors.ModeldError, errors.ClientGone, errors.ConfigError)
    return found if hidden else found | {(base.http_status, base.kind)}


def test_every_error_is_explained() -> None:
    rows = {
        (int(status), kind)
        for status, cell in re.findall(r"^\| (\d{3}) \| ([^|]+) \|", page("api.md"), re.MULTILINE)
        for kind in re.findall(r"`(\w+)`", cell)
    }
    assert rows == kinds(errors.ModeldError)


def test_every_route_is_explained() -> None:
    driver = SimpleNamespace(snapshot=None, explain=None, need=None)  # asked for nothing while the table is made
    app = build_app(EdgeOptions(), driver=driver, feed=Feed(), table=no_table, metrics=Metrics("1"))  # type: ignore[arg-type]
    routes = {f"{route.method} {route.path}" for route in app.routes}
    assert {"POST /infer", "POST /v1/messages"} <= routes
    assert set(re.findall(r"^\| `([A-Z]+ /\S*)` \|", page("api.md"), re.MULTILINE)) == routes


async def no_table() -> ModelTable:
    return ModelTable({})


def test_every_field_is_explained() -> None:
    text = page("api.md")
    asked = set(
        re.findall(r"^\| `(\w+)` \| [a-z]", text.partition("### `POST /infer`")[2].partition("### Relayed routes")[0], re.MULTILINE)
    )
    assert asked == set(schemas.InferBody.__struct_fields__)
    told: set[str] = set()
    kinds_told: tuple[type[msgspec.Struct], ...] = (
        schemas.Model,
        schemas.Status,
        schemas.InstanceStatus,
        schemas.PartStatus,
        schemas.QueueStatus,
        schemas.WaitStatus,
        schemas.DeviceStatus,
        schemas.ExitStatus,
        schemas.EngineStatus,
        schemas.ModelMeta,
    )
    for struct in kinds_told:
        told |= set(struct.__struct_fields__)
    assert sorted(name for name in told if not re.search(rf'[`"]{name}[`"]', text)) == []


def test_the_limits_of_a_connection_are_those_of_the_code() -> None:
    limits = ProtocolLimits()
    text = page("api.md")
    assert (
        f"more than {limits.header_count} headers, {limits.header_bytes >> 10} KiB of headers, or {limits.url_bytes >> 10} KiB of" in text
    )
    assert f"headers took {limits.header_seconds:g} s; no byte of body for {limits.body_seconds:g} s" in text
    assert f"takes nothing for {limits.write_seconds:g} s" in text
    assert f"the last {EXITS_MAX} endings" in text
    assert f"{LOG_LINES_MAX} lines each" in page("operations.md")


# --- operations.md ----------------------------------------------------------------------------------------------------


def test_the_memory_example_is_what_the_code_counts() -> None:
    starter = ModelSpec(
        ModelId("a.gguf"),
        path="a.gguf",
        size_bytes=98_362_432,
        memory=MemoryShape(
            weights_bytes=96_576_768,
            tied_bytes=30_081_024,
            attention=(AttentionLayers(30, 192, 192),),
            certain=True,
            widths=Widths(embedding=576, feed_forward=1536, heads=9, head=64, vocabulary=49_152),
        ),
        options=LaunchOptions(ctx=launch.CTX_AUTO_MAX),
    )
    whole = need(starter).total_mb
    short = need(replace(starter, options=replace(starter.options, ctx=2048))).total_mb
    small = need(replace(starter, options=replace(starter.options, kv_type=KvType.Q8_0))).total_mb
    found = re.search(
        r"= (\d+) MiB\.\nWith `llama_ctx: 2048`[^:]*: (\d+) MiB\. With `llama_kv_type: q8_0`[^:]*: (\d+) MiB", page("operations.md")
    )
    assert found is not None
    assert tuple(map(int, found.groups())) == (whole, short, small)


def test_what_auto_means_is_what_the_code_chooses() -> None:
    chosen = launch.resolve_options(launch.PartialOptions(), ctx_train=0, cpu_count=3)
    text = page("operations.md")
    assert f"({chosen.ctx} if it does not say), at most {launch.CTX_AUTO_MAX}" in text
    assert f"| `llama_parallel` | {chosen.parallel} |" in text
    assert f"| `llama_batch`, `llama_ubatch` | {chosen.batch}, never more" in text and chosen.ubatch == chosen.batch
    assert f"| `llama_kv_type` | {chosen.kv_type} |" in text
    assert f"| `llama_cache_ram_mb` | {chosen.cache_ram_mb}:" in text
    rows = set(re.findall(r"`(llama_\w+)`", "".join(re.findall(r"^\| (`llama_[^|]+) \|", text, re.MULTILINE))))
    assert f"| `llama_ctx_checkpoints` | {chosen.ctx_checkpoints}:" in text
    assert rows == {key for key, item in TABLE.items() if item.per_model and key.startswith("llama_")} - {"llama_extra_args"}


# --- engines.md -------------------------------------------------------------------------------------------------------


def test_the_names_that_a_child_inherits_are_those_of_the_code() -> None:
    line = page("engines.md").partition("Only these names are copied: ")[2].partition(". `HOME`")[0]
    names = re.findall(r"`([A-Z_]+\*?)`", line)
    assert [name for name in names if not _ALLOWED.fullmatch(name.replace("*", "X"))] == []
    words = set(re.findall(r"[A-Z][A-Z_]{1,}", _ALLOWED.pattern)) - {"A-Z", "Z"}
    assert sorted(word for word in words if not any(name.removesuffix("*").rstrip("_") == word.rstrip("_") for name in names)) == []


# --- memory.md --------------------------------------------------------------------------------------------------------


def told(text: str) -> set[str]:
    """What stands in backquotes in the first column of a table."""
    return {word for cell in re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE) for word in re.findall(r"`(\w+)`", cell)}


def test_every_key_verdict_and_source_is_explained() -> None:
    text = page("memory.md")
    inspecting, planning = (text.partition(f"## Reading `modeld {verb}`")[2].partition("\n## ")[0] for verb in ("inspect", "plan"))
    assert told(inspecting) == set(KEYS)
    assert told(planning) == {verdict.value for verdict in Verdict} - {"unknown"}
    assert told(text.partition("## Where a figure comes from")[2].partition("\n## ")[0]) == {source.value for source in Source} - {
        "external"
    }


# --- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_settings_that_are_named_exist(path: Path) -> None:
    """A key in backquotes that looks like a setting is one."""
    prefixes = r"(?:vram|max|llama|cors|allow|drain|shutdown|stop|fairness|turn|preempt|inter|first|trace)"
    named = set(re.findall(rf"`({prefixes}_[a-z_]+)[`:]", path.read_text(encoding="utf-8")))
    known = {*TABLE, "vram_mb", "max_tokens", "max_new_tokens", "max_completion_tokens", "fairness_closings_total"}
    assert sorted(name for name in named if name not in known) == []
