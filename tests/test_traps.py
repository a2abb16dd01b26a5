"""What looks like a bug and is right: nothing may be reported by default. Beside each, the bug that it looks like."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from moe_lint.engine import Options, run
from moe_lint.model import Report
from moe_lint.profile import load_profile
from tests.trees import write_tree

SGLANG = load_profile("sglang")
HEAD = """\
from engine.distributed import (
    attention_tensor_model_parallel_all_reduce,
    get_tp_group,
    get_tp_world_size,
    moe_expert_parallel_all_reduce,
    tensor_model_parallel_all_reduce,
)
from engine.layers.communicator import LayerCommunicator
from engine.layers.moe import (
    get_moe_a2a_backend,
    reduce_moe_output,
    should_skip_post_experts_all_reduce,
    should_use_dp_reduce_scatterv,
    should_use_flashinfer_cutlass_moe_fp4_allgather,
)
"""
#: A decoder layer that computes both flags and hands them down.
LAYER = """
class Layer:
    def __init__(self, config):
        self.mlp = Block(config)
        self.layer_communicator = LayerCommunicator(config)

    def forward(self, x, batch):
        fuse = self.layer_communicator.should_fuse_mlp_allreduce_with_next_layer(batch)
        scatter = self.layer_communicator.should_use_reduce_scatter(batch)
        x = self.mlp(x, should_allreduce_fusion=fuse, use_reduce_scatter=scatter)
        if fuse:
            x._sglang_needs_allreduce_fusion = True
        else:
            x = self.layer_communicator.postprocess_layer(x, batch)
        return x
"""
FLAGS = "should_allreduce_fusion=False, use_reduce_scatter=False"
CALL = (
    "should_skip_post_experts_all_reduce(is_tp_path=True, "
    "should_allreduce_fusion=should_allreduce_fusion, use_reduce_scatter=use_reduce_scatter)"
)
SUM = "x = tensor_model_parallel_all_reduce(x)"


def judged(folder: Path, *parts: str) -> Report:
    """A default run over an engine with one model, made of the given parts."""
    tree = write_tree(folder, wrapper=True)
    text = HEAD + "\n".join(dedent(part) for part in parts)
    compile(text, "x.py", "exec")
    (tree / "models" / "x.py").write_text(text)
    report = run(Options((str(tree),), SGLANG))
    assert not any(problem.failed for problem in report.problems)
    return report


def rules(report: Report) -> set[str]:
    return {finding.rule for finding in report.findings}


def block(body: str, more: str = "") -> str:
    """A block whose forward runs ``body`` on the experts' output."""
    lines = "\n".join(f"        {line}" for line in dedent(body).strip().splitlines())
    return (
        "class Block:\n    def __init__(self, config):\n        self.tp_size = get_tp_world_size()\n"
        "        self.experts = make_experts(config)\n\n"
        f"    def forward(self, x, {FLAGS}):\n        x = self.experts(x)\n{lines}\n        return x\n{dedent(more)}"
    )


# --- nobody absorbs

BARE_LAYER = """
class Layer:
    def __init__(self, config):
        self.mlp = Block(config)

    def forward(self, x, residual):
        x, residual = self.post_attention_layernorm(x, residual)
        return self.mlp(x), residual
"""


@pytest.mark.parametrize("guard", ["if self.tp_size > 1:\n    ", "if get_tp_world_size() > 1:\n    ", ""])
def test_an_unguarded_sum_in_a_model_without_a_communicator(guard: str, tmp_path: Path) -> None:
    assert judged(tmp_path, block(f"{guard}{SUM}"), BARE_LAYER).findings == ()
    assert rules(judged(tmp_path, block(f"{guard}{SUM}"), LAYER)) == {"MOE002"}


def test_such_a_sum_is_listed_only_when_asked_for(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, f"if self.tp_size > 1:\n    {SUM}\n", absorber=False)
    (finding,) = run(Options((str(tree),), SGLANG, select=("MOE003",))).findings
    assert finding.fix is None or finding.fix.safety.value == "unsafe"


