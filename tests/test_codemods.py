"""Rewriting, text in and text out: every fix of a small model has exactly the text that is written down here."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

from codemods.edits import CannotRewrite, Edit, apply_edits
from codemods.imports import import_edits
from moe_lint import fixing
from moe_lint.engine import Options, run
from moe_lint.profile import load_profile
from tests.trees import COMPLETE, FORGETFUL, HELPER_NAME, ROUTED, model, write_tree

PROFILE = load_profile("sglang")
SUM = "x = tensor_model_parallel_all_reduce(x)"


def rewritten(folder: Path, text: str) -> str:
    """The model file after every fix, whatever its safety."""
    root = write_tree(folder)
    (root / "models" / "x.py").write_bytes(text.encode())
    options = Options((str(root),), PROFILE)
    result = fixing.fix(options, run(options), fixing.ALLOWED["unsafe"])
    assert result.not_proven == ()
    assert result.report.findings == ()
    (fixed,) = result.fixed
    compile(fixed.after, "x.py", "exec")
    return fixed.after


def reduction(text: str) -> str:
    """What stands between the experts and the last return, without its indentation."""
    body = text[text.index("self.experts(x)\n") + len("self.experts(x)\n") : text.index("\nclass XDecoderLayer")]
    return textwrap.dedent(body.rstrip().removesuffix("return x").rstrip() + "\n")


def call(indent: str = "", axis: str = "True") -> str:
    return (
        f"{HELPER_NAME}(\n{indent}    is_tp_path={axis},\n{indent}    use_reduce_scatter=use_reduce_scatter,\n"
        f"{indent}    should_allreduce_fusion=should_allreduce_fusion,\n{indent})"
    )


LOCAL = "skip = use_reduce_scatter or should_allreduce_fusion\n"
EITHER = "use_reduce_scatter or should_allreduce_fusion"
EP = "x = moe_expert_parallel_all_reduce(x)"
BARE_RETURN = "return tensor_model_parallel_all_reduce(x)"

GUARDS = {
    "one line": (f"if self.tp_size > 1 and not use_reduce_scatter:\n    {SUM}\n", ROUTED),
    "chain": (COMPLETE, ROUTED),
    "not any": (f"if self.tp_size > 1 and not ({EITHER}):\n    {SUM}\n", ROUTED),
    "unguarded if": (f"if self.tp_size > 1:\n    {SUM}\n", ROUTED),
    "local": (f"{LOCAL}if self.tp_size > 1 and not skip:\n    {SUM}\n", ROUTED),
    "local of a local": (
        f"fused = should_allreduce_fusion\n{LOCAL.replace('should_allreduce_fusion', 'fused')}"
        f"if self.tp_size > 1 and not skip:\n    {SUM}\n",
        ROUTED,
    ),
    "local that is read again": (
        f"{LOCAL}self.log(skip)\nif self.tp_size > 1 and not skip:\n    {SUM}\n",
        f"{LOCAL}self.log(skip)\n{ROUTED}",
    ),
    "local with a comment": (
        f"skip = {EITHER}  # summed later\nif self.tp_size > 1 and not skip:\n    {SUM}\n",
        f"skip = {EITHER}  # summed later\n{ROUTED}",
    ),
    "local that a predicate answers": (
        f"skip = should_use_dp_reduce_scatterv()\nif self.tp_size > 1 and not skip:\n    {SUM}\n",
        ROUTED,
    ),
    "local of a call that may act": (
        f"skip = use_reduce_scatter or self.decide()\nif self.tp_size > 1 and not skip:\n    {SUM}\n",
        f"skip = use_reduce_scatter or self.decide()\nif (\n    self.tp_size > 1\n    and not skip\n"
        f"    and not {call('    ')}\n):\n    {SUM}\n",
    ),
    "comments": (
        "if (\n    self.tp_size > 1  # more than one rank\n    # summed by the reduce-scatter\n"
        f"    and not use_reduce_scatter\n    and not should_allreduce_fusion  # fused\n):\n    {SUM}  # sum\n",
        "if (\n    self.tp_size > 1  # more than one rank\n    # summed by the reduce-scatter\n"
        f"    and not {call('    ')}  # fused\n):\n    {SUM}  # sum\n",
    ),
    "three, last": (
        f"if self.tp_size > 1 and self.ready and not should_allreduce_fusion:\n    {SUM}\n",
        f"if (\n    self.tp_size > 1\n    and self.ready\n    and not {call('    ')}\n):\n    {SUM}\n",
    ),
    "three, middle": (
        f"if self.tp_size > 1 and not should_allreduce_fusion and self.ready:\n    {SUM}\n",
        f"if (\n    self.tp_size > 1\n    and not {call('    ')}\n    and self.ready\n):\n    {SUM}\n",
    ),
    "bare assignment": (f"{SUM}\n", f"if not {call()}:\n    {SUM}\n"),
    "bare return": (f"{BARE_RETURN}\n", f"if not {call()}:\n    {BARE_RETURN}\nreturn x\n"),
    "early return": (f"if {EITHER}:\n    return x\n{SUM}\n", f"if {call()}:\n    return x\n{SUM}\n"),
    "ternary": (
        "x = x if should_allreduce_fusion else tensor_model_parallel_all_reduce(x)\n",
        f"x = x if {call()} else tensor_model_parallel_all_reduce(x)\n",
    ),
    "ternary, sum first": (
        f"{SUM} if not should_allreduce_fusion else x\n",
        f"{SUM} if (\n    not {call('    ')}\n) else x\n",
    ),
    "nested": (
        f"if self.tp_size > 1:\n    if not use_reduce_scatter:\n        {SUM}\n",
        f"if self.tp_size > 1:\n    if not {call('    ')}:\n        {SUM}\n",
    ),
    "nested, a reason in each": (
        f"if not use_reduce_scatter:\n    if self.tp_size > 1 and not should_allreduce_fusion:\n        {SUM}\n",
        f"if not {call()}:\n    if self.tp_size > 1:\n        {SUM}\n",
    ),
    "nested, reasons beside others": (
        f"if self.ready and not use_reduce_scatter:\n    if self.tp_size > 1 and not should_allreduce_fusion:\n"
        f"        {SUM}\n",
        f"if self.ready:\n    if self.tp_size > 1 and not {call('    ')}:\n        {SUM}\n",
    ),
    "nested, nothing but reasons": (
        f"if not use_reduce_scatter:\n    if not should_allreduce_fusion:\n        {SUM}\n",
        f"if not use_reduce_scatter:\n    if not {call('    ')}:\n        {SUM}\n",
    ),
    "nested, another statement inside": (
        f"if not use_reduce_scatter:\n    x = self.scale(x)\n    if self.tp_size > 1:\n        {SUM}\n",
        f"if not use_reduce_scatter:\n    x = self.scale(x)\n    if self.tp_size > 1 and not {call('    ')}:\n"
        f"        {SUM}\n",
    ),
    "nested, else inside": (
        f"if not use_reduce_scatter:\n    if self.tp_size > 1:\n        {SUM}\n    else:\n        x = self.scale(x)\n",
        f"if not use_reduce_scatter:\n    if self.tp_size > 1:\n        if not {call('        ')}:\n"
        f"            {SUM}\n    else:\n        x = self.scale(x)\n",
    ),
    "nested, else outside": (
        f"if self.tp_size > 1:\n    if not use_reduce_scatter:\n        {SUM}\nelse:\n    x = self.scale(x)\n",
        f"if self.tp_size > 1:\n    if not {call('    ')}:\n        {SUM}\nelse:\n    x = self.scale(x)\n",
    ),
    "else": (
        f"if use_reduce_scatter:\n    pass\nelse:\n    {SUM}\n",
        f"if {call()}:\n    pass\nelse:\n    {SUM}\n",
    ),
    "else, another statement above": (
        f"if use_reduce_scatter:\n    x = self.scale(x)\nelse:\n    {SUM}\n",
        f"if use_reduce_scatter:\n    x = self.scale(x)\nelse:\n    if not {call('    ')}:\n        {SUM}\n",
    ),
    "two statements": (
        f"if self.tp_size > 1 and not use_reduce_scatter:\n    {SUM}\n    x = self.scale(x)\n",
        f"if self.tp_size > 1 and not use_reduce_scatter:\n    if not {call('    ')}:\n        {SUM}\n"
        "    x = self.scale(x)\n",
    ),
    "two statements, the same decision": (
        f"{COMPLETE}    x = self.scale(x)\n",
        f"{ROUTED}    x = self.scale(x)\n",
    ),
    "early return, more behind it": (
        f"if use_reduce_scatter:\n    return x\n{SUM}\nx = self.scale(x)\n",
        f"if use_reduce_scatter:\n    return x\nif not {call()}:\n    {SUM}\nx = self.scale(x)\n",
    ),
    "early return of something else": (
        f"if use_reduce_scatter:\n    return None\nif self.tp_size > 1:\n    {SUM}\n",
        f"if use_reduce_scatter:\n    return None\n{ROUTED}",
    ),
    "early return, then a condition": (
        f"if use_reduce_scatter:\n    return x\nif self.tp_size > 1 and not should_allreduce_fusion:\n    {SUM}\n",
        f"if {call()}:\n    return x\nif self.tp_size > 1:\n    {SUM}\n",
    ),
    "ternary, another value": (
        f"if self.tp_size > 1:\n    {SUM} if not use_reduce_scatter else x\n",
        f"if self.tp_size > 1:\n    {SUM} if (\n        not {call('        ')}\n    ) else x\n",
    ),
    "another name": (
        "y = tensor_model_parallel_all_reduce(x)\nx = y\n",
        f"y = x\nif not {call()}:\n    y = tensor_model_parallel_all_reduce(x)\nx = y\n",
    ),
    "a reason beside another condition": (
        f"if not (use_reduce_scatter or self.busy):\n    {SUM}\n",
        f"if not (\n    {call('    ')}\n    or self.busy\n):\n    {SUM}\n",
    ),
    "a size inside the negation": (
        f"if not (use_reduce_scatter or self.tp_size <= 1):\n    {SUM}\n",
        f"if not (\n    {call('    ')}\n    or self.tp_size <= 1\n):\n    {SUM}\n",
    ),
    "pair": (
        f"if self.ep_size > 1 and not use_reduce_scatter:\n    {EP}\n{FORGETFUL}",
        f"if self.ep_size > 1 and not {call(axis='False')}:\n    {EP}\n{ROUTED}",
    ),
}


@pytest.mark.parametrize(("guard", "expected"), GUARDS.values(), ids=GUARDS)
def test_a_guard_is_rewritten_to_exactly_this(tmp_path: Path, guard: str, expected: str) -> None:
    assert reduction(rewritten(tmp_path, model(guard))) == expected


def test_what_is_left_under_a_negation_keeps_its_parentheses(tmp_path: Path) -> None:
    inner = f"    if self.tp_size > 1 and not use_reduce_scatter:\n        {SUM}\n"
    guard = f"if not (use_reduce_scatter or self.a and self.b):\n{inner}"
    after = rewritten(tmp_path, model(guard))
    assert "if not (self.a and self.b):\n" in after


def test_all_outside_the_guard_and_its_import_stays(tmp_path: Path) -> None:
    expected = model(ROUTED).replace(
        "    should_use_dp_reduce_scatterv,\n", f"    {HELPER_NAME},\n    should_use_dp_reduce_scatterv,\n"
    )
    assert rewritten(tmp_path, model(FORGETFUL)) == expected


def test_windows_line_ends_stay(tmp_path: Path) -> None:
    after = rewritten(tmp_path, model(FORGETFUL).replace("\n", "\r\n"))
    assert "\n" not in after.replace("\r\n", "")
    assert reduction(after.replace("\r\n", "\n")) == ROUTED


def test_windows_line_ends_and_comments_inside_a_condition_stay(tmp_path: Path) -> None:
    guard, expected = GUARDS["comments"]
    after = rewritten(tmp_path, model(guard).replace("\n", "\r\n"))
    assert "\n" not in after.replace("\r\n", "")
    assert reduction(after.replace("\r\n", "\n")) == expected


def test_a_form_feed_elsewhere_stays(tmp_path: Path) -> None:
    before = model(FORGETFUL).replace("\n\nclass", "\n\x0c\nclass")
    after = rewritten(tmp_path, before)
    assert after.count("\x0c") == before.count("\x0c") == 2
    assert reduction(after.replace("\x0c", "")) == ROUTED


def test_a_file_with_tabs_gets_tabs(tmp_path: Path) -> None:
    after = rewritten(tmp_path, model(f"{SUM}\n").replace("        ", "\t\t").replace("\n    def", "\n\tdef"))
    assert f"\t\tif not {HELPER_NAME}(\n" in after
    assert f"\n\t\t\t{SUM}\n" in after


def test_a_name_that_only_the_old_guard_used_goes(tmp_path: Path) -> None:
    after = rewritten(tmp_path, model(COMPLETE))
    assert f"from engine.layers.moe import (\n    get_moe_a2a_backend,\n    {HELPER_NAME},\n)\n" in after


def test_a_new_import_line_stands_in_its_place(tmp_path: Path) -> None:
    after = rewritten(tmp_path, model(FORGETFUL, moe=()))
    following = after.partition("import LayerCommunicator\n")[2].partition("\n\n")[0]
    assert following.startswith("from engine.layers.moe")
    assert HELPER_NAME in following


def imported(before: str, after: str, name: str = "mid") -> str:
    result = apply_edits(after, import_edits(before, after, "m.b", name))
    ast.parse(result)
    return result


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from m.b import alpha, zeta\n", "from m.b import alpha, mid, zeta\n"),
        ("from m.b import A_CONST, Klass\n", "from m.b import A_CONST, Klass, mid\n"),
        ("from m.b import zeta  # why\n", "from m.b import mid, zeta  # why\n"),
        ("from m.b import zeta as z\n", "from m.b import mid, zeta as z\n"),
        ("from m.b import (\n    a,  # a\n    z,\n)\n", "from m.b import (\n    a,  # a\n    mid,\n    z,\n)\n"),
        ("from m.a import x\nfrom m.c import y\n", "from m.a import x\nfrom m.b import mid\nfrom m.c import y\n"),
        ("from m.c import y\n", "from m.b import mid\nfrom m.c import y\n"),
        ("import os\n\nX = 1\n", "import os\nfrom m.b import mid\n\nX = 1\n"),
        ("X = 1\n", "from m.b import mid\nX = 1\n"),
        ("from m.b import mid\n", "from m.b import mid\n"),
        ("from m.a import x", "from m.a import x\nfrom m.b import mid"),
        # what cannot take the name without a loss stays as it is
        ("from m.b import *\n", "from m.b import *\nfrom m.b import mid\n"),
        ("from m.b import a; import os\n", "from m.b import a; import os\nfrom m.b import mid\n"),
        ("from m.b import (\n    a, z,  # why\n)\n", "from m.b import (\n    a, z,  # why\n)\nfrom m.b import mid\n"),
    ],
)
def test_a_name_is_imported_once_and_in_order(text: str, expected: str) -> None:
    assert imported(text, text) == expected


def test_only_names_that_the_rewrite_left_unused_go() -> None:
    head = "from m.a import gone, never_used\n"
    after = imported(f"{head}gone()\n", f"{head}mid()\n")
    assert after == "from m.a import never_used\nfrom m.b import mid\nmid()\n"


def test_an_import_goes_beside_the_new_one() -> None:
    head = "from m.a import gone\n"
    assert imported(f"{head}gone()\n", f"{head}mid()\n") == "from m.b import mid\nmid()\n"


@pytest.mark.parametrize("head", ["from m.a import gone; import os\n", "from m.a import (gone,  # why\n    x)\n"])
def test_an_unused_name_stays_where_something_else_would_go_with_it(head: str) -> None:
    assert imported(f"{head}gone()\n", f"{head}pass\n", name="") == f"{head}pass\n"


def test_an_import_that_becomes_empty_goes_with_its_line() -> None:
    head = "from m.a import gone\n"
    assert imported(f"{head}gone()\n", f"{head}pass\n", name="") == "pass\n"


def test_edits_are_made_at_their_places_and_never_overlap() -> None:
    assert apply_edits("abcdef", [Edit(4, 5, "E"), Edit(0, 1, "A"), Edit(2, 2, "-")]) == "Ab-cdEf"
    with pytest.raises(CannotRewrite, match="overlap"):
        apply_edits("abcdef", [Edit(0, 3, "x"), Edit(2, 4, "y")])
