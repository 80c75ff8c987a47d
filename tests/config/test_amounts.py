# SPDX-License-Identifier: GPL-3.0-only
"""Values of the settings about memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modeld.config.amounts import CtxMax, amount_per_device, context_length, steps
from modeld.config.values import Context, Kind, Unacceptable
from modeld.core.model import Degrade

TEXT, FILE = Context({}, Path("/"), text=True), Context({}, Path("/"), text=False)
AMOUNT, CTX, STEPS = amount_per_device(0, 1 << 30), context_length(16, 1 << 26), steps(Degrade)


@pytest.mark.parametrize(
    ("kind", "raw", "ctx", "value"),
    [
        (AMOUNT, "9000", TEXT, 9000),
        (AMOUNT, 9000, FILE, 9000),
        (AMOUNT, "CUDA0=20000, CUDA1=0", TEXT, {"CUDA0": 20000, "CUDA1": 0}),
        (AMOUNT, "CUDA0=20000", FILE, {"CUDA0": 20000}),
        (AMOUNT, {"CUDA0": 20000, "RPC0[127.0.0.1:50052]": 8}, FILE, {"CUDA0": 20000, "RPC0[127.0.0.1:50052]": 8}),
        (CTX, "4096", TEXT, 4096),
        (CTX, "max", FILE, CtxMax()),
        (CTX, "MAX:32768", TEXT, CtxMax(32768)),
        (CTX, "max : 32768", FILE, CtxMax(32768)),
        (STEPS, "ctx,kv_type", TEXT, (Degrade.CTX, Degrade.KV_TYPE)),
        (STEPS, ["NGL", "ctx"], FILE, (Degrade.NGL, Degrade.CTX)),
        (STEPS, "none", FILE, ()),
        (STEPS, None, FILE, ()),
        (STEPS, [], FILE, ()),
    ],
)
def test_what_is_taken_and_that_what_is_shown_is_taken_back(kind: Kind[Any], raw: object, ctx: Context, value: object) -> None:
    found = kind.parse(raw, ctx)
    assert found == value
    assert kind.parse(kind.show(found), TEXT) == value


@pytest.mark.parametrize(
    ("kind", "raw", "ctx", "text"),
    [
        (AMOUNT, "many", TEXT, "is not a whole number of MiB from 0 to 1073741824"),
        (AMOUNT, -1, FILE, "is not a whole number of MiB"),
        (AMOUNT, "9", FILE, "write it without quotes"),
        (AMOUNT, "CUDA0=20000,CUDA0=1", TEXT, "names CUDA0 twice"),
        (AMOUNT, "CUDA0=x", TEXT, 'holds "x" for CUDA0, which is not a whole number of MiB'),
        (AMOUNT, "0=1", TEXT, 'holds "0", which is not a device'),
        (AMOUNT, "CUDA0=1,", TEXT, 'holds "", which is not a device'),
        (AMOUNT, {}, FILE, "names no device"),
        (AMOUNT, {"CUDA0": "5"}, FILE, "write it without quotes"),
        (AMOUNT, {f"CUDA{n}": 1 for n in range(65)}, FILE, "names more than 64 devices"),
        (AMOUNT, True, FILE, "is not a whole number of MiB"),
        (CTX, "most", TEXT, 'is not a whole number of tokens from 16 to 67108864, "max" or "max:N"'),
        (CTX, "max:8", TEXT, "is not a whole number of tokens from 16"),
        (CTX, 15, FILE, "is not a whole number of tokens from 16"),
        (STEPS, "ctx,kv", TEXT, 'holds "kv", which is not one of ctx, kv_type, ngl'),
        (STEPS, ["ctx", "ctx"], FILE, "names the same step twice"),
        (STEPS, ["none", "ctx"], FILE, 'holds "none"'),
        (STEPS, {"ctx": 1}, FILE, "is not a list of text"),
    ],
)
def test_what_is_refused(kind: Kind[Any], raw: object, ctx: Context, text: str) -> None:
    with pytest.raises(Unacceptable) as caught:
        kind.parse(raw, ctx)
    assert text in str(caught.value)
