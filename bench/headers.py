# SPDX-License-Identifier: GPL-3.0-only
"""How long headers take to read, in processor time; rule: files as people have them, a vocabulary in each, the best of a few rounds.

  one      a header with a vocabulary of 262,144 tokens, their scores, types and merges
  cold     a folder of 200 models with 32,000 tokens each, nothing remembered
  cached   the same folder again, from the file the first scan left

Ends with 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from makegguf import ARRAY, F32, I32, Tensor, Typed, header, make_gguf, model_pairs, vocabulary
from modeld.catalog.gguf import read_header
from modeld.catalog.headers import facts_of
from modeld.catalog.models import Catalog, ModelOverride

TOKENS = 262_144
FILES = 200
FILE_TOKENS = 32_000
BARS_MS = {"one": 50.0, "cold": 1000.0, "cached": 50.0}


def write_large(folder: Path) -> Path:
    """A header of many tokens and 400 tensors."""
    numbers = {"scores": F32, "token_type": I32}
    pairs = model_pairs("gemma3", layers=34, embd=2560, heads=8, heads_kv=4) | {
        "tokenizer.ggml.tokens": Typed(ARRAY, raw=vocabulary(TOKENS)),
        "tokenizer.ggml.merges": Typed(ARRAY, raw=vocabulary(TOKENS)),
        **{
            f"tokenizer.ggml.{name}": Typed(ARRAY, raw=struct.pack("<IQ", kind, TOKENS) + bytes(4 * TOKENS))
            for name, kind in numbers.items()
        },
    }
    tensors = [Tensor(f"blk.{index // 12}.part{index % 12}.weight", (2560, 32), 3, index * 51_200) for index in range(400)]
    path = folder / "large.gguf"
    raw = header(pairs, tensors)
    with path.open("wb") as file:
        file.write(raw)
        file.truncate(len(raw) + 400 * 51_200)
    return path


def best_ms(rounds: int, what: Callable[[], object]) -> float:
    """Milliseconds of processor time of the fastest round: what others do on the machine does not count."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        what()
        times.append(time.process_time() - started)
    return 1000 * min(times)


def measure(folder: Path, rounds: int) -> dict[str, float]:
    """Milliseconds by name."""
    large, models, cache = write_large(folder), folder / "models", folder / "cache.json"
    for index in range(FILES):
        make_gguf(models / f"model-{index:03}.Q4_K_M.gguf", size_bytes=1 << 24, vocab=FILE_TOKENS, name=f"Model {index}")

    def scan() -> None:
        found = Catalog(models, lambda _: ModelOverride(), cache, {}).scan()
        assert len(found.models) == FILES

    def cold() -> None:
        cache.unlink(missing_ok=True)
        scan()

    return {"one": best_ms(rounds, lambda: facts_of(read_header(large))), "cold": best_ms(rounds, cold), "cached": best_ms(rounds, scan)}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), parser.parse_args(argv).rounds)
    for what, milliseconds in found.items():
        print(f"{what:8}{milliseconds:9.1f} ms   bar {BARS_MS[what]:6.0f} ms{'' if milliseconds <= BARS_MS[what] else '   missed'}")
    return int(any(found[what] > bar for what, bar in BARS_MS.items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
