"""Many variants of one tree: each in a process of its own, compared with outcomes that are computed once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from reference_runtime.launch import choose, verify
from reference_runtime.plan import Settings
from reference_runtime.tree import find_tree
from reference_runtime.verdicts import Verdict
from tests.runtime.mini import MINI, PAIR, changed, engine
from tests.runtime.test_verify import FORWARD, MODELS
from tests.trials.observe import Question
from tests.trials.variants import Trial, run_variants

TEXTS = {
    "same": PAIR + "\n",
    "loops": changed(FORWARD, FORWARD + "        while self.ep_size > 1:\n            pass\n"),
    "crashes": changed(FORWARD, FORWARD + "        import ctypes\n        ctypes.string_at(0)\n"),
    "leaves": changed(FORWARD, FORWARD + "        import os\n        os._exit(0)\n"),
    "does_not_load": "import nothing_of_that_name.at_all\n" + PAIR.replace("class PairMoE", "class Other"),
    "reduces_in_two_steps": MODELS["reduces_in_two_steps"][1],
    "flag_dropped": MODELS["flag_dropped"][1],
}
FUNCTION = "PairMoE.forward"


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trial]:
    tree = find_tree(MINI)
    (block,), _ = choose(tree, tree, ())
    variants = []
    for text in TEXTS.values():
        folder = tmp_path_factory.mktemp("overlay")
        file = folder / block.file.relative_to(tree.root)
        file.parent.mkdir(parents=True)
        file.write_text(text)
        variants.append(replace(tree, overlay=folder))
    asked = Question("mini/models/pair.py", FUNCTION, ("self.ep_size > 1", "use_reduce_scatter", "no_such_name"))
    found = run_variants(tree, {block: variants}, Settings(("block",), (2,), timeout=4.0), {block: [asked]})
    return dict(zip(TEXTS, (one for (one,) in found[block]), strict=True))


def test_a_variant_that_does_the_same_is_run_in_every_case(trials: dict[str, Trial]) -> None:
    assert {case.verdict for case in trials["same"].cases} == {Verdict.EQUIVALENT}
    assert len(trials["same"].cases) == 11
    assert trials["same"].refuted is None


@pytest.mark.parametrize(
    ("name", "why", "cases"),
    [
        ("loops", "no answer within 4 s", 3),
        ("crashes", "killed by SIGSEGV", 1),
        ("leaves", "ended before its work was done", 1),
    ],
)
def test_a_variant_that_dies_is_refuted_by_the_case_in_which_it_died(
    trials: dict[str, Trial], name: str, why: str, cases: int
) -> None:
    trial = trials[name]
    assert trial.problem == why
    assert len(trial.cases) == cases
    assert trial.refuted is trial.cases[-1]
    assert trial.refuted.after.detail == why


def test_a_variant_without_the_block_is_not_called_broken(trials: dict[str, Trial]) -> None:
    assert {case.verdict for case in trials["does_not_load"].cases} == {Verdict.UNMODELLED}


def test_right_by_other_collectives_differs_without_being_refuted(trials: dict[str, Trial]) -> None:
    trial = trials["reduces_in_two_steps"]
    assert trial.refuted is trial.cases[-1]  # by FP4's unequal rows
    assert {case.verdict for case in trial.differing[:-1]} == {Verdict.REORDERED}
    assert len(trial.differing) == 6


def test_the_verdicts_are_those_of_verify(trials: dict[str, Trial], tmp_path: Path) -> None:
    before = engine(tmp_path / "before", {"pair": PAIR})
    after = engine(tmp_path / "after", {"pair": TEXTS["flag_dropped"]})
    (model,) = verify(before, after, (), Settings(("block",), (2,))).models
    ours = trials["flag_dropped"].cases
    assert [(c.case, c.before, c.after) for c in ours] == [
        (c.case, c.before, c.after) for c in model.cases[: len(ours)]
    ]
    assert ours[-1].verdict is Verdict.BROKEN


def test_conditions_are_evaluated_where_their_function_stands(trials: dict[str, Trial]) -> None:
    trial = trials["same"]
    told = {case.case: seen for case, (_, seen) in zip(trial.cases, trial.seen, strict=True)}
    (answers,) = told["tp2 ep2 dp2 max-len reduce-scatter"][FUNCTION]
    assert answers == {
        "self.ep_size > 1": True,
        "use_reduce_scatter": True,
        "no_such_name": "NameError: name 'no_such_name' is not defined",
    }
    (answers,) = told["tp2 ep1"][FUNCTION]
    assert (answers["self.ep_size > 1"], answers["use_reduce_scatter"]) == (False, False)
