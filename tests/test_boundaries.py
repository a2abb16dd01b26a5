"""The law behind layer boundaries: flags that they publish, and blocks that are told who sums."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

import pytest

from moe_lint.engine import Options, run
from moe_lint.model import MatrixRow, Verdict
from moe_lint.profile import load_profile

UTILS = """
from engine.distributed import (
    moe_expert_parallel_all_reduce,
    moe_tensor_model_parallel_all_reduce,
    tensor_model_parallel_all_reduce,
)


def should_use_dp_reduce_scatterv():
    return settings.dp_attention


def should_skip_mlp_all_reduce():
    return get_forward().fuse_mlp_allreduce or get_forward().mlp_reduce_scatter


def should_skip_post_experts_all_reduce(*, is_tp_path):
    return should_skip_mlp_all_reduce() or should_use_dp_reduce_scatterv()


def reduce_moe_output(x):
    if get_tp_world_size() > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):
        return tensor_model_parallel_all_reduce(x)
    return x


def post_experts_all_reduce(x):
    reduce_ep = get_moe_expert_parallel_world_size() > 1 and not should_skip_post_experts_all_reduce(is_tp_path=False)
    reduce_tp = get_moe_tensor_parallel_world_size() > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True)
    if reduce_ep and reduce_tp and mergeable():
        return tensor_model_parallel_all_reduce(x)
    if reduce_ep:
        x = moe_expert_parallel_all_reduce(x)
    if reduce_tp:
        x = moe_tensor_model_parallel_all_reduce(x)
    return x
"""
FACTORIES = """
from engine.layers.moe.utils import reduce_moe_output


def make_boundary(*stages):
    return stages


def complete(x):
    x = run_moe_core(x)
    return reduce_moe_output(x)
"""
EXIT = """
class Exit:
    def __enter__(self):
        self.scope = get_forward().scoped(
            {}
        )
"""
BOTH = "fuse_mlp_allreduce=self.fuse, mlp_reduce_scatter=self.scatter"
BLOCK = """
from engine.distributed import tensor_model_parallel_all_reduce
from engine.layers.boundary import make_boundary
from engine.layers.moe.utils import post_experts_all_reduce, reduce_moe_output, should_skip_post_experts_all_reduce


class Block:
    def __init__(self, config, reduce_results=True):
        self.reduce_results = reduce_results
        self.experts = FusedMoE(config)

    def forward(self, x):
        x = self.experts(x)
{}
        return x


def build(config):
    return make_boundary(config)
"""
LAYER = """

class {}:
    def __init__(self, config):
        self.mlp = Block(config{})
        self.boundary = {}

    def forward(self, x):
        return self.mlp(x)
