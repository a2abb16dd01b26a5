"""A guard may stand at the calls of a method instead of inside it."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent, indent

import pytest

from moe_lint import fixing
from moe_lint.engine import Options, run
from moe_lint.model import Report
from moe_lint.profile import load_profile
from tests.trees import HELPER_NAME, write_tree

SGLANG = load_profile("sglang")
ASK = (
    f"{HELPER_NAME}(is_tp_path=True, use_reduce_scatter=use_reduce_scatter, "
    "should_allreduce_fusion=should_allreduce_fusion)"
)
REDUCE = """
def _reduce(self, x):
    if self.tp_size > 1:
        x = tensor_model_parallel_all_reduce(x)
    return x
"""


def rules(root: Path, forward: str, *methods: str, more: str = "") -> list[str]:
    """The rules on guards that report on the block of a pretend engine; its `forward` has run the experts already."""
    report = judged(root, forward, *methods, more=more)
    return sorted(finding.rule for finding in report.findings if finding.rule.startswith("MOE0"))


def judged(root: Path, forward: str, *methods: str, more: str = "") -> Report:
    tree = write_tree(root, guard=f"{forward}\n")
    path = tree / "models" / "x.py"
    head, _, decoder = path.read_text().partition("class XDecoderLayer:")
    block = head.rstrip() + "\n" + "".join(indent(dedent(method).lstrip("\n"), "    ") for method in methods)
    path.write_text(f"{block}\n{dedent(more)}\n\nclass XDecoderLayer:{decoder}")
    report = run(Options((str(tree),), SGLANG, law=True))
    assert report.problems == ()
    return report


def test_a_method_that_is_called_without_asking_is_reported(tmp_path: Path) -> None:
    assert rules(tmp_path, "x = self._reduce(x)", REDUCE) == ["MOE002"]


def test_asking_before_the_call_is_as_good_as_asking_inside(tmp_path: Path) -> None:
    assert rules(tmp_path, f"if not {ASK}:\n    x = self._reduce(x)", REDUCE) == []


@pytest.mark.parametrize(("question", "verdict"), [(ASK, "once"), ("x.ndim > 2", "doubled")])
def test_the_law_knows_what_was_asked_before_the_call(tmp_path: Path, question: str, verdict: str) -> None:
    report = judged(tmp_path, f"if not {question}:\n    x = self._reduce(x)", REDUCE)
    assert [row.law.verdict for row in report.rows if row.law is not None] == [verdict]


def test_leaving_before_the_call_is_as_good(tmp_path: Path) -> None:
    assert rules(tmp_path, f"if {ASK}:\n    return x\nx = self._reduce(x)", REDUCE) == []


def test_every_call_has_to_ask(tmp_path: Path) -> None:
    forward = f"if x.ndim > 2:\n    return self._reduce(x)\nif not {ASK}:\n    x = self._reduce(x)"
    assert rules(tmp_path, forward, REDUCE) == ["MOE002"]


def test_asking_two_calls_up_counts(tmp_path: Path) -> None:
    between = "def _finish(self, x):\n    return self._reduce(x)\n"
    assert rules(tmp_path, f"if not {ASK}:\n    x = self._finish(x)", between, REDUCE) == []


def test_the_wrong_question_before_the_call_does_not_count(tmp_path: Path) -> None:
    assert rules(tmp_path, "if x.ndim > 2:\n    x = self._reduce(x)", REDUCE) == ["MOE002"]


def test_an_answer_the_wrong_way_round_does_not_count(tmp_path: Path) -> None:
    assert rules(tmp_path, f"if {ASK}:\n    x = self._reduce(x)", REDUCE) == ["MOE002"]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("handed-on-as-a-value", "def _later(self, x):\n    return run(self._reduce, x)\n"),
        ("called-through-another-name", "def _later(self, x):\n    f = self._reduce\n    return f(self.experts(x))\n"),
    ],
)
def test_a_method_that_is_used_otherwise_may_be_called_without_asking(tmp_path: Path, name: str, more: str) -> None:
    assert rules(tmp_path, f"if not {ASK}:\n    x = self._reduce(x)", more, REDUCE) == ["MOE002"], name


def test_a_method_that_others_call_may_be_called_without_asking(tmp_path: Path) -> None:
    more = "\ndef run(block, x):\n    return block._reduce(block.experts(x))\n"
    assert rules(tmp_path, f"if not {ASK}:\n    x = self._reduce(x)", REDUCE, more=more) == ["MOE002"]


def test_a_subclass_that_calls_the_method_has_to_ask_too(tmp_path: Path) -> None:
    more = """
    class YSparseMoeBlock(XSparseMoeBlock):
        def forward(self, x):
            return self._reduce(self.experts(x))
    """
    assert rules(tmp_path, f"if not {ASK}:\n    x = self._reduce(x)", REDUCE, more=more) == ["MOE002"]


def test_methods_that_call_each_other_come_to_an_end(tmp_path: Path) -> None:
    again = """
    def _again(self, x):
        return self._reduce(x)
    """
    reduce = REDUCE.replace("    return x", "    return self._again(x) if x.ndim > 3 else x")
    assert rules(tmp_path, f"if not {ASK}:\n    x = self._reduce(x)", again, reduce) == ["MOE002"]


BY_OTHER_NAMES = f"""
def _sum(self, x, fuse, *, scatter):
    if self.tp_size > 1 and not {HELPER_NAME}(
        is_tp_path=True, use_reduce_scatter=scatter, should_allreduce_fusion=fuse
    ):
        x = tensor_model_parallel_all_reduce(x)
    return x
