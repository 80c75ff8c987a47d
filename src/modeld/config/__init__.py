# SPDX-License-Identifier: GPL-3.0-only
"""The only reader of configuration; rule: flags > environment > file > defaults, each setting declared once (`settings.py`).

declaration.py   what a setting is
settings.py      the declarations: every key with its type, default, group and help
values.py        what a value may look like; amounts.py those about memory
files.py         YAML, JSON, TOML -> plain values
load.py          the sources put together; every mistake is one line
checks.py        combinations that cannot work
engine_flags.py  what llama_extra_args may not carry
describe.py      config show, the JSON schema, the reference table
"""

from modeld.config.declaration import Setting
from modeld.config.load import Loaded, Source, load
from modeld.config.settings import TABLE, AdapterName, LogFormat, LogLevel, ModelSettings, Settings
from modeld.config.values import ListenAddress

__all__ = [
    "SETTINGS",
    "AdapterName",
    "ListenAddress",
    "Loaded",
    "LogFormat",
    "LogLevel",
    "ModelSettings",
    "Setting",
    "Settings",
    "Source",
    "load",
]

SETTINGS: tuple[Setting, ...] = tuple(TABLE.values())
"""Every setting that flags, variables and files share, in the order of the docs."""
