# SPDX-License-Identifier: GPL-3.0-only
"""What the operator lets go of a model that does not fit, and how it is told; and who holds the memory of a device, and how."""

from __future__ import annotations

from core.play import Play, arrive, i, loaded, spec
from modeld.core.messages import InstanceReady, SettingsReplaced
from modeld.core.model import LOCAL, AttentionLayers, Degrade, LaunchOptions, Limits, MemoryShape, ModelId, ModelSpec

A = ModelId("a")


def wide(**more: object) -> ModelSpec:
    """10 MiB of weights and 20 KiB of cache for each token: 160 MiB with its 8192 tokens."""
    shape = MemoryShape(10 << 20, attention=(AttentionLayers(10, 512, 512),), value_elements_max=512)
    return spec("a", 0, vram_mb=None, memory=shape, options=LaunchOptions(ctx=8192), **more)


def test_what_fits_is_started_as_it_is():
    play = Play([wide(degrade=(Degrade.CTX,))], budget=300).at(1, arrive("r", "a")).gives("start 1/a")
    assert (play.scheduler.degraded(A), play.instance("a").degraded) == ((), ())
    assert play.scheduler.launch(A).options.ctx == 8192


def test_less_context_is_taken_where_the_operator_lets_it_go_and_is_told():
    play = Play([wide(degrade=(Degrade.CTX,))], budget=170)
    assert play.scheduler.degraded(A) == ("llama_ctx 8192 -> 4096",)  # before anything runs: what would be
    play.at(1, arrive("r", "a")).gives("start 1/a").at(2, InstanceReady(i(1, "a")))
    view = play.instance("a")
    assert (view.degraded, view.options.ctx if view.options else 0) == (("llama_ctx 8192 -> 4096",), 4096)
    play.at(3, SettingsReplaced(Limits(budget_mb={LOCAL: 300}, min_residency_seconds=0.0, first_token_seconds=0.0)))
    assert play.scheduler.launch(A).options.ctx == 8192
    assert play.scheduler.degraded(A) == ("llama_ctx 8192 -> 4096",)  # the one that runs is what it was


def test_nothing_is_given_up_that_was_not_listed():
    play = Play([wide()], budget=170).at(1, arrive("r", "a")).gives("refuse r cannot_ever_fit")
    assert play.scheduler.degraded(A) == ()
    assert play.scheduler.degraded(ModelId("nobody")) == ()


def test_who_holds_the_memory_of_a_device_and_how():
    play = loaded(Play({"a": 100, "b": 40}, budget=170), "a").at(5, arrive("r2", "b")).gives("start 2/b")
    (device,) = play.snapshot.devices
    assert (device.committed_mb, device.reserved_mb, device.releasing_mb, device.used_mb) == (100, 40, 0, 140)
    assert (device.room_mb, device.free_mb) == (170, 30)
    (unlimited,) = Play({"a": 100}).snapshot.devices
    assert (unlimited.room_mb, unlimited.free_mb) == (None, None)
