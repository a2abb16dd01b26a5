"""`init` and `--fix --verify` on a real release: a rewrite is run before it is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.corpus.releases import release
from tests.runs import moe_lint

NAMES = ("qwen3_moe", "glm4_moe")


def test_a_release_is_fixed_and_what_is_rewritten_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(release("0.5.10.post1") / "sglang", tmp_path / "sglang")
    assert moe_lint("init", "sglang").exit_code == 0
    models = [f"sglang/srt/models/{name}.py" for name in NAMES]
    before = [Path(model).read_text() for model in models]
    result = moe_lint("--no-cache", "--select", "MOE0,MOE1", "--fix", "--verify", *models)
    assert result.exit_code == 0, result.output
    after = [Path(model).read_text() for model in models]
    assert all(old != new for old, new in zip(before, after, strict=True))
    told = {line.split(": ")[2].split(".")[0]: line for line in result.stderr.splitlines()}
    assert told.keys() == set(NAMES)
    assert "CORRECTED" in told["qwen3_moe"]  # its EP guard lacked a reason that its TP guard had
    for line in told.values():
        assert line.startswith("verified: ")
        assert "BROKEN" not in line
        assert "UNMODELLED" not in line
