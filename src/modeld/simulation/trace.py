# SPDX-License-Identifier: GPL-3.0-only
"""A step in one line, for digests and for people; rule: the same step gives the same text in every process."""

from __future__ import annotations

from collections.abc import Sequence

from modeld.core.messages import (
    CheckLaunch,
    CheckProgress,
    Command,
    Event,
    FootprintMeasured,
    FootprintProbed,
    FootprintsLearned,
    Grant,
    InstanceExited,
    InstanceFailed,
    InstanceReady,
    InstanceSpawned,
    LaunchChecked,
    LaunchRejected,
    LeaseFailed,
    LeaseReleased,
    LoadProgressed,
    LoadRequested,
    MemoryFreed,
    MemorySeen,
    ModelTableReplaced,
    PinChanged,
    ProbeFailed,
    ProbeFootprint,
    ProgressChecked,
    Refuse,
    Remember,
    RequestArrived,
    RequestWithdrawn,
    RevokeLease,
    SettingsReplaced,
    ShutdownRequested,
    StartInstance,
    StopInstance,
    UnloadRequested,
    Wakeup,
)


def tell(now: float, event: Event, commands: Sequence[Command]) -> str:
    """`time event -> command, command`, one line."""
    told = ", ".join([tell_command(command) for command in commands])
    return f"{now!r} {tell_event(event)} -> {told}\n"


def tell_event(event: Event) -> str:  # noqa: C901 - one arm for each event
    """What happened."""
    match event:
        case RequestArrived(request):
            return f"arrived {request.id} {request.model} {request.priority or '-'} {request.principal}"
        case RequestWithdrawn(request_id):
            return f"withdrawn {request_id}"
        case LeaseReleased(request_id):
            return f"released {request_id}"
        case LeaseFailed(request_id, before):
            return f"failed {request_id} {'before' if before else 'after'} its first byte"
        case ProgressChecked(instance, moved, began):
            return f"progress of {instance} {sorted(moved.items())} began {sorted(began)}"
        case LaunchChecked(model, fingerprint):
            return f"checked {model} {fingerprint}"
        case LaunchRejected(model, fingerprint, error):
            return f"rejected {model} {fingerprint} {error.kind}"
        case LoadProgressed(instance, fraction):
            return f"loaded {fraction:g} of {instance}"
        case InstanceReady(instance):
            return f"ready {instance}"
        case InstanceFailed(instance, fault):
            return f"failed {instance} {fault.kind}"
        case InstanceSpawned(instance):
            return f"spawned {instance}"
        case InstanceExited(instance, code):
            return f"exited {instance} {code}"
        case MemoryFreed(instance):
            return f"freed {instance}"
        case FootprintMeasured(instance, footprint, when):
            return f"measured {instance} {footprint.total_bytes} {when}"
        case FootprintProbed(model, key) | ProbeFailed(model, key):
            return f"probed {model} {key}" if isinstance(event, FootprintProbed) else f"not probed {model} {key}"
        case FootprintsLearned(learned, probes):
            return f"learned {len(learned)} {len(probes)}"
        case MemorySeen(devices):
            return f"memory {[(device, memory.free_mb) for device, memory in devices.items()]}"
        case ModelTableReplaced(models):
            rows = [f"{m.id}:{m.fingerprint}:{m.options.parallel}:{'pinned' if m.pinned else ''}" for m in models.values()]
            return f"models {' '.join(rows)}"
        case SettingsReplaced(limits):
            return f"settings {limits}"
        case LoadRequested(model, may_evict):
            return f"wished {model} {'may evict' if may_evict else 'without evicting'}"
        case UnloadRequested(model):
            return f"unwished {model}"
        case PinChanged(model, pinned):
            return f"{'pinned' if pinned else 'unpinned'} {model}"
        case ShutdownRequested():
            return "shutdown"
        case Wakeup():
            return "wakeup"


def tell_command(command: Command) -> str:
    """What is to be done."""
    match command:
        case Grant(request, instance):
            return f"grant {request} {instance}"
        case Refuse(request, error):
            return f"refuse {request} {error.kind}"
        case RevokeLease(request, error):
            return f"revoke {request} {error.kind}"
        case CheckLaunch(spec):
            return f"check {spec.id} {spec.fingerprint}"
        case ProbeFootprint(spec, key):
            return f"probe {spec.id} {key}"
        case Remember(key):
            return f"remember {key}"
        case StartInstance(instance, _, need_mb):
            return f"start {instance} {dict(need_mb)}"
        case StopInstance(instance, why):
            return f"stop {instance} {why}"
        case CheckProgress(instance):
            return f"look at {instance}"
