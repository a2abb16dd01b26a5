"""Fingerprints: the same after edits elsewhere, another after an edit of the guard."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_lint.engine import Options, run
from moe_lint.fingerprint import fingerprints
from moe_lint.model import Finding
from moe_lint.profile import load_profile
from tests.trees import FORGETFUL, model, write_tree


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_tree(tmp_path)


def judged(tree: Path, guard: str = FORGETFUL, before: str = "") -> dict[Finding, str]:
    (tree / "models/x.py").write_text(before + model(guard))
    report = run(Options((str(tree),), load_profile("sglang"), select=("MOE001",)))
    assert report.findings
    return fingerprints(report.findings)


def test_moving_the_lines_keeps_the_fingerprint(tree: Path) -> None:
    here, moved = judged(tree), judged(tree, before="# a comment\n\n\n")
    assert [f.span.line + 3 for f in here] == [f.span.line for f in moved]
    assert list(here.values()) == list(moved.values())


def test_moving_a_class_within_its_file_keeps_the_fingerprint(tree: Path) -> None:
    here = judged(tree)
    head, block, layer = model(FORGETFUL).partition("class XSparseMoeBlock")[0], *model(FORGETFUL).split("\n\n\n")[1:]
    (tree / "models/x.py").write_text("\n\n\n".join((head.strip(), layer.strip(), block.strip(), "")))
    report = run(Options((str(tree),), load_profile("sglang"), select=("MOE001",)))
    assert [f.span.line for f in report.findings] > [f.span.line for f in here]
    assert list(fingerprints(report.findings).values()) == list(here.values())


def test_formatting_the_guard_keeps_the_fingerprint(tree: Path) -> None:
    black = """\
    if (
        self.tp_size > 1
        and not use_reduce_scatter  # somebody else sums
        and not should_allreduce_fusion
    ):
        x = tensor_model_parallel_all_reduce(x)
    """
    assert list(judged(tree).values()) == list(judged(tree, black).values())


def test_another_guard_is_another_finding(tree: Path) -> None:
    other = "if self.tp_size > 1 and not use_reduce_scatter:\n    x = tensor_model_parallel_all_reduce(x)\n"
    assert not set(judged(tree).values()) & set(judged(tree, other).values())


def test_alike_findings_in_one_function_are_told_apart_by_their_order(tree: Path) -> None:
    twice = judged(tree, FORGETFUL + FORGETFUL)
    assert len(set(twice.values())) == len(twice) == 2
    assert next(iter(judged(tree).values())) == next(iter(twice.values()))


def test_the_path_counts_relative_to_the_root(tree: Path, tmp_path: Path) -> None:
    findings = list(judged(tree))
    assert fingerprints(findings, str(tmp_path)) == fingerprints(findings)
    assert fingerprints(findings, str(tree)) != fingerprints(findings)


def test_a_message_that_names_a_line_does_not_move_the_fingerprint(tree: Path) -> None:
    from msgspec.structs import replace

    finding = next(iter(judged(tree)))
    one, two = (replace(finding, subject="", message=f"line {n} sums again") for n in (7, 19))
    assert list(fingerprints([one]).values()) == list(fingerprints([two]).values())
