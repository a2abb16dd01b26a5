"""Fixing: what is written, what is held back, and that a second run finds nothing to do."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lint import fixing
from moe_lint.engine import Options, run
from moe_lint.model import SkipReason
from moe_lint.profile import load_profile
from moe_lint.reading import Known
from moe_lint.rewritten import write_all
from tests.runs import moe_lint
from tests.trees import COMPLETE, FORGETFUL, HELPER_NAME, ROUTED, write_tree

PROFILE = load_profile("sglang")
SUM = "    x = tensor_model_parallel_all_reduce(x)\n"
PAIR = f"if self.ep_size > 1 and not use_reduce_scatter:\n    x = moe_expert_parallel_all_reduce(x)\n{FORGETFUL}"


def bytes_of(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*.py")}


@pytest.mark.parametrize("guard", [FORGETFUL, COMPLETE, PAIR, SUM.strip() + "\n"])
def test_what_is_fixed_is_clean_and_stays_as_it_is(tmp_path: Path, guard: str) -> None:
    root = write_tree(tmp_path, guard)
    assert moe_lint(str(root)).exit_code == 1
    assert moe_lint("--fix", str(root)).exit_code == 0
    fixed = bytes_of(root)
    assert moe_lint(str(root)).exit_code == 0
    assert moe_lint("--fix", str(root)).exit_code == 0
    assert bytes_of(root) == fixed


@pytest.mark.parametrize(("guard", "option"), [(ROUTED, "--fix"), (FORGETFUL, "--diff")])
def test_nothing_is_written(tmp_path: Path, guard: str, option: str) -> None:
    root = write_tree(tmp_path, guard)
    before = bytes_of(root)
    shown = moe_lint(option, str(root)).stdout
    assert (f"+    {HELPER_NAME},\n" in shown) == (option == "--diff")
    assert bytes_of(root) == before


def test_safe_only_rewrites_what_keeps_its_behaviour_and_no_more(tmp_path: Path) -> None:
    forgetful, complete = write_tree(tmp_path / "a", FORGETFUL), write_tree(tmp_path / "b", COMPLETE)
    before = bytes_of(forgetful)
    assert moe_lint("--fix", "--safe-only", str(forgetful)).exit_code == 1
    assert bytes_of(forgetful) == before
    assert moe_lint("--fix", "--safe-only", str(complete)).exit_code == 0
    assert HELPER_NAME in (complete / "models/x.py").read_text()


def test_a_sum_over_ep_that_asks_for_tp_is_no_safe_fix(tmp_path: Path) -> None:
    wrong = ROUTED.replace("self.tp_size", "self.ep_size").replace("tensor_model_parallel", "moe_expert_parallel")
    root = write_tree(tmp_path, wrong)
    (fix,) = [f.fix for f in run(Options((str(root),), load_profile("sglang"))).findings if f.rule == "MOE004"]
    assert fix is not None
    assert (fix.safety.value, fix.reason) == (
        "unsafe",
        "reduces for `should_use_flashinfer_cutlass_moe_fp4_allgather()`, too",
    )


def test_a_pair_is_fixed_together(tmp_path: Path) -> None:
    root = write_tree(tmp_path, PAIR)
    assert moe_lint("--fix", str(root)).exit_code == 0
    text = (root / "models/x.py").read_text()
    assert "is_tp_path=False" in text
    assert "is_tp_path=True" in text


def test_the_mode_of_a_file_is_kept_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = write_tree(tmp_path) / "models/x.py"
    path.chmod(0o640)
    names = sorted(path.parent.iterdir())
    assert moe_lint("--fix", str(tmp_path / "engine")).exit_code == 0
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(path.parent.iterdir()) == names


def test_a_verified_wrapper_is_used_where_no_flag_is_in_scope(tmp_path: Path) -> None:
    guard = f"if self.tp_size > 1 and not should_use_dp_reduce_scatterv():\n{SUM}"
    root = write_tree(tmp_path, guard, wrapper=True, flags="")
    moe_lint("--fix", str(root))
    text = (root / "models/x.py").read_text()
    assert "        x = self.experts(x)\n        x = reduce_moe_output(x)\n        return x\n" in text
    assert "    reduce_moe_output,\n" in text


def test_a_wrapper_that_takes_flags_is_not_put_in_where_a_flag_is_in_scope(tmp_path: Path) -> None:
    guard = f"if self.tp_size > 1 and not use_reduce_scatter:\n{SUM}"
    root = write_tree(tmp_path, guard, wrapper=True)
    moe_lint("--fix", str(root))
    text = (root / "models/x.py").read_text()
    assert "reduce_moe_output(x)" not in text
    assert "use_reduce_scatter=use_reduce_scatter" in text


def test_init_then_fix_and_init_again(tmp_path: Path) -> None:
    root = write_tree(tmp_path, COMPLETE, helper=False)
    before = bytes_of(root)
    assert f"+def {HELPER_NAME}(" in moe_lint("init", "--diff", str(root)).stdout
    assert bytes_of(root) == before
    assert moe_lint("init", str(root)).exit_code == 0
    assert f'"{HELPER_NAME}"' in (root / "layers/moe/__init__.py").read_text()
    assert moe_lint("--fix", str(root)).exit_code == 0
    assert f"not {HELPER_NAME}(" in (root / "models/x.py").read_text()
    before = bytes_of(root)
    again = moe_lint("init", str(root))
    assert (again.exit_code, "nothing to do" in again.stdout) == (0, True)
    assert bytes_of(root) == before


def with_published_flags(root: Path) -> Path:
    """The tree with a helper that takes no flags: it reads what the layer published."""
    utils = root / "layers/moe/utils.py"
    text = utils.read_text()
    text = text.replace("    use_reduce_scatter: bool = False,\n    should_allreduce_fusion: bool = False,\n", "")
    text = text.replace(
        "if use_reduce_scatter or should_allreduce_fusion:",
        "if get_forward().use_reduce_scatter or get_forward().should_allreduce_fusion:",
    )
    utils.write_text(text)
    return root


@pytest.mark.parametrize(
    ("flag", "stays"), [("should_allreduce_fusion", True), ("get_forward().should_allreduce_fusion", False)]
)
def test_a_flag_that_was_passed_stays_where_the_helper_asks_what_was_published(
    tmp_path: Path, flag: str, stays: bool
) -> None:
    guard = f"if self.tp_size > 1 and not {flag}:\n{SUM}"
    root = with_published_flags(write_tree(tmp_path, guard, flags="should_allreduce_fusion=False" if stays else ""))
    assert moe_lint("--fix", str(root)).exit_code == 0
    text = (root / "models/x.py").read_text()
    assert f"not {HELPER_NAME}(is_tp_path=True" in text.replace("(\n            is_tp", "(is_tp").replace("  ", "")
    assert ("and not should_allreduce_fusion\n" in text) == stays
    assert moe_lint(str(root)).exit_code == 0


def test_a_complete_guard_with_passed_flags_is_not_called_the_same_as_a_published_decision(tmp_path: Path) -> None:
    root = with_published_flags(write_tree(tmp_path, COMPLETE))
    options = Options((str(root),), PROFILE)
    (finding,) = (f for f in run(options).findings if f.rule == "MOE001")
    assert finding.message.endswith(
        "only while `should_allreduce_fusion` and `use_reduce_scatter` are passed as the layer publishes"
    )
    plan = finding.fix
    assert plan is not None
    assert plan.safety.value == "corrective"
    assert "stay: the helper asks what was published" in plan.reason


BOTH = f"""

