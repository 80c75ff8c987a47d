# SPDX-License-Identifier: GPL-3.0-only
"""The engine's devices and the cards behind them: what each has, what is free, what a process holds; rule: what cannot be seen is left out.

llama.cpp names its devices (CUDA0, ROCm1, Vulkan0), the drivers name cards. They are put together, first that fits:

1  by the card's address, where the engine tells it
2  by the card's own name, where the driver tells it: then nothing else is the same card
3  by how much memory it has, where only one card has that much
4  by their order, where a backend sees as many devices as there are cards it can use
A device without a card has what the engine says it has, and nobody knows what of it is free. A card that two backends see counts for the
first, as llama.cpp uses it. All calls may block for milliseconds: call from a thread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modeld.core.budget import DeviceFacts
from modeld.runtime import drm
from modeld.runtime.nvidia import Nvidia, NvidiaCard, normal_pci

DEVICES_MAX: Final = 64
SAME_SHARE: Final = 0.02
"""Two figures that differ by less are the same memory."""
INTEL_INSIDE: Final = "0000:00:02.0"
"""Where Intel's graphics unit sits when it is part of the processor. No card of its own is ever there."""
MIB: Final = 1 << 20
GPU, IGPU, ACCEL, CPU = "GPU", "IGPU", "ACCEL", "CPU"

