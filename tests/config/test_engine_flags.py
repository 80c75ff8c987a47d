# SPDX-License-Identifier: GPL-3.0-only
"""What llama_extra_args may not carry."""

from __future__ import annotations

import pytest

from modeld.config.engine_flags import refused_flag

NO_SETTING = (
    "-fit -fitt -fitc --fit --fit-target --swa-full -ts --tensor-split -sm --split-mode -mg -dev",
    "--device -ot --no-mmap --mlock --load-mode --draft-max --spec-draft-n-max --lora-scaled",
    "--control-vector --mmproj -mm --no-mmproj -hf --hf-repo --hf-file -hft --api-key --api-key-file --alias -a --log-file",
    "--log-disable --ssl-key-file --models-dir --models-max --no-models-autoload --path --api-prefix --slot-save-path",
    "--sleep-idle-seconds --tools --agent --mcp-servers-json --media-path --lookup-cache-dynamic --props --no-slots",
    "--no-webui --ui-config --rpc --override-kv -nkvo --n-cpu-moe --fim-qwen-7b-default --version --help --log_file",
    "--slot_save_path=x",
)


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        ("-c --ctx-size --ctx_size --ctx-size=9 --kv-unified-per-slot", "llama_ctx"),
        ("-np --parallel", "llama_parallel"),
        ("-b --batch-size", "llama_batch"),
        ("-ub --ubatch-size", "llama_ubatch"),
        ("-ctk -ctv --cache-type-k --cache-type-v=q4_0", "llama_kv_type"),
        ("-ngl -ngl=9 --gpu-layers --n-gpu-layers", "llama_ngl"),
        ("-cram --cache-ram", "llama_cache_ram_mb"),
        ("-kvu -no-kvu --kv-unified --no-kv-unified", "llama_kv_unified"),
        ("-fa --flash-attn --flash_attn", "llama_flash_attn"),
        ("-t --threads", "llama_threads"),
        ("--host --port --reuse-port", "addr"),
        ("-ctxcp --ctx-checkpoints", "llama_ctx_checkpoints"),
        ("--lora", "lora (of one model)"),
        ("-md --model-draft --spec-draft-model", "draft (of one model)"),
        ("-m --model -mu --model-url", "models_dir"),
    ],
)
def test_a_flag_with_a_setting_names_the_setting(flags: str, key: str) -> None:
    for flag in flags.split():
        assert str(refused_flag([flag, "9"])).endswith(f"use the setting {key}"), flag


@pytest.mark.parametrize(
    "flag",
    " ".join(NO_SETTING).split(),
)
def test_a_flag_without_a_setting_gives_the_reason(flag: str) -> None:
    assert "not allowed: " in str(refused_flag([flag]))
    assert "not allowed: " in str(refused_flag(["--jinja", flag, "x"]))


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--jinja"],
        ["--reasoning-format", "none", "--reasoning-budget", "-1"],
        ["--chat-template-kwargs", '{"a": 1, "b": "-c 5"}'],
        ["--top-k", "40", "--temp", "-.5"],
        ["--embedding", "--pooling", "mean"],
        ["--rope-scaling", "yarn", "--rope-scale", "4"],
        ["--spec-ngram-mod-n-max", "8"],
        ["--no-warmup", "-v", "--metrics"],
    ],
)
def test_harmless_flags_stand(args: list[str]) -> None:
    assert refused_flag(args) is None


def test_two_words_in_one_item() -> None:
    assert "use the setting llama_ctx" in str(refused_flag(["--ctx-size 4096"]))
    assert "as two items" in str(refused_flag(["--reasoning-format none"]))
    assert "begin with a flag" in str(refused_flag(["none"]))
    assert refused_flag(['--chat-template-kwargs={"a": 1}']) is None