def test_allow_reduce_scatter_false_does_not_protect_an_unguarded_sum(tmp_path: Path) -> None:
    """Not a trap but its reverse: the communicator takes its reduce_scatterv branch whatever the model allows."""
    refusing = LAYER.replace("LayerCommunicator(config)", "LayerCommunicator(config, allow_reduce_scatter=False)")
    assert rules(judged(tmp_path, block(f"if self.tp_size > 1:\n    {SUM}"), refusing)) == {"MOE002"}


# --- sums of something else


OTHER_SUMS = {
    "attention": """
        class Attention:
            def forward(self, x):
                x = self.attn(self.qkv_proj(x))
                x = self.o_proj(x)
                return attention_tensor_model_parallel_all_reduce(x)
    """,
    "attention-over-the-whole-group": """
        class Attention:
            def forward(self, x):
                x = self.attn(self.qkv_proj(x))
                return tensor_model_parallel_all_reduce(self.o_proj(x))
    """,
    "variance-of-a-norm-over-heads": """
        class QKNorm:
            def forward(self, q, k):
                both = torch.cat([q.pow(2).mean(-1, keepdim=True), k.pow(2).mean(-1, keepdim=True)], dim=-1)
                both = tensor_model_parallel_all_reduce(both) / self.tp_size
                return q * torch.rsqrt(both[..., :1]), k * torch.rsqrt(both[..., 1:])
    """,
    "embedding": """
        class Embedding:
            def forward(self, ids):
                x = F.embedding(ids, self.weight)
                return tensor_model_parallel_all_reduce(x)
    """,
    "dense-layers-by-index": """
        class DenseLayer:
            def __init__(self, config):
                self.layer_communicator = LayerCommunicator(config)

            def forward(self, x, i):
                x = self.mlps[i](x)
                return tensor_model_parallel_all_reduce(x)
    """,
}


@pytest.mark.parametrize("name", OTHER_SUMS)
def test_a_sum_of_something_else_than_the_experts_output(name: str, tmp_path: Path) -> None:
    report = judged(tmp_path, block(f"if self.tp_size > 1 and not {CALL}:\n    {SUM}"), LAYER, OTHER_SUMS[name])
    assert report.findings == ()
    assert sum(row.post_experts for row in report.rows if row.path.endswith("x.py")) == 1


TWO_KINDS = """
class Layer:
    def __init__(self, config):
        self.is_layer_sparse = config.sparse
        if self.is_layer_sparse:
            self.mlp = Block(config)
        else:
            self.mlp = DenseMLP(config)
        self.layer_communicator = LayerCommunicator(config)

    def forward(self, x, batch):
        x = self.mlp(x)
        if {condition}:
            x = tensor_model_parallel_all_reduce(x)
        return x


class DenseMLP:
    def forward(self, x):
        return self.down_proj(self.act(self.gate_up_proj(x)))
"""


def test_a_sum_in_the_layer_that_only_a_dense_layer_reaches(tmp_path: Path) -> None:
    partial = "class Block:\n    def forward(self, x):\n        return self.experts(x)\n"
    dense, sparse = (TWO_KINDS.replace("{condition}", c) for c in ("not self.is_layer_sparse", "self.is_layer_sparse"))
    assert judged(tmp_path, partial, dense).findings == ()
    assert rules(judged(tmp_path, partial, sparse)) == {"MOE002"}


# --- paths that leave the flags behind on purpose

DEEPEP = f"""
class Block:
    def forward(self, x, {FLAGS}):
        if get_moe_a2a_backend().is_alpha():
            return self.forward_deepep(x)
        return self.forward_normal(x, should_allreduce_fusion, use_reduce_scatter)

    def forward_normal(self, x, {FLAGS}):
        x = self.experts(x)
        if self.tp_size > 1 and not {CALL}:
            {SUM}
        return x

    def forward_deepep(self, x):
        x = self.experts.dispatch(x)
        return self.experts.combine(x)
"""
DUAL_STREAM = f"""
class Block:
    def forward(self, x, {FLAGS}):
        shared, routed = self.forward_dual_stream(x)
        x = routed + shared
        if self.tp_size > 1 and not {CALL}:
            {SUM}
        return x

    def forward_dual_stream(self, x):
        with torch.cuda.stream(self.alt_stream):
            routed = self.experts(x)
        return self.shared_experts(x), routed
"""