_LISTED: Final = re.compile(r"^\s{1,8}([A-Za-z][\w.:\[\]-]{0,63}): (.{0,200}) \((\d{1,12}) MiB, (\d{1,12}) MiB free\)\s*$")
_NO_GPU: Final = ("BLAS", "AMX", "CPU", "zDNN")
_VENDORS: Final = {"CUDA": ("nvidia",), "ROCm": ("amd",), "HIP": ("amd",), "SYCL": ("intel",), "Vulkan": ("nvidia", "amd", "intel")}
_UNIFIED: Final = ("MTL", "Metal")
_VISIBLE: Final = {"CUDA": ("CUDA_VISIBLE_DEVICES",), "ROCm": ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")}


@dataclass(frozen=True, slots=True)
class EngineDevice:
    """One device the engine can use. `kind` is llama.cpp's word: CPU, GPU, IGPU, ACCEL. MiB, 0 = unknown; `pci` "" = it does not tell."""

    name: str
    description: str
    kind: str
    total_mb: int = 0
    free_mb: int = 0
    pci: str = ""

    @property
    def computes(self) -> bool:
        """Whether layers can be put on it."""
        return self.kind in (GPU, IGPU)


@dataclass(frozen=True, slots=True)
class Card:
    """One card of the machine. `id` is the driver's; bytes, total 0 = it does not say, free None = unknown."""

    id: str
    vendor: str
    name: str
    pci: str
    total_bytes: int
    free_bytes: int | None


class Machine:
    """The devices of `engine`. `nvidia` None = no such driver; `host_total_mb` tells memory that is the host's from a card's own."""

    def __init__(
        self,
        engine: Sequence[EngineDevice],
        *,
        nvidia: Nvidia | None = None,
        host_total_mb: int = 0,
        environment: Mapping[str, str] | None = None,
        proc: Path = drm.PROC,
        sys: Path = drm.SYS,
    ) -> None:
        self._nvidia = nvidia
        self._proc = proc
        self._sys = sys
        self._host_total_mb = host_total_mb
        found = match([one for one in engine if one.computes][:DEVICES_MAX], self._cards(), environment or {})
        self._devices = tuple(found)
        self._by_card = {card.id: device.name for device, card in found if card is not None}
        self._sharing = {device.name for device, card in found if self._shares_host(device, card)}

    def facts(self) -> tuple[DeviceFacts, ...]:
        """The devices models can run on, as the engine names them. A total that nobody tells is 0."""
        return tuple(
            DeviceFacts(card.id if card else device.name, device.name, self._total_mb(device, card), device.name in self._sharing)
            for device, card in self._devices
        )

    def memory(self) -> dict[str, tuple[int, int]]:
        """Bytes in all and free, by llama.cpp's name of the device; without those whose card does not say, or has the host's."""
        found: dict[str, tuple[int, int]] = {}
        for card in self._cards():
            name = self._by_card.get(card.id)
            if name is not None and name not in self._sharing and card.total_bytes and card.free_bytes is not None:
                found[name] = (card.total_bytes, card.free_bytes)
        return found

    def device_bytes_of(self, pid: int) -> dict[str, int] | None:
        """Bytes that a process holds, by llama.cpp's name of the device. None when no driver tells: it may hold any."""
        looks: list[Mapping[str, int] | None] = [drm.used_by(pid, self._proc, self._sys)]
        if self._nvidia is not None:
            looks.append(self._nvidia.used_by(pid))
        told = [look for look in looks if look is not None]
        if not told:
            return None
        return {name: look[card] for look in told for card, name in self._by_card.items() if card in look}

    def _cards(self) -> list[Card]:
        nvidia: Sequence[NvidiaCard] = () if self._nvidia is None else self._nvidia.cards()
        found = [Card(one.uuid, "nvidia", one.name, one.pci, one.total_bytes, one.free_bytes) for one in nvidia]
        others = drm.cards(self._sys)
        return found + [Card(one.pci, one.vendor, "", one.pci, one.total_bytes, one.free_bytes) for one in others]

    def _total_mb(self, device: EngineDevice, card: Card | None) -> int:
        of_card = card.total_bytes // MIB if card is not None and device.name not in self._sharing else 0
        return of_card or device.total_mb

    def _shares_host(self, device: EngineDevice, card: Card | None) -> bool:
        """Said by the engine, by the place, or by the figures: llama.cpp gives the host's memory for a device that has none."""
        if device.kind == IGPU or device.name.startswith(_UNIFIED) or (card is not None and card.pci == INTEL_INSIDE):
            return True
        if card is not None and card.total_bytes > 0:  # what AMD's has of its own in a processor is a small part of what it can use
            return device.total_mb > 2 * (card.total_bytes // MIB)
        return self._host_total_mb > 0 and _same(device.total_mb, self._host_total_mb)


def match(devices: Sequence[EngineDevice], cards: Sequence[Card], environment: Mapping[str, str]) -> list[tuple[EngineDevice, Card | None]]:
    """Each device with its card, in the engine's order. A device whose card an earlier one has is left out."""
    found: dict[str, Card | None] = {}
    free = list(cards)
    doubles: set[str] = set()
    for device in devices:  # 1
        if device.pci and (card := next((one for one in cards if one.pci == device.pci), None)) is not None:
            if card in free:
                free.remove(card)
                found[device.name] = card
            else:
                doubles.add(device.name)
    for backend in dict.fromkeys(_backend(device.name) for device in devices):
        open_ = [one for one in devices if _backend(one.name) == backend and one.name not in found and one.name not in doubles]
        fitting = [one for one in free if one.vendor in _VENDORS.get(backend, ())]
        usable = _usable(backend, fitting, environment)
        for device, card in _pair(open_, usable, fitting):
            free.remove(card)
            found[device.name] = card
        left = [one.name for one in open_ if one.name not in found]
        taken = [card for card in cards if card not in free and card.vendor in _VENDORS.get(backend, ())]
        if not usable and 0 < len(left) <= len(taken):  # another backend has all the cards this one can see
            doubles.update(left)
    return [(device, found.get(device.name)) for device in devices if device.name not in doubles]


def _pair(devices: Sequence[EngineDevice], cards: Sequence[Card], fitting: Sequence[Card]) -> list[tuple[EngineDevice, Card]]:
    """2, else 3, else 4. `fitting` are those that the environment hides, too: it may count them in another order than the driver."""
    pairs: list[tuple[EngineDevice, Card]] = []
    left = list(cards)
    for find in (_named, _sized):
        for device in [one for one in devices if one not in [device for device, _ in pairs]]:
            if (card := find(device, left)) is not None:
                left.remove(card)
                pairs.append((device, card))
    open_ = [one for one in devices if one not in [device for device, _ in pairs]]
    taken = [card for _, card in pairs]
    for device in open_ if cards else ():
        hidden = [one for one in fitting if one not in taken and _is_named(device, one)]
        if len(hidden) == 1:
            taken += hidden
            pairs.append((device, hidden[0]))
    if len(open_) == len(left) and not any(one.name for one in left):
        pairs += zip(open_, left, strict=True)
    return pairs


def _named(device: EngineDevice, cards: Sequence[Card]) -> Card | None:
    return next((one for one in cards if _is_named(device, one)), None)


def _is_named(device: EngineDevice, card: Card) -> bool:
    """llama.cpp may add a word in brackets to the card's name. Without one it is another card: there is an L4 and an L40S."""
    return bool(card.name) and (device.description == card.name or device.description.startswith(f"{card.name} ("))


def _sized(device: EngineDevice, cards: Sequence[Card]) -> Card | None:
    """The only one of those without a name that has as much memory."""
    found = [one for one in cards if not one.name and one.total_bytes and _same(device.total_mb, one.total_bytes // MIB)]
    return found[0] if len(found) == 1 else None


def _same(one_mb: int, other_mb: int) -> bool:
    return abs(one_mb - other_mb) <= other_mb * SAME_SHARE


def _usable(backend: str, fitting: Sequence[Card], environment: Mapping[str, str]) -> list[Card]:
    """The cards that the environment lets a backend see, in that order. Nothing where it cannot be told which."""
    named = next((environment[name] for name in _VISIBLE.get(backend, ()) if name in environment), None)
    if named is None:
        return list(fitting)
    chosen: list[Card] = []
    for entry in filter(None, (part.strip() for part in named.split(","))):
        card = fitting[int(entry)] if entry.isdecimal() and int(entry) < len(fitting) else None
        card = card or next((one for one in fitting if entry.startswith("GPU-") and one.id.startswith(entry)), None)
        if card is None:
            return []  # a part of a card (MIG), or nothing that is there
        chosen.append(card)
    return chosen


def read_list(lines: Sequence[str]) -> tuple[EngineDevice, ...] | None:
    """What `llama-server --list-devices` said; None when that was no list. It does not say of which kind a device is."""
    start = next((index for index, line in enumerate(lines) if line.startswith("Available devices:")), None)
    if start is None:
        return None
    found: list[EngineDevice] = []
    for line in lines[start + 1 :]:
        if len(found) < DEVICES_MAX and (one := _LISTED.match(line)) is not None:
            kind = ACCEL if one[1].startswith(_NO_GPU) else GPU
            found.append(EngineDevice(one[1], one[2], kind, int(one[3]), int(one[4])))
    return tuple(found)


def read_described(listed: object) -> tuple[EngineDevice, ...] | None:
    """What our worker says of the embedded engine's devices; None when that is no list of devices."""
    if not isinstance(listed, list):
        return None
    try:
        return tuple(_described(one) for one in listed[:DEVICES_MAX])
    except (TypeError, ValueError, LookupError, AttributeError):
        return None


def _described(one: Mapping[str, object]) -> EngineDevice:
    total, free = (max(0, int(str(one.get(key, 0)))) // MIB for key in ("total", "free"))
    kind = str(one["type"]).removeprefix("GGML_BACKEND_DEVICE_TYPE_")
    return EngineDevice(str(one["name"]), str(one["description"]), kind, total, free, normal_pci(str(one.get("pci", ""))))


def _backend(name: str) -> str:
    """`CUDA` of `CUDA0`."""
    return re.sub(r"\d+$", "", name)
