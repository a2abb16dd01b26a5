"""What the guards of a real release say a repair changes is what it changes when it is run, in every case.

The sweep over 0.5.10.post1 is replayed twice: in its own release, and with its model files laid over the next release,
whose communicator absorbs in ways that the older one did not know.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

from moe_lint.formula import Relation
from moe_lint.profile import load_profile
from reference_runtime.launch import choose
from reference_runtime.plan import Settings
from reference_runtime.tree import find_tree
from reference_runtime.verdicts import Verdict
from tests.agreement import Checked, Texts, analysed, check, laid_over, pairs, repaired
from tests.corpus.releases import release

PROFILE = load_profile("sglang")
OLD, NEW = "0.5.10.post1", "0.5.11"
QUICK = Settings(world_sizes=(2,))
SOME = ("qwen3_moe", "minimax_m2", "bailing_moe")
#: Blocks that are wrong for another reason, too, where the dispatcher of FP4 experts sums: they add a shared expert
#: that is sharded over the TP group to what the dispatcher has summed.
SHARED_EXPERT = {"bailing_moe_linear.BailingMoE", "llada2.LLaDA2MoeSparseMoeBlock", "llama4.Llama4MoE"}
#: Layers that sum beside their block, too: one sums the same once more; the dense halves of the other sum over the TP
#: group although FP4 experts have left each rank its own rows, and there the ranks meet with unequal ones.
SUMS_ITSELF = {"step3_vl.Step3TextMoEMLP", "longcat_flash.LongcatFlashMoE"}
#: Rewritten where the model hands its last layer's output on: no block or layer of theirs is, so none is to be run.
LOOP_ALONE = {"qwen3_5"}
#: A model file of the older release imports a name from here that the newer one has dropped; no case calls it.
DROPPED = {"deepseek_v2": "srt/layers/attention/nsa/utils.py"}


@lru_cache(maxsize=1)
def sweep() -> dict[str, str]:
    """What `init` and `--fix` make of the older release."""
    return repaired(release(OLD) / "sglang", PROFILE)


def model_files() -> list[Path]:
    return [Path(path) for path in sweep() if Path(path).parent.name == "models"]


def in_its_own_release(names: tuple[str, ...], settings: Settings, folder: Path) -> list[Checked]:
    return _checked(OLD, {}, sweep(), names, settings, folder)


def under_the_next_release(names: tuple[str, ...], settings: Settings, folder: Path) -> list[Checked]:
    files = [file for file in model_files() if file.stem in names]
    moved = {file: str(release(NEW) / file.relative_to(release(OLD))) for file in files}
    extra = {}
    for file in files:
        if file.stem in DROPPED:
            path = Path("sglang", DROPPED[file.stem])
            extra[str(release(NEW) / path)] = (release(OLD) / path).read_text("utf-8-sig")
    before = {there: file.read_text("utf-8-sig") for file, there in moved.items()}
    after = {there: sweep()[str(file)] for file, there in moved.items()}
    return _checked(NEW, {**before, **extra}, {**after, **extra}, names, settings, folder)


def _checked(
    version: str, before: Texts, after: Texts, names: tuple[str, ...], settings: Settings, folder: Path
) -> list[Checked]:
    tree, root = find_tree(release(version)), release(version) / "sglang"
    sites = pairs(*analysed(root, PROFILE, before, after), tree.root)
    sides = laid_over(tree, before, folder / "before"), laid_over(tree, after, folder / "after")
    blocks, _ = choose(*sides, names)
    return check(*sides, blocks, sites, settings)


def assert_agreement(checked: list[Checked]) -> None:
    assert [one.disagreement for one in checked if one.disagreement] == []
    assert [one for one in checked if one.result.regression] == []
    unexplained = [
        f"{one.block} {one.result.level} {one.result.case}: {one.result.detail}"
        for one in checked
        if one.still_wrong
        and not (str(one.block) in SHARED_EXPERT and "fp4-allgather" in one.result.case)
        and not (str(one.block) in SUMS_ITSELF and one.result.level == "layer")
    ]
    assert unexplained == []


def corrected(checked: list[Checked]) -> dict[str, set[str]]:
    """Level -> the corrected cases."""
    found: dict[str, set[str]] = {}
    for one in checked:
        if one.result.verdict is Verdict.CORRECTED:
            found.setdefault(one.result.level, set()).add(f"{one.block.module} {one.result.case}")
    return found


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> list[Checked]:
    return in_its_own_release(SOME, QUICK, tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> list[Checked]:
    return under_the_next_release(SOME, QUICK, tmp_path_factory.mktemp("replayed"))


def test_a_repair_changes_what_its_guards_say_and_nothing_else(own: list[Checked]) -> None:
    assert_agreement(own)
    assert corrected(own) == {
        "block": {
            "qwen3_moe tp2 ep2 dp2 max-len reduce-scatter",
            # the added helper skips on both axes for what the experts' combine has summed
            "qwen3_moe tp2 ep2 dp2 sum-len fp4-allgather",
            "minimax_m2 tp2 ep2 dp2 sum-len fp4-allgather",
        },
        "layer": {
            "qwen3_moe tp2 ep2 dp2 sum-len fp4-allgather",
            "qwen3_moe tp2 ep2 dp2 max-len",
            "minimax_m2 tp2 ep1 dp2 max-len",
            "minimax_m2 tp2 ep2 dp2 max-len",
            "minimax_m2 tp2 ep2 dp2 sum-len fp4-allgather",
        },
    }


def test_a_guard_that_the_helper_equals_stays_what_it_was_bit_for_bit(own: list[Checked]) -> None:
    equal = [one for one in own if set(one.reached) == {Relation.EQUAL}]
    assert len(equal) >= 15
    assert {one.same for one in equal} == {True}


def test_under_absorbers_that_it_never_knew_every_block_is_corrected(replayed: list[Checked]) -> None:
    assert_agreement(replayed)
    found = corrected(replayed)
    for level in ("block", "layer"):  # the reduce-scatter of unequal parts
        assert {f"{name} tp2 ep2 dp2 sum-len" for name in SOME} <= found[level]


@pytest.mark.integration
@pytest.mark.parametrize("replay", [in_its_own_release, under_the_next_release])
def test_every_rewritten_file_agrees_in_every_case(
    replay: Callable[[tuple[str, ...], Settings, Path], list[Checked]], tmp_path: Path
) -> None:
    names = tuple(sorted({file.stem for file in model_files()} - LOOP_ALONE))
    assert len(names) == 17
    apart = tuple(name for name in names if name in DROPPED) if replay is under_the_next_release else ()
    checked = replay(tuple(name for name in names if name not in apart), Settings(), tmp_path / "all")
    for name in apart:
        checked += replay((name,), Settings(), tmp_path / name)
    assert_agreement(checked)
    models = release(OLD if replay is in_its_own_release else NEW) / "sglang" / "srt" / "models"
    # a file that the release does not have is no model of it, laid over it or not
    assert {one.block.module for one in checked} == {name for name in names if (models / f"{name}.py").is_file()}
    assert {one.result.verdict for one in checked if one.differing and not one.still_wrong} == {Verdict.CORRECTED}
