# SPDX-License-Identifier: GPL-3.0-only
"""What the ledger may give out: the operator's word and the devices there are -> MiB per device; rule: a plain function of both.

1  No device has memory of its own: one pool, `local/all`. All that a model takes is host memory, whatever computes.
2  One device has: `local/all` is its memory. Host memory beside it is a device of the ledger too (HOST).
3  Several have: each its own budget (`local/NAME`), where the operator says auto or names them. One number is for all of them together.
auto is what the device has; a margin is then kept free: the operator's, or MARGIN_MB of a device and `host_margin_mb` of host memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from modeld.core.footprint import DeviceMemory
from modeld.core.model import HOST, LOCAL, DeviceId, Limits
from modeld.errors import ConfigError

MARGIN_MB: Final = 256
"""Kept free of a device with memory of its own: what its driver and other programs take from one second to the next."""
HOST_SHARE: Final = 0.05
HOST_MARGIN_MB: Final = (512, 2048)
"""Kept free of host memory: a twentieth, at least and at most so much, and never more than half of it."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One device that computes. `id` tells it from its like across restarts, `name` is llama.cpp's ("CUDA0").

    total_mb     MiB it has, 0 = unknown
    shares_host  it has no memory of its own
    """

    id: str
    name: str
    total_mb: int
    shares_host: bool = False


@dataclass(frozen=True, slots=True)
class Wish:
    """The settings. None = auto, 0 = unlimited.

    vram_mb    MiB of all devices together, or of each by llama.cpp's name: then others are not used
    margin_mb  MiB kept free of each device; 0 = nothing was said
    host_mb    MiB of host memory, where devices have memory of their own
    """

    vram_mb: int | Mapping[str, int] | None = None
    margin_mb: int = 0
    host_mb: int | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """What follows. `names` says what stands behind each device of the ledger, the rest is as in core.model.Limits."""

    budget_mb: Mapping[DeviceId, int] = field(default_factory=lambda: {LOCAL: 0})
    margin_mb: int = 0
    host_margin_mb: int = 0
    one_pool: bool = True
    names: Mapping[DeviceId, tuple[str, ...]] = field(default_factory=dict)
    cpu_only: bool = False

    @property
    def is_limited(self) -> bool:
        """Whether anything depends on what the machine shows of its memory."""
        return any(self.budget_mb.values())

    def put_into(self, limits: Limits) -> Limits:
        """`limits` with this budget."""
        return replace(
            limits,
            budget_mb=self.budget_mb,
            margin_mb=self.margin_mb,
            host_margin_mb=self.host_margin_mb,
            one_pool=self.one_pool,
            cpu_only=self.cpu_only,
        )


def resolve(wish: Wish, devices: Sequence[DeviceFacts] | None, host_total_mb: int) -> Budget:
    """The budget. `devices` None = nobody knows which there are: as if none had memory of its own.

    `host_total_mb` is what this machine, or the group of processes we are in, may use; 0 = unknown.

    A total that is unknown is no limit. Raises ConfigError for a device that is not there.
    """
    own = [one for one in devices or () if not one.shares_host]
    if isinstance(wish.vram_mb, Mapping):
        _check_names(wish.vram_mb, own)
    if not own:  # 1
        margin = wish.margin_mb or (host_margin_mb(host_total_mb) if wish.vram_mb is None else 0)
        total = host_total_mb if wish.vram_mb is None else _sum(wish.vram_mb)
        shared = tuple(one.name for one in devices or ())
        return Budget({LOCAL: total}, margin, cpu_only=devices is not None and not devices, names={LOCAL: shared})
    budget_mb, names = _of_devices(wish.vram_mb, own)
    host_margin = 0
    host_mb = wish.host_mb
    if host_mb is None:
        host_mb, host_margin = host_total_mb, host_margin_mb(host_total_mb)
    if host_mb:
        budget_mb[HOST] = host_mb
    margin = wish.margin_mb or (MARGIN_MB if wish.vram_mb is None else 0)
    return Budget(budget_mb, margin, host_margin, one_pool=False, names=names)


def _of_devices(
    wish: int | Mapping[str, int] | None, own: Sequence[DeviceFacts]
) -> tuple[dict[DeviceId, int], dict[DeviceId, tuple[str, ...]]]:
    """2 and 3: MiB of each device of the ledger, and which of llama.cpp's devices it stands for."""
    each: Mapping[str, int] | None = wish if isinstance(wish, Mapping) else None
    if each is None and wish is None and len(own) > 1:
        each = {one.name: one.total_mb for one in own}
    if each is not None:
        return {_device(name): mb for name, mb in each.items()}, {_device(name): (name,) for name in each}
    total = own[0].total_mb if wish is None else _sum(wish)
    return {LOCAL: total}, {LOCAL: tuple(one.name for one in own)}


def host_margin_mb(total_mb: int) -> int:
    """MiB of host memory that are kept free where nothing else was said."""
    least, most = HOST_MARGIN_MB
    return min(max(least, int(total_mb * HOST_SHARE)), most, total_mb // 2)


def seen(budget: Budget, devices: Mapping[str, DeviceMemory], host: DeviceMemory | None) -> dict[DeviceId, DeviceMemory]:
    """What the machine shows, by device of the ledger. `devices` by llama.cpp's name. What was not seen as a whole is left out."""
    found: dict[DeviceId, DeviceMemory] = {}
    for device in budget.budget_mb:
        if device == HOST or budget.one_pool:
            behind: list[DeviceMemory | None] = [host]
        else:
            behind = [devices.get(name) for name in budget.names.get(device, ())]
        looks = [one for one in behind if one is not None]
        if looks and len(looks) == len(behind):
            found[device] = DeviceMemory(*(sum(getattr(one, name) for one in looks) for name in ("total_mb", "free_mb", "ours_mb")))
    return found


def _check_names(wished: Mapping[str, int], own: Sequence[DeviceFacts]) -> None:
    there = [one.name for one in own]
    absent = [name for name in wished if name not in there]
    if absent and not there:
        raise ConfigError(
            f"vram_budget_mb names {', '.join(absent)}: no device here has memory of its own; write one number, which is for host memory"
        )
    if absent:
        raise ConfigError(f"vram_budget_mb names {', '.join(absent)}, which is not here; there is {', '.join(there)}")


def _device(name: str) -> DeviceId:
    return DeviceId(f"local/{name}")


def _sum(wish: int | Mapping[str, int]) -> int:
    return wish if isinstance(wish, int) else sum(wish.values())
