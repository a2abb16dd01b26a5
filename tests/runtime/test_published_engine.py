"""An engine that publishes its settings in groups and sums at layer boundaries: how newer trees are built."""

from __future__ import annotations

from pathlib import Path

import pytest

from reference_runtime.discover import blocks
from reference_runtime.launch import verify
from reference_runtime.plan import Settings
from reference_runtime.verdicts import CaseResult, RunReport, Verdict
from tests.runtime.mini import PAIR, PUBLISHED, STAGED, engine, published

RETURN = "        return output\n"
SUMS = "        return get_parallel().tp_group.all_reduce(output)\n"
LAYER = "self.post_attention_layernorm, ffn_sums=True"
MODELS = {
    "same": (STAGED, STAGED + "\n"),
    "sums_itself": (STAGED, STAGED.replace(RETURN, SUMS)),
    "sums_itself_and_says_so": (
        STAGED,
        STAGED.replace(RETURN, SUMS).replace(LAYER, LAYER.replace("True", "False")),
    ),
    "sum_forgotten": (STAGED, STAGED.replace(LAYER, LAYER.replace("True", "False"))),
    "shared_expert_in_full": (STAGED, STAGED.replace("shared / get_parallel().tp_size", "shared")),
    "unknown_kernel": (
        STAGED.replace("import fused_gate_sigmoid_mul_add", "import a_kernel_that_nobody_models").replace(
            "fused_gate_sigmoid_mul_add(hidden_states, self.shared_gate.weight, shared, output)",
            "a_kernel_that_nobody_models(output)",
        ),
        STAGED,
    ),
    "unknown_setting": (
        STAGED.replace(RETURN, "        return output if not get_exec().overlap_mode else -output\n").replace(
            "import get_parallel\n", "import get_exec, get_parallel\n"
        ),
        STAGED,
    ),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    folder = tmp_path_factory.mktemp("trees")
    before = published(folder / "before", {name: text for name, (text, _) in MODELS.items()})
    after = published(folder / "after", {name: text for name, (_, text) in MODELS.items()})
    return verify(before, after, ("*",), Settings(world_sizes=(2,), parallel=2))


def cases(report: RunReport, name: str, level: str) -> list[CaseResult]:
    """The cases of a model that the engine can run."""
    (found,) = [m for m in report.models if m.model == f"{name}.StagedMoE"]
    assert found.problem == ""
    return [c for c in found.cases if c.level == level and c.verdict is not Verdict.INFEASIBLE]


def verdicts(report: RunReport, name: str, level: str) -> set[Verdict]:
    return {case.verdict for case in cases(report, name, level)}


def test_a_block_that_leaves_its_partial_to_the_boundary_is_equivalent_to_itself(report: RunReport) -> None:
    block, layer = cases(report, "same", "block"), cases(report, "same", "layer")
    assert {case.verdict for case in block + layer} == {Verdict.EQUIVALENT}
    assert (len(block), len(layer)) == (9, 9)
    assert all(case.before.partial for case in block if "fp4" not in case.case)


def test_the_tree_itself_sums_at_its_boundaries(report: RunReport) -> None:
    traces = {case.case: case.before.trace for case in cases(report, "same", "layer")}
    assert traces["tp2 ep1"] == ("all_reduce(attn_tp, 5x64)", "all_reduce(tp, 5x64)") * 2
    assert "reduce_scatter(tp, 16x64)" in traces["tp2 ep2 dp2 max-len"]


def test_another_owner_of_the_sum_is_not_judged_at_block_level(report: RunReport) -> None:
    for name in ("sums_itself", "sums_itself_and_says_so"):
        plain = [case for case in cases(report, name, "block") if "fp4" not in case.case]
        assert {case.verdict for case in plain} == {Verdict.UNMODELLED}
        assert {case.detail for case in plain} == {
            "the block now sums its output itself: whether that is right is decided at layer level"
        }


def test_a_sum_in_the_block_and_at_the_boundary_is_broken_at_layer_level(report: RunReport) -> None:
    assert verdicts(report, "sums_itself", "layer") >= {Verdict.BROKEN}
    plain = next(case for case in cases(report, "sums_itself", "layer") if case.case == "tp2 ep1")
    assert plain.verdict is Verdict.BROKEN


def test_a_sum_that_moves_from_the_boundary_into_the_block_is_right(report: RunReport) -> None:
    moved = [case for case in cases(report, "sums_itself_and_says_so", "layer") if "fp4" not in case.case]
    assert {case.verdict for case in moved} <= {Verdict.EQUIVALENT, Verdict.REORDERED}


def test_a_sum_that_nobody_makes_is_broken_at_layer_level_alone(report: RunReport) -> None:
    assert verdicts(report, "sum_forgotten", "block") == {Verdict.EQUIVALENT}
    assert verdicts(report, "sum_forgotten", "layer") >= {Verdict.BROKEN}


def test_a_partial_with_a_part_too_much_is_broken_at_both_levels(report: RunReport) -> None:
    for level in ("block", "layer"):
        assert {c.verdict for c in cases(report, "shared_expert_in_full", level) if "fp4" not in c.case} == {
            Verdict.BROKEN
        }


def test_a_kernel_without_an_implementation_is_named(report: RunReport) -> None:
    found = cases(report, "unknown_kernel", "block")
    assert {case.verdict for case in found} == {Verdict.UNMODELLED}
    assert {case.detail for case in found} == {"mini.layers.elementwise.a_kernel_that_nobody_models"}


def test_a_setting_whose_default_is_computed_is_named(report: RunReport) -> None:
    found = cases(report, "unknown_setting", "block")
    assert {case.detail for case in found} == {"ServerArgs.overlap_mode"}


def test_the_owner_of_the_sum_is_read_from_the_decoder(tmp_path: Path) -> None:
    (block,) = blocks("staged", PUBLISHED / "mini" / "models" / "staged.py")
    assert (block.communicator, block.owner) == (True, "boundary")
    text = STAGED.replace("boundary", "steps").replace("append_stages", "append_steps")
    alone, itself = tmp_path / "alone.py", tmp_path / "itself.py"
    alone.write_text(
        text.replace(
            "        hidden_states = self.attn_steps.prepare",
            "        # the stage boundary is elsewhere\n        hidden_states = self.attn_steps.prepare",
        )
    )
    itself.write_text(
        text.replace(
            "return self.ffn_steps", "hidden_states = all_reduce(hidden_states)\n        return self.ffn_steps"
        )
    )
    assert [(b.communicator, b.owner) for b in blocks("alone", alone)] == [(False, "")]
    assert [(b.communicator, b.owner) for b in blocks("itself", itself)] == [(False, "decoder")]


#: Between the trees that keep everything in module globals and those that publish their settings.
GROUPS_ALONE = """
class RuntimeContext:
    def __init__(self):
        self.parallel = object()


_context = RuntimeContext()


def get_context():
    return _context


def get_parallel():
    return _context.parallel
"""


def test_a_context_that_holds_groups_and_no_arguments_is_set_up(tmp_path: Path) -> None:
    tree = engine(tmp_path / "tree", {"pair": PAIR})
    (tree / "mini" / "runtime_context.py").write_text(GROUPS_ALONE)
    (model,) = verify(tree, tree, (), Settings(("block",), (2,))).models
    assert {(case.verdict, case.detail) for case in model.cases} == {(Verdict.EQUIVALENT, "")}


FLAGS = """
import dataclasses


@dataclasses.dataclass
class Flags:
    disable_shared_experts_fusion: bool = False


_flags = Flags()


def get_flags():
    return _flags
"""


def test_flags_beside_the_arguments_say_what_those_resolve_to(tmp_path: Path) -> None:
    asks = "        assert get_flags().disable_shared_experts_fusion, 'the experts would be fused'\n"
    text = PAIR.replace("from torch import nn\n", "from mini.runtime_context import get_flags\nfrom torch import nn\n")
    tree = engine(
        tmp_path / "tree", {"pair": text.replace("        router_logits, _", f"{asks}        router_logits, _")}
    )
    (tree / "mini" / "runtime_context.py").write_text(GROUPS_ALONE + FLAGS)
    (model,) = verify(tree, tree, (), Settings(("block",), (2,))).models
    assert {(case.verdict, case.detail) for case in model.cases} == {(Verdict.EQUIVALENT, "")}
