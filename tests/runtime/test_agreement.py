"""The comparison of formulas with a run, on a tree whose only difference is known."""

from __future__ import annotations

import pytest

from moe_lint.profile import load_profile
from reference_runtime.launch import choose
from reference_runtime.plan import Settings
from reference_runtime.tree import find_tree
from tests.agreement import Checked, Pair, analysed, check, laid_over, pairs
from tests.runtime.mini import MINI, PAIR
from tests.runtime.test_verify import MODELS

PROFILE = load_profile("sglang")
FILE = str(MINI / "mini" / "models" / "pair.py")
CASE = "tp2 ep2 dp2 max-len reduce-scatter"


def formulas(before: str, after: str) -> list[Pair]:
    root = MINI / "mini"
    return pairs(*analysed(root, PROFILE, {FILE: before}, {FILE: after}), MINI)


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Checked]]:
    """A block that forgets a flag, before and after: compared with its own formulas, and with those of no change."""
    tree = find_tree(MINI)
    before = laid_over(tree, {FILE: MODELS["flag_dropped"][1]}, tmp_path_factory.mktemp("before"))
    after = laid_over(tree, {FILE: PAIR}, tmp_path_factory.mktemp("after"))
    blocks, _ = choose(before, after, ("*",))
    own, none = formulas(MODELS["flag_dropped"][1], PAIR), formulas(PAIR, PAIR)
    settings = Settings(("block",), (2,))
    return {name: check(before, after, blocks, found, settings) for name, found in (("own", own), ("none", none))}


def test_the_formulas_say_which_case_is_corrected(forgetful: dict[str, list[Checked]]) -> None:
    checked = forgetful["own"]
    assert [one.result.case for one in checked if one.differing] == [CASE]
    assert [one.disagreement for one in checked if one.disagreement] == []
    assert not any(one.still_wrong for one in checked)
    assert len(checked) == 11


def test_formulas_that_do_not_fit_the_run_are_a_disagreement(forgetful: dict[str, list[Checked]]) -> None:
    (told,) = [one.disagreement for one in forgetful["none"] if one.disagreement]
    assert f"{CASE}: CORRECTED" in told
    assert told.endswith("the guards agree, the runs do not")
