"""One decision in many shapes: a guard is read for what it means, wherever it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_lint.engine import Options, run
from moe_lint.model import Report
from moe_lint.profile import load_profile
from tests.trees import HELPER_NAME, write_tree

SGLANG = load_profile("sglang")
HELPER = (
    f"{HELPER_NAME}(is_tp_path=True, use_reduce_scatter=use_reduce_scatter, "
    "should_allreduce_fusion=should_allreduce_fusion)"
)
#: `ASK` is the question whether to skip, `R(` the all-reduce.
SHAPES = {
    "walrus": "if not (skip := ASK):\n    x = R(x)",
    "walrus-early": "if skip := ASK:\n    return x\nx = R(x)",
    "ternary": "x = x if ASK else R(x)",
    "lambda": "reduce = lambda t: R(t)\nif not ASK:\n    x = reduce(x)",
    "lambda-guard-inside": "reduce = lambda t: t if ASK else R(t)\nx = reduce(x)",
    "nested-def": "def reduce(t):\n    if ASK:\n        return t\n    return R(t)\nx = reduce(x)",
    "nested-def-outside": "def reduce(t):\n    return R(t)\nif not ASK:\n    x = reduce(x)",
    "match-bool": "match ASK:\n    case False:\n        x = R(x)",
    "match-bool2": "match ASK:\n    case True:\n        pass\n    case _:\n        x = R(x)",
    "match-guard": "match x.ndim:\n    case 2 if not ASK:\n        x = R(x)",
    "try": "try:\n    if not ASK:\n        x = R(x)\nfinally:\n    pass",
    "try-else": "try:\n    y = 1\nexcept ValueError:\n    y = 2\nelse:\n    if not ASK:\n        x = R(x)",
    "try-early": "try:\n    if ASK:\n        return x\nexcept ValueError:\n    raise\nx = R(x)",
    "with": "with ctx():\n    if not ASK:\n        x = R(x)",
    "with-early": "with ctx():\n    if ASK:\n        return x\nx = R(x)",
    "with-early-inside": "with ctx():\n    if ASK:\n        return x\n    x = R(x)",
    "for-continue": "for i in range(1):\n    if ASK:\n        continue\n    x = R(x)",
    "while": "while not ASK:\n    x = R(x)\n    break",
    "while-true-break": "while True:\n    if ASK:\n        break\n    x = R(x)\n    break",
    "raise": "if ASK:\n    raise RuntimeError\nx = R(x)",
    "and-expr": "y = not ASK and R(x)",
    "or-expr": "y = ASK or R(x)",
    "demorgan": "if not (ASK or self.tp_size <= 1):\n    x = R(x)",
    "double-neg": "if not not not ASK:\n    x = R(x)",
    "is-false": "if ASK is False:\n    x = R(x)",
    "eq-false": "if ASK == False:\n    x = R(x)",
    "bool": "if not bool(ASK):\n    x = R(x)",
    "all": "if all([self.tp_size > 1, not ASK]):\n    x = R(x)",
    "local-chain": "a = ASK\nb = not a\nc = b and self.tp_size > 1\nif c:\n    x = R(x)",
    "local-tuple": "skip, y = ASK, 1\nif not skip:\n    x = R(x)",
    "local-annot": "skip: bool = ASK\nif not skip:\n    x = R(x)",
    "local-if-set": "skip = False\nif ASK:\n    skip = True\nif not skip:\n    x = R(x)",
    "local-if-else": "if ASK:\n    skip = True\nelse:\n    skip = False\nif not skip:\n    x = R(x)",
    "local-orin": "skip = False\nskip |= ASK\nif not skip:\n    x = R(x)",
    "elif": "if ASK:\n    pass\nelif self.tp_size > 1:\n    x = R(x)",
    "else": "if ASK:\n    y = x\nelse:\n    x = R(x)",
    "nested": "if self.tp_size > 1:\n    if x.ndim == 2:\n        if not ASK:\n            x = R(x)",
    "comprehension": "y = [R(t) for t in [x] if not ASK]",
    "genexp": "y = sum(R(t) for t in [x] if not ASK)",
    "dict": "y = {'a': R(x)} if not ASK else {}",
    "fstring": "if not ASK:\n    y = f'{R(x)}'",
    "starred": "if not ASK:\n    x = R(*[x])",
    "kw": "if not ASK:\n    x = R(input_=x)",
    "return-ternary": "return x if ASK else R(x)",
    "early-two": "if self.tp_size == 1:\n    return x\nif ASK:\n    return x\nreturn R(x)",
    "early-or": "if self.tp_size <= 1 or ASK:\n    return x\nreturn R(x)",
    "del": "skip = ASK\nif not skip:\n    x = R(x)\n    del skip",
    "global-alias": "reduce = R\nif not ASK:\n    x = reduce(x)",
    "partial": "reduce = partial(R)\nif not ASK:\n    x = reduce(x)",
    "paren": "if (\n    not (\n        ASK\n    )\n):\n    x = (\n        R(x)\n    )",
}


def judged(root: Path, shape: str, question: str) -> Report:
    guard = shape.replace("ASK", question).replace("R(", "tensor_model_parallel_all_reduce(")
    guard = guard.replace("= R\n", "= tensor_model_parallel_all_reduce\n").replace(
        "(R)", "(tensor_model_parallel_all_reduce)"
    )
    return run(Options((str(write_tree(root, f"{guard}\n")),), SGLANG))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_asking_the_helper_is_right(tmp_path: Path, shape: str) -> None:
    report = judged(tmp_path, shape, HELPER)
    assert report.problems == ()
    assert [finding.message for finding in report.findings if finding.rule.startswith("MOE0")] == []
    (row,) = [row for row in report.rows if row.path.endswith("x.py")]
    assert (row.post_experts, row.relation) == (True, "equal")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_asking_for_one_reason_only_is_not(tmp_path: Path, shape: str) -> None:
    report = judged(tmp_path, shape, "use_reduce_scatter")
    assert report.problems == ()
    assert {finding.rule for finding in report.findings} & {"MOE001", "MOE002"}


HANDED = "flags = dict(use_reduce_scatter=use_reduce_scatter, should_allreduce_fusion=should_allreduce_fusion)\n"


def test_flags_handed_over_as_a_mapping_are_not_forgotten(tmp_path: Path) -> None:
    report = judged(tmp_path, f"{HANDED}if not ASK:\n    x = R(x)", f"{HELPER_NAME}(is_tp_path=True, **flags)")
    assert (report.problems, report.findings) == ((), ())


def test_what_a_guard_asks_beside_flags_in_a_mapping_is_compared(tmp_path: Path) -> None:
    question = f"{HELPER_NAME}(is_tp_path=False, **flags)"
    report = judged(tmp_path, f"{HANDED}if not ASK:\n    x = R(x)", question)
    assert {finding.rule for finding in report.findings} & {"MOE004", "MOE007"}
