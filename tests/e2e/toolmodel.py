# SPDX-License-Identifier: GPL-3.0-only
"""The starter model with a chat template that knows tools; rule: the file's bytes are spliced, the tensors stay what they are.

llama.cpp learns from the template how a model writes a call. The starter's own template knows none, so that it never hears of tools.
In this one no mark stands in front of the function's name: when a call is required, nothing else fits llama.cpp's grammar, from the first
token on. So even a small model makes one; and only one, since the template shows no second.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from gguf import GGUFReader

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "London"]}, "unit": {"type": "string", "enum": ["c", "f"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
"""The arguments of the function that the tests offer, as a JSON schema."""

_KEY = b"tokenizer.chat_template"
TEMPLATE = """\
{%- if tools %}<|im_start|>system
You may call these functions:
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}<|im_start|>user
Result: {{ message.content }}<|im_end|>
{% else %}<|im_start|>{{ message.role }}
{% if message.content %}{{ message.content }}{% endif %}
{%- if message.tool_calls %}
{%- set made = message.tool_calls[0].function %}<function={{ made.name }}>{{ made.arguments | tojson }}</function>
{%- endif %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def write_tool_model(source: Path, target: Path) -> Path:
    """A copy of `source` whose chat template is TEMPLATE."""
    reader = GGUFReader(source)
    data_at, align = int(reader.data_offset), int(reader.alignment)
    last = max(int(tensor.field.offset) + sum(int(part.nbytes) for part in tensor.field.parts) for tensor in reader.tensors)
    raw = source.read_bytes()
    at = raw.index(struct.pack("<Q", len(_KEY)) + _KEY, 0, last) + 8 + len(_KEY) + 4  # behind the key and the type of its value
    (length,) = struct.unpack_from("<Q", raw, at)
    text = TEMPLATE.encode()
    head = raw[:at] + struct.pack("<Q", len(text)) + text + raw[at + 8 + length : last]
    target.write_bytes(head + bytes(-len(head) % align) + raw[data_at:])
    return target


def is_weather(value: Any) -> bool:
    """Whether `value` is as WEATHER wants it."""
    wanted = WEATHER["properties"]
    return isinstance(value, dict) and set(value) == set(wanted) and all(value[name] in wanted[name]["enum"] for name in wanted)