def test_a_forward_that_drops_the_flags_because_its_combine_has_summed(tmp_path: Path) -> None:
    assert judged(tmp_path, DEEPEP, LAYER).findings == ()
    dropped = DEEPEP.replace(
        "self.forward_normal(x, should_allreduce_fusion, use_reduce_scatter)", "self.forward_normal(x)"
    )
    assert rules(judged(tmp_path, dropped, LAYER)) != set()


def test_a_dual_stream_half_that_only_returns_the_pair(tmp_path: Path) -> None:
    report = judged(tmp_path, DUAL_STREAM, LAYER)
    assert report.findings == ()
    assert [row.post_experts for row in report.rows if row.path.endswith("x.py")] == [True]


# --- names that only hold the word


@pytest.mark.parametrize(
    "line",
    [
        "self.custom = CustomAllReduceV2(self.group)",
        "self._add_all_reduce(x)",
        "fused = self.layer_communicator.should_fuse_mlp_allreduce_with_next_layer(x)",
        "register_all_reduce(x)",
        "ready = self.can_all_reduce(x)",
        "enabled = use_custom_all_reduce(x)",
    ],
)
def test_a_name_that_merely_contains_the_word_is_no_reduction(line: str, tmp_path: Path) -> None:
    report = judged(tmp_path, block(f"{line}\nif self.tp_size > 1 and not {CALL}:\n    {SUM}"), LAYER)
    assert report.findings == ()
    assert len([row for row in report.rows if row.path.endswith("x.py")]) == 1


# --- the helper in other clothes


@pytest.mark.parametrize(
    "guard",
    [
        f"if self.tp_size > 1 and not use_reduce_scatter and not {CALL}:\n    {SUM}",
        f"if self.tp_size > 1 and not {CALL} and not should_use_dp_reduce_scatterv():\n    {SUM}",
        f"if self.tp_size > 1 and x.shape[0] > 0 and not {CALL}:\n    {SUM}",
    ],
)
def test_the_helper_beside_a_redundant_condition(guard: str, tmp_path: Path) -> None:
    assert judged(tmp_path, block(guard), LAYER).findings == ()


HALVES = """

def should_skip_mlp_all_reduce(use_reduce_scatter, should_allreduce_fusion):
    return use_reduce_scatter or should_allreduce_fusion


def post_experts_output_is_complete(is_tp_path):
    return should_use_dp_reduce_scatterv() or (is_tp_path and should_use_flashinfer_cutlass_moe_fp4_allgather())


def should_skip_post_experts_all_reduce(*, is_tp_path, use_reduce_scatter=False, should_allreduce_fusion=False):
    return should_skip_mlp_all_reduce(
        use_reduce_scatter, should_allreduce_fusion
    ) or post_experts_output_is_complete(is_tp_path)
"""


def test_the_halves_of_the_helper_asked_one_by_one(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, helper=False)
    utils = tree / "layers" / "moe" / "utils.py"
    utils.write_text(utils.read_text() + HALVES)
    both = "not should_skip_mlp_all_reduce(use_reduce_scatter, should_allreduce_fusion)"
    guard = f"if self.tp_size > 1 and {both} and not post_experts_output_is_complete(True):\n    {SUM}"
    path = tree / "models" / "x.py"
    path.write_text(HEAD + block(guard) + LAYER)
    assert run(Options((str(tree),), SGLANG)).findings == ()
    path.write_text(HEAD + block(guard.replace(" and not post_experts_output_is_complete(True)", "")) + LAYER)
    (finding,) = run(Options((str(tree),), SGLANG)).findings
    assert (finding.rule, finding.message) == (
        "MOE001",
        "hand-written guard bypasses `should_skip_post_experts_all_reduce`: it still reduces for "
        "`should_use_dp_reduce_scatterv()` and `should_use_flashinfer_cutlass_moe_fp4_allgather()`, "
        "where the helper skips",
    )


def test_a_wrapper_under_an_ownership_switch(tmp_path: Path) -> None:
    owned = block(
        "if self.reduce_results:\n    x = reduce_moe_output(\n        x,\n"
        "        use_reduce_scatter=use_reduce_scatter,\n"
        "        should_allreduce_fusion=should_allreduce_fusion,\n    )"
    )
    assert judged(tmp_path, owned, LAYER).findings == ()