"""


@pytest.mark.parametrize(
    ("call", "relation", "verdict"),
    [
        ("x = self._sum(x, should_allreduce_fusion, scatter=use_reduce_scatter)", "equal", "once"),
        ("x = self._sum(x, x.ndim > 2, scatter=use_reduce_scatter)", "equal", "doubled"),
        ("x = self._sum(x, use_reduce_scatter, scatter=use_reduce_scatter)", "equal", "doubled"),
    ],
)
def test_flags_that_a_method_takes_under_other_names(tmp_path: Path, call: str, relation: str, verdict: str) -> None:
    report = judged(tmp_path, call, BY_OTHER_NAMES)
    assert [(row.relation, row.law.verdict) for row in report.rows if row.law is not None] == [(relation, verdict)]


def test_a_guard_by_hand_on_flags_under_other_names_is_fixed_with_those(tmp_path: Path) -> None:
    by_hand = BY_OTHER_NAMES.replace(
        f"{HELPER_NAME}(\n        is_tp_path=True, use_reduce_scatter=scatter, should_allreduce_fusion=fuse\n    )",
        "fuse and not scatter",
    )
    report = judged(tmp_path, "x = self._sum(x, should_allreduce_fusion, scatter=use_reduce_scatter)", by_hand)
    (finding,) = report.findings
    assert (finding.rule, finding.relation) == ("MOE001", "weaker")
    options = Options((str(tmp_path),), SGLANG)
    (fixed,) = fixing.fix(options, run(options), fixing.ALLOWED["default"]).fixed
    assert "use_reduce_scatter=scatter" in fixed.after
    assert "should_allreduce_fusion=fuse" in fixed.after


@pytest.mark.parametrize(("more", "verdict"), [("", "once"), ("\nfinish = _sum\n", "doubled")])
def test_a_function_takes_flags_under_other_names_where_each_call_is_known(
    tmp_path: Path, more: str, verdict: str
) -> None:
    function = BY_OTHER_NAMES.replace("self, x", "ranks, x").replace("self.tp_size", "ranks")
    call = "x = _sum(self.tp_size, x, should_allreduce_fusion, scatter=use_reduce_scatter)"
    report = judged(tmp_path, call, more=function + more)
    assert [row.law.verdict for row in report.rows if row.law is not None] == [verdict]
