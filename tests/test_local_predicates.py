"""A guard that asks a predicate of its own model is judged by what the predicate answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_lint import fixing
from moe_lint.engine import Options, run
from moe_lint.model import Finding
from moe_lint.profile import load_profile
from tests.trees import HELPER_NAME, write_tree

SGLANG = load_profile("sglang")
GUARD = "if self.tp_size > 1 and not {call}:\n    x = tensor_model_parallel_all_reduce(x)\n"
WHOLE = "a or b or should_use_dp_reduce_scatterv() or should_use_flashinfer_cutlass_moe_fp4_allgather()"
ARGUMENTS = "use_reduce_scatter, should_allreduce_fusion"


def tree(folder: Path, call: str, definition: str) -> Path:
    """An engine whose block asks ``call``, a method of it (`self` first) or a function of its file."""
    root = write_tree(folder, GUARD.format(call=call))
    path = root / "models" / "x.py"
    text = path.read_text()
    if "(self" in definition:
        head = "    def forward(self"
        method = "".join(f"    {line}\n" for line in definition.splitlines())
        text = text.replace(head, f"{method}\n{head}", 1)
    else:
        text = text.replace("class XSparseMoeBlock", f"{definition}\n\n\nclass XSparseMoeBlock")
    path.write_text(text)
    return root


def found(root: Path) -> list[Finding]:
    return list(run(Options((str(root),), SGLANG)).findings)


DEFINITIONS = {
    "method": (f"self._skip({ARGUMENTS})", "def _skip(self, a, b):\n    return {body}"),
    "method-by-keyword": (
        "self._skip(b=should_allreduce_fusion, a=use_reduce_scatter)",
        "def _skip(self, a, b):\n    return {body}",
    ),
    "function": (f"_skip({ARGUMENTS})", "def _skip(a, b):\n    return {body}"),
    "with-a-default": (f"_skip({ARGUMENTS})", "def _skip(a, b, c=False):\n    return c or {body}"),
    "through-another": (
        f"self._skip({ARGUMENTS})",
        "def _skip(self, a, b):\n    return self._all(a, b)\n\ndef _all(self, a, b):\n    return {body}",
    ),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_whole_copy_of_the_helper_is_a_copy_that_can_drift(name: str, tmp_path: Path) -> None:
    call, definition = DEFINITIONS[name]
    (finding,) = found(tree(tmp_path, call, definition.replace("{body}", WHOLE)))
    assert (finding.rule, finding.severity.value, finding.relation) == ("MOE001", "warning", "equal")


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_copy_that_forgets_reasons_is_told_by_those(name: str, tmp_path: Path) -> None:
    call, definition = DEFINITIONS[name]
    (finding,) = found(tree(tmp_path, call, definition.replace("{body}", "a or b")))
    assert (finding.rule, finding.relation) == ("MOE001", "weaker")
    assert "`should_use_dp_reduce_scatterv()`" in finding.message


def test_a_predicate_that_asks_the_helper_is_the_helper(tmp_path: Path) -> None:
    asks = f"return {HELPER_NAME}(is_tp_path=True, use_reduce_scatter=a, should_allreduce_fusion=b)"
    assert found(tree(tmp_path, f"self._skip({ARGUMENTS})", f"def _skip(self, a, b):\n    {asks}")) == []


def test_the_fix_asks_the_helper_in_place_of_the_copy(tmp_path: Path) -> None:
    root = tree(tmp_path, f"self._skip({ARGUMENTS})", f"def _skip(self, a, b):\n    return {WHOLE}")
    options = Options((str(root),), SGLANG)
    (fixed,) = fixing.fix(options, run(options), fixing.ALLOWED["safe"]).fixed
    assert "not self._skip(" not in fixed.after
    assert f"if self.tp_size > 1 and not {HELPER_NAME}(" in fixed.after


@pytest.mark.parametrize(
    "definition",
    [
        "def _skip(self, a, b):\n    for one in (a, b):\n        if one:\n            return True\n    return False",
        "def _skip(self, *given):\n    return any(given)",
    ],
)
def test_a_predicate_that_is_not_understood_stays_a_condition_of_its_own(definition: str, tmp_path: Path) -> None:
    report = run(Options((str(tree(tmp_path, f"self._skip({ARGUMENTS})", definition)),), SGLANG))
    (row,) = [row for row in report.rows if row.post_experts]
    assert row.route == "none"


def test_a_predicate_about_something_else_is_left_alone(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        f"self._empty(x) and not {HELPER_NAME}(is_tp_path=True, use_reduce_scatter=use_reduce_scatter, "
        "should_allreduce_fusion=should_allreduce_fusion)",
        "def _empty(self, x):\n    return x.shape[0] == 0",
    )
    assert found(root) == []


#: What another file offers beside the helper, and how a model asks it.
ELSEWHERE = {
    "function": (
        "def skip(a, b):\n    return {helper}(is_tp_path=True, use_reduce_scatter=a, should_allreduce_fusion=b)\n",
        "from engine.layers.moe.skips import skip",
        f"skip({ARGUMENTS})",
    ),
    "function-of-a-module": (
        "def skip(a, b):\n    return {helper}(is_tp_path=True, use_reduce_scatter=a, should_allreduce_fusion=b)\n",
        "import engine.layers.moe.skips as skips",
        f"skips.skip({ARGUMENTS})",
    ),
    "method-of-a-class": (
        "class Skips:\n    @staticmethod\n    def skip(a, b):\n"
        "        return {helper}(is_tp_path=True, use_reduce_scatter=a, should_allreduce_fusion=b)\n",
        "from engine.layers.moe.skips import Skips",
        f"Skips.skip({ARGUMENTS})",
    ),
    "another-name": (
        "skip = {helper}\n",
        "from engine.layers.moe.skips import skip",
        "skip(is_tp_path=True, use_reduce_scatter=use_reduce_scatter, should_allreduce_fusion=should_allreduce_fusion)",
    ),
    "some-arguments-given": (
        "skip = functools.partial({helper}, is_tp_path=True)\n",
        "from engine.layers.moe.skips import skip as leave",
        "leave(use_reduce_scatter=use_reduce_scatter, should_allreduce_fusion=should_allreduce_fusion)",
    ),
}


def elsewhere(folder: Path, name: str, change: tuple[str, str] = ("", "")) -> Path:
    definition, statement, call = ELSEWHERE[name]
    root = write_tree(folder, GUARD.format(call=call))
    path = root / "models" / "x.py"
    path.write_text(
        path.read_text().replace("from engine.layers.moe import", f"{statement}\nfrom engine.layers.moe import")
    )
    text = f"from engine.layers.moe.utils import {HELPER_NAME}\n\n{definition.format(helper=HELPER_NAME)}"
    (root / "layers" / "moe" / "skips.py").write_text(text.replace(*change))
    return root


@pytest.mark.parametrize("name", ELSEWHERE)
def test_who_asks_another_file_that_asks_the_helper_asks_the_helper(name: str, tmp_path: Path) -> None:
    report = run(Options((str(elsewhere(tmp_path, name)),), SGLANG))
    (row,) = [row for row in report.rows if row.post_experts]
    assert (row.route, report.findings, report.problems) == ("helper", (), ())


def test_another_name_for_the_helper_on_the_wrong_axis_is_found(tmp_path: Path) -> None:
    (finding,) = found(elsewhere(tmp_path, "some-arguments-given", ("is_tp_path=True", "is_tp_path=False")))
    assert finding.rule == "MOE004"


def test_a_copy_in_another_file_is_a_hand_written_guard(tmp_path: Path) -> None:
    asks = f"{HELPER_NAME}(is_tp_path=True, use_reduce_scatter=a, should_allreduce_fusion=b)"
    (finding,) = found(elsewhere(tmp_path, "function", (asks, "a or b")))
    assert (finding.rule, finding.relation) == ("MOE001", "weaker")


def test_what_the_helper_asks_stays_a_condition_of_its_own(tmp_path: Path) -> None:
    """Its flags are those that the layer publishes: here none, so the block reduces behind a layer that scatters."""
    root = write_tree(tmp_path, "if not published():\n    x = tensor_model_parallel_all_reduce(x)\n")
    path = root / "layers" / "moe" / "utils.py"
    head, _, _ = path.read_text().partition(f"def {HELPER_NAME}(")
    path.write_text(
        f"{head}def published():\n    return forward().use_reduce_scatter\n\n\n"
        f"def {HELPER_NAME}(*, is_tp_path):\n    return published() or should_use_dp_reduce_scatterv()\n"
    )
    model = root / "models" / "x.py"
    text = model.read_text().replace("use_reduce_scatter=False, should_allreduce_fusion=False", "**given")
    text = text.replace("use_reduce_scatter=scatter, should_allreduce_fusion=fuse", "")
    model.write_text(f"from engine.layers.moe.utils import published\n{text}")
    assert "MOE201" in [finding.rule for finding in found(root)]


PROPERTY = "@property\ndef skips(self):\n    if self.tp_size == 1:\n        return True\n    return {body}"
ASKS = f"{HELPER_NAME}(is_tp_path=True)"


@pytest.mark.parametrize(("body", "rules"), [(ASKS, set()), ("should_use_dp_reduce_scatterv()", {"MOE001"})])
def test_a_property_of_several_statements_is_what_it_answers(body: str, rules: set[str], tmp_path: Path) -> None:
    root = tree(tmp_path, "self.skips", PROPERTY.replace("{body}", body))
    assert {finding.rule for finding in found(root)} - {"MOE005"} == rules


@pytest.mark.parametrize(("body", "rules"), [(ASKS, set()), ("should_use_dp_reduce_scatterv()", {"MOE001"})])
def test_so_is_a_property_of_a_base(body: str, rules: set[str], tmp_path: Path) -> None:
    root = tree(tmp_path, "self.skips", "def unused():\n    return None")
    path = root / "models" / "x.py"
    base = "class Base:\n" + "".join(f"    {line}\n" for line in PROPERTY.replace("{body}", body).splitlines())
    path.write_text(path.read_text().replace("class XSparseMoeBlock:", f"{base}\n\nclass XSparseMoeBlock(Base):"))
    assert {finding.rule for finding in found(root)} - {"MOE005"} == rules
