"""The ways through a block, over the files of a tree."""

from __future__ import annotations

from pathlib import Path

from moe_lint.engine import Options, run
from moe_lint.profile import load_profile
from tests.trees import ROUTED, write_tree

EARLY = """\
if x.shape[0] == 1:
    return finished(x)
"""


def early_returns(folder: Path, finished: str) -> list[str]:
    """The returns that MOE307 reports in a tree whose block hands what it returns early to a function elsewhere."""
    tree = write_tree(folder, EARLY + ROUTED)
    block = tree / "models" / "x.py"
    head = "from engine.models.finish import finished\nfrom engine.distributed import ("
    block.write_text(block.read_text().replace("from engine.distributed import (", head))
    (tree / "models" / "finish.py").write_text(finished)
    report = run(Options((str(tree),), load_profile("sglang"), select=("MOE307",)))
    assert report.problems == ()
    return [Path(f.path).read_text().splitlines()[f.span.line - 1].strip() for f in report.findings]


def test_a_function_of_a_file_without_a_word_of_the_engine_is_followed(tmp_path: Path) -> None:
    finished = "FAST = True\n\n\ndef finished(x):\n    return x if FAST else x * 2\n"
    assert early_returns(tmp_path, finished) == ["return finished(x)"]


def test_what_is_decided_there_by_what_is_not_known_is_not_claimed(tmp_path: Path) -> None:
    finished = "def finished(x):\n    if fast:\n        return x\n    raise ValueError\n"
    assert early_returns(tmp_path, finished) == []