# --- blocks behind a boundary that owns the sums

BOUNDARY = """
def make_stage_boundary(stages, reduce=None, output_complete=False):
    return stages
"""
BEHIND = """
class Block:
    def __init__(self, config):
        self.experts = make_experts(config, reduce_results=False)

    def forward(self, x):
        return self.experts(x)


class Layer:
    def __init__(self, config):
        self.mlp = Block(config)
        self.boundary = make_stage_boundary([self.mlp], {contract})

    def forward(self, x):
        return self.boundary(x)
"""


@pytest.mark.parametrize(
    "contract", ["reduce=reduce_moe_output", "output_complete=False", "reduce=reduce_moe_output, output_complete=False"]
)
def test_a_block_that_leaves_its_partial_sum_to_the_stage_boundary(contract: str, tmp_path: Path) -> None:
    own = BOUNDARY + BEHIND.replace("{contract}", contract)
    assert judged(tmp_path, own).findings == ()


def test_a_wrapper_handed_over_as_a_value_is_no_call(tmp_path: Path) -> None:
    report = judged(tmp_path, BOUNDARY, BEHIND.replace("{contract}", "reduce=reduce_moe_output"))
    assert [row for row in report.rows if row.path.endswith("x.py")] == []


# --- a layer that tells its block to leave the sum, and sums itself

KEEPER = """
class Layer:
    def __init__(self, config):
        self.mlp = Block(config)
        self.layer_communicator = LayerCommunicator(config)

    def forward(self, x, batch):
        gathered = is_gathered(batch)
        use_reduce_scatter = {decided}
        {call}
        if {condition}:
            x = get_tp_group().all_reduce(x)
        return x
"""
SCOPED = "with get_forward().scoped(use_reduce_scatter=use_reduce_scatter):\n            x = self.mlp(x)"
HANDED = "x = self.mlp(x, use_reduce_scatter=use_reduce_scatter)"


@pytest.mark.parametrize("call", [SCOPED, HANDED])
@pytest.mark.parametrize(
    ("decided", "condition"),
    [
        ("gathered", "gathered"),
        ("gathered or should_use_dp_reduce_scatterv()", "gathered"),
        ("gathered or batch.padded", "gathered and batch.contiguous"),
    ],
)
def test_a_layer_that_sums_where_it_has_told_its_block_not_to(
    call: str, decided: str, condition: str, tmp_path: Path
) -> None:
    routed = block(f"if self.tp_size > 1 and not {CALL}:\n    {SUM}")
    keeper = KEEPER.format(call=call, decided=decided, condition=condition)
    report = judged(tmp_path, routed, keeper)
    assert report.findings == ()
    assert [row.route for row in report.rows if row.path.endswith("x.py")] == ["helper", "kept"]


@pytest.mark.parametrize(
    ("decided", "condition"),
    [
        ("gathered and batch.padded", "gathered"),  # where the batch is not padded the block has summed
        ("gathered", "batch.contiguous"),
        ("self.layer_communicator.should_use_reduce_scatter(batch)", "use_reduce_scatter"),  # the communicator sums
        ("True", "gathered"),
    ],
)
def test_a_layer_that_sums_where_it_has_not_decided_to(decided: str, condition: str, tmp_path: Path) -> None:
    routed = block(f"if self.tp_size > 1 and not {CALL}:\n    {SUM}")
    keeper = KEEPER.format(call=SCOPED, decided=decided, condition=condition)
    assert rules(judged(tmp_path, routed, keeper)) & {"MOE001", "MOE002"}


@pytest.mark.parametrize(
    ("guard", "rule"),
    [
        ("if self.tp_size > 1:\n    ", "MOE002"),
        ("if self.tp_size > 1 and not exit.fuse_mlp_allreduce and not exit.mlp_reduce_scatter:\n    ", "MOE001"),
    ],
)
def test_a_bare_sum_behind_a_stage_boundary_is_no_trap(guard: str, rule: str, tmp_path: Path) -> None:
    layer = BEHIND[BEHIND.index("class Layer") :].replace("{contract}", "reduce=reduce_moe_output")
    assert rules(judged(tmp_path, BOUNDARY, block(f"{guard}{SUM}"), layer)) == {rule}
