"""What forks do to the names and places of an engine: the same findings, and fixes that fit the fork."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.runs import document, moe_lint
from tests.trees import COMPLETE, FORGETFUL, HELPER_NAME, ROUTED, model, write_tree

ANNOTATED = FORGETFUL.replace("    x = ", "    x: Tensor = ")
BARE = "x = tensor_model_parallel_all_reduce(x)\n"


def rewrite(tree: Path, *pairs: tuple[str, str]) -> None:
    """Replace patterns in every file of a tree."""
    for path in tree.rglob("*.py"):
        text = path.read_text()
        for pattern, by in pairs:
            text = re.sub(pattern, by, text)
        path.write_text(text)


def renamed(tree: Path, names: Mapping[str, str]) -> None:
    rewrite(tree, *((rf"(?<!\w){old}(?!\w)", new) for old, new in names.items()))


def fixed(tree: Path, *options: str) -> str:
    """The model file after `--fix`, which must leave nothing behind."""
    result = moe_lint("--fix", "--no-cache", *options, str(tree))
    assert result.exit_code == 0, result.output
    return (tree / "models" / "x.py").read_text()


# --- annotated otherwise


def test_an_annotated_reduction_is_fixed_like_another(tmp_path: Path) -> None:
    text = fixed(write_tree(tmp_path, ANNOTATED))
    assert f"not {HELPER_NAME}(" in text
    assert "            x: Tensor = tensor_model_parallel_all_reduce(x)\n" in text


def test_an_annotated_reduction_without_a_guard_gets_one(tmp_path: Path) -> None:
    text = fixed(write_tree(tmp_path, "y: Tensor = tensor_model_parallel_all_reduce(x)\nx = y\n"))
    assert "        y = x\n        if not " in text
    assert "            y: Tensor = tensor_model_parallel_all_reduce(x)\n" in text