def post_experts_all_reduce(x):
    ep = get_parallel().moe_ep_size > 1 and not {HELPER_NAME}(is_tp_path=False)
    tp = get_parallel().moe_tp_size > 1 and not {HELPER_NAME}(is_tp_path=True)
    if ep and tp and can_merge():
        return tensor_model_parallel_all_reduce(x)
    if ep:
        x = moe_expert_parallel_all_reduce(x)
    if tp:
        x = moe_tensor_model_parallel_all_reduce(x)
    return x
"""
EP_SUM = "    x = moe_expert_parallel_all_reduce(x)\n"
MOE_TP_SUM = "    x = moe_tensor_model_parallel_all_reduce(x)\n"
HAND = "not get_forward().should_allreduce_fusion"
DRIFTED = (
    f"if self.ep_size > 1 and {HAND}:\n{EP_SUM}\n"
    f"if self.tp_size > 1 and {HAND} and not get_forward().use_reduce_scatter:\n{MOE_TP_SUM}"
)


def with_pair_wrapper(folder: Path, guard: str, wrapper: str = BOTH) -> Path:
    root = with_published_flags(write_tree(folder, guard, flags=""))
    with (root / "layers/moe/utils.py").open("a") as utils:
        utils.write(wrapper)
    return root


def body_after_fix(root: Path) -> str:
    assert moe_lint("--fix", str(root)).exit_code == 0
    text = (root / "models/x.py").read_text()
    assert moe_lint("--fix", str(root)).exit_code == 0
    assert (root / "models/x.py").read_text() == text
    return text


def test_a_pair_becomes_one_call_of_the_wrapper_that_runs_both(tmp_path: Path) -> None:
    text = body_after_fix(with_pair_wrapper(tmp_path, DRIFTED))
    assert "        x = self.experts(x)\n        x = post_experts_all_reduce(x)\n        return x\n" in text
    assert "from engine.layers.moe.utils import post_experts_all_reduce\n" in text
    assert HELPER_NAME not in text


@pytest.mark.parametrize(
    ("guard", "wrapper"),
    [
        (DRIFTED, BOTH.replace("    if tp:", "    if tp and is_prefill():")),  # reduces over TP sometimes only
        (
            DRIFTED,
            BOTH.replace(
                "    if ep and tp and", "    if ep and tp:\n        x = tensor_model_parallel_all_reduce(x)\n    if"
            ),
        ),
        (DRIFTED.replace(EP_SUM, f"{EP_SUM}x = self.scale(x)\n"), BOTH),  # something is done in between
        (DRIFTED.replace(EP_SUM, f"    # why\n{EP_SUM}"), BOTH),  # a comment would be lost
        (DRIFTED.replace("if self.tp", "if self.ready and self.tp"), BOTH),  # a condition of one alone
    ],
)
def test_a_pair_is_guarded_by_the_helper_where_the_wrapper_would_do_something_else(
    tmp_path: Path, guard: str, wrapper: str
) -> None:
    text = body_after_fix(with_pair_wrapper(tmp_path, guard, wrapper))
    assert "post_experts_all_reduce(x)" not in text.replace(HELPER_NAME, "")
    assert text.count(f"not {HELPER_NAME}(") == 2


ATOMS = st.lists(
    st.sampled_from(
        [
            "use_reduce_scatter",
            "should_allreduce_fusion",
            "should_use_dp_reduce_scatterv()",
            "should_use_flashinfer_cutlass_moe_fp4_allgather()",
        ]
    ),
    min_size=1,
    max_size=3,
    unique=True,
)
SKIPS = st.one_of(
    ATOMS.map(lambda atoms: f"not ({' or '.join(atoms)})"),
    ATOMS.map(lambda atoms: f"({' and '.join(f'not {atom}' for atom in atoms)})"),
    ATOMS.map(lambda atoms: f"not ({' and '.join(atoms)})"),
)
OPERANDS = st.lists(SKIPS, min_size=1, max_size=3, unique=True).flatmap(
    lambda skips: st.permutations(["self.tp_size > 1", *skips])
)


@settings(max_examples=50, deadline=None)
@given(OPERANDS)
def test_any_guard_over_the_reasons_equals_the_helper_after_its_fix(operands: list[str]) -> None:
    guard = f"if {' and '.join(operands)}:\n{SUM}"
    with tempfile.TemporaryDirectory() as folder:
        root = write_tree(Path(folder), guard)
        options = Options((str(root),), PROFILE)
        result = fixing.fix(options, run(options), fixing.ALLOWED["unsafe"])
        assert result.not_proven == ()
        (fixed,) = result.fixed
        write_all([fixed])
        after = run(options)
        assert [row.relation for row in after.rows if row.post_experts] == ["equal"]
        assert after.findings == ()
        assert fixing.fix(options, after, fixing.ALLOWED["unsafe"]).fixed == ()


def test_a_comment_that_silences_nothing_goes_with_a_fix(tmp_path: Path) -> None:
    root = write_tree(tmp_path, ROUTED)
    path = root / "models/x.py"
    clean = path.read_text()
    path.write_text(clean.replace("        return x\n", "        return x  # moe-lint: ignore[MOE001] old\n", 1))
    assert moe_lint(str(root)).exit_code == 1
    assert moe_lint("--fix", "--safe-only", str(root)).exit_code == 0
    assert path.read_text() == clean


def test_a_comment_goes_when_the_fix_repairs_what_it_silenced(tmp_path: Path) -> None:
    pair = PAIR.replace("parallel_all_reduce(x)\n", "parallel_all_reduce(x)  # moe-lint: ignore[MOE101] known\n", 1)
    root = write_tree(tmp_path, pair)
    path = root / "models/x.py"
    path.write_text(path.read_text() + "\n\nX = 1  # moe-lint: ignore[MOE001] old\n")
    assert "ignore[MOE101]" in path.read_text()
    assert moe_lint("--fix", str(root)).exit_code == 0
    assert "moe-lint" not in path.read_text()


# --- what several judgements of one tree share


def test_a_file_that_is_as_it_was_is_read_once(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    known: Known = {}
    options = Options((str(root),), PROFILE, known=known)
    assert run(options) == run(Options((str(root),), PROFILE))
    path = str((root / "models/x.py").resolve())
    first = dict(known)
    rewritten = {path: (root / "models/x.py").read_text() + "\n\nLATER = 1\n"}
    assert run(options, rewritten) == run(Options((str(root),), PROFILE), rewritten)
    assert {name for name, facts in known.items() if first.get(name) is not facts} == {path}


def test_what_is_wrong_with_a_file_that_is_not_read_again_is_told_again(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    with (root / "models/x.py").open("a") as file:
        file.write("\n\ndef broken(:\n    pass\n")
    options = Options((str(root),), PROFILE, known={})
    assert [problem.reason for problem in run(options).problems] == [SkipReason.SYNTAX_ERROR]
    assert run(options) == run(options)