"""
WRAPPED = "x = reduce_moe_output(x)"
BARE = "if self.tp_size > 1:\n    x = tensor_model_parallel_all_reduce(x)"
TOLD = f"if self.reduce_results:\n    {WRAPPED}"
WHOLE = ("Layer", "", "make_boundary(self.mlp)")


def layer(name: str, given: str, boundary: str) -> str:
    return LAYER.format(name, given, boundary)


def rows(folder: Path, guard: str, *layers: tuple[str, str, str], published: str = BOTH) -> list[MatrixRow]:
    block = BLOCK.format(indent(guard, "        "))
    files = {
        "engine/layers/moe/utils.py": UTILS,
        "engine/layers/boundary/__init__.py": "from engine.layers.boundary.factories import make_boundary\n",
        "engine/layers/boundary/factories.py": FACTORIES,
        "engine/layers/boundary/exit.py": EXIT.format(published) + "\n# all_reduce, experts\n",
        "engine/models/x.py": block + "".join(layer(*one) for one in layers),
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(run(Options((str(folder / "engine"),), load_profile("sglang"), law=True)).rows)


def verdict(found: list[MatrixRow], path: str = "x.py") -> Verdict:
    (law,) = [row.law for row in found if row.path.endswith(path) and row.post_experts]
    assert law is not None
    return law


@pytest.mark.parametrize(
    ("guard", "expected"),
    [
        (WRAPPED, "once"),
        ("x = post_experts_all_reduce(x)", "once"),
        (
            "if not should_skip_post_experts_all_reduce(is_tp_path=True):\n    x = tensor_model_parallel_all_reduce(x)",
            "once",
        ),
        (BARE, "doubled"),
    ],
    ids=["wrapper", "wrapper-that-merges-two-sums", "guard", "bare"],
)
def test_where_the_boundary_publishes_the_flags_they_are_its_word(tmp_path: Path, guard: str, expected: str) -> None:
    found = verdict(rows(tmp_path, guard, WHOLE))
    assert found.verdict == expected
    assert (found.configuration is not None) is (expected == "doubled")


def test_a_flag_that_the_boundary_does_not_publish_doubles_nothing(tmp_path: Path) -> None:
    guard = "if not get_forward().fuse_mlp_allreduce and not should_use_dp_reduce_scatterv():\n    "
    guard += "x = tensor_model_parallel_all_reduce(x)"
    assert verdict(rows(tmp_path / "both", guard, WHOLE)).verdict == "doubled"
    only = "fuse_mlp_allreduce=self.fuse"
    assert verdict(rows(tmp_path / "one", guard, WHOLE, published=only)).verdict == "once"


def test_sums_of_a_wrapper_that_exclude_one_another_count_together(tmp_path: Path) -> None:
    found = rows(tmp_path, "x = post_experts_all_reduce(x)", WHOLE)
    inside = [row.law.verdict for row in found if row.function == "post_experts_all_reduce" and row.law is not None]
    assert inside == ["once", "once", "once"]


def test_the_sum_inside_the_boundary_is_the_absorber(tmp_path: Path) -> None:
    found = verdict(rows(tmp_path, WRAPPED, WHOLE), "factories.py")
    assert found == Verdict("undecided", None, "this is the absorber: it runs the sums that blocks leave to it")


LEFT = ("Left", ", reduce_results=False", "make_boundary(self.mlp)")
BUILT = ("Built", ", False", "build(config)")


@pytest.mark.parametrize(
    ("layers", "expected", "reason"),
    [
        ((LEFT,), "once", "`Left` leaves this sum to the layer boundary"),
        ((LEFT, BUILT), "once", "`Built`, `Left` leave this sum to the layer boundary"),
        (
            (("Kept", "", "make_boundary(self.mlp)"),),
            "undecided",
            "`Kept` builds this block with `reduce_results=True` behind a layer boundary, "
            "and whether that leaves the sum to the block is not seen",
        ),
        (
            (LEFT, ("Lost", ", False", "None"), ("Around", "", "Lost(config)")),
            "undecided",
            None,
        ),
        (
            (LEFT, ("Asks", ", config.reduces", "make_boundary(self.mlp)")),
            "undecided",
            "`Asks` does not say by a constant whether it builds this block with `reduce_results`",
        ),
    ],
    ids=["left", "left-by-all", "kept", "lost", "open"],
)
def test_a_block_that_is_told_who_sums_is_judged_by_all_that_build_it(
    tmp_path: Path, layers: tuple[tuple[str, str, str], ...], expected: str, reason: str | None
) -> None:
    found = verdict(rows(tmp_path, TOLD, *layers, published="defer=self.defer"))
    assert found.verdict == expected
    assert found.configuration is None
    if reason is not None:
        assert found.reason == reason


def test_a_builder_that_is_not_followed_leaves_it_open(tmp_path: Path) -> None:
    rows(tmp_path, TOLD, LEFT, published="defer=self.defer")
    other = tmp_path / "engine/models/y.py"
    other.write_text("from engine.models import x\n\n# all_reduce of experts\nlayer = x.Block(config)\n")
    found = list(run(Options((str(tmp_path / "engine"),), load_profile("sglang"), law=True)).rows)
    assert verdict(found).reason == (
        "`y.py` does not say by a constant whether it builds this block with `reduce_results`"
    )


@pytest.mark.parametrize(
    ("layers", "expected", "reason"),
    [
        ((LEFT,), "once", "every block that calls this wrapper is summed once"),
        (
            (LEFT, ("Kept", "", "make_boundary(self.mlp)")),
            "undecided",
            "a wrapper: each block that calls it answers for itself",
        ),
    ],
    ids=["all-once", "one-open"],
)
def test_a_wrapper_is_as_good_as_the_blocks_that_call_it(
    tmp_path: Path, layers: tuple[tuple[str, str, str], ...], expected: str, reason: str
) -> None:
    found = rows(tmp_path, TOLD, *layers, published="defer=self.defer")
    inside = [row.law for row in found if row.function == "reduce_moe_output" and row.law is not None]
    assert inside == [Verdict(expected, None, reason)]


SERVED = """
def sum_post_experts_output(x):
    return _sum(x, reduce=not should_skip_post_experts_all_reduce(is_tp_path=True))


def _sum(x, *, reduce):
    if reduce:
        x = tensor_model_parallel_all_reduce(x)
    return x


def _other(x, *, reduce):
    if reduce:
        x = tensor_model_parallel_all_reduce(x)
    return x
"""


def test_a_sum_in_a_function_that_serves_a_wrapper_is_after_the_experts_and_the_wrappers_to_decide(
    tmp_path: Path,
) -> None:
    rows(tmp_path, WRAPPED, WHOLE)
    utils = tmp_path / "engine/layers/moe/utils.py"
    utils.write_text(UTILS + SERVED)
    report = run(Options((str(tmp_path / "engine"),), load_profile("sglang"), select=("ALL",), law=True))
    found = {row.function: (row.post_experts, row.route, row.law) for row in report.rows if row.function[:1] == "_"}
    assert found == {
        "_sum": (
            True,
            "owned",
            Verdict("undecided", None, "an argument decides who sums: each caller answers for itself"),
        ),
        "_other": (False, "none", None),
    }
    assert [f.rule for f in report.findings if f.path.endswith("utils.py")] == []


@pytest.mark.parametrize(("boundary", "expected"), [("make_boundary(self.mlp)", []), ("None", ["MOE307"])])
def test_a_sum_that_is_left_out_is_lost_where_no_boundary_makes_up_for_it(
    tmp_path: Path, boundary: str, expected: list[str]
) -> None:
    rows(tmp_path, f"if self.shared is None:\n    return x\n{WRAPPED}", ("Layer", "", boundary))
    report = run(Options((str(tmp_path / "engine"),), load_profile("sglang")))
    assert [finding.rule for finding in report.findings] == expected


def test_no_sum_behind_a_boundary_that_sums_by_contract_is_routed_through_the_helper_unasked(tmp_path: Path) -> None:
    rows(tmp_path, BARE, WHOLE)
    (finding,) = run(Options((str(tmp_path / "engine"),), load_profile("sglang"))).findings
    assert (finding.rule, finding.fix and finding.fix.safety.value) == ("MOE002", "unsafe")
    assert finding.remedy is not None
    assert finding.remedy.startswith("leave the sum to the layer boundary")
