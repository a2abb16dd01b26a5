"""Each rule on small models: what it reports, and what it must leave alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from moe_lint import fixing
from moe_lint.engine import Options, run
from moe_lint.model import Confidence, Finding, Severity, Span
from moe_lint.profile import load_profile
from moe_lint.rewritten import write_all
from moe_lint.rules._cases import ASK, ROUTED, SETTLE, block, experts, layer_case

FIXTURE = Path(__file__).parents[1] / "fixtures" / "pretend_engine"
HELPER = "should_skip_post_experts_all_reduce"
BOTH = "should_allreduce_fusion=should_allreduce_fusion, use_reduce_scatter=use_reduce_scatter"
CALL = f"not {HELPER}(is_tp_path=True, {BOTH})"
SUM = "x = tensor_model_parallel_all_reduce(x)"

CLASS_PREDICATE = """

def is_deepep_class_backend():
    b = get_moe_a2a_backend()
    return b.is_deepep() or b.is_mooncake() or b.is_mori()
"""


def model(body: str, absorber: bool = True, more: str = "") -> str:
    """A block whose forward runs ``body`` after `x = self.experts(x)`, and the decoder layer around it."""
    inner = "\n".join(f"        {line}" for line in body.splitlines())
    communicator = "self.layer_communicator = LayerCommunicator(config)" if absorber else "pass"
    return f"""
from engine.distributed import (
    moe_expert_parallel_all_reduce,
    moe_tensor_model_parallel_all_reduce,
    tensor_model_parallel_all_reduce,
)
from engine.layers.communicator import LayerCommunicator
from engine.layers.moe.utils import *
from engine.layers.moe.utils import (
    get_moe_a2a_backend,
    {HELPER},
    should_use_dp_reduce_scatterv,
    should_use_flashinfer_cutlass_moe_fp4_allgather,
)


class Block:
    def forward_normal(self, x, should_allreduce_fusion=False, use_reduce_scatter=False):
        x = self.experts(x)
{inner}
        return x
{more}

class Layer:
    def __init__(self, config):
        self.mlp = Block(config)
        {communicator}
"""


def reported(tmp_path: Path, source: str, select: tuple[str, ...] = ()) -> list[str]:
    shutil.copytree(FIXTURE / "engine", tmp_path / "engine", dirs_exist_ok=True)
    utils = tmp_path / "engine/layers/moe/utils.py"
    utils.write_text(utils.read_text() + CLASS_PREDICATE)
    path = tmp_path / "engine/models/case.py"
    path.write_text(source)
    return [finding.rule for finding in run(Options((str(path),), load_profile("sglang"), select)).findings]


RIGHT = {
    "the helper": f"if self.tp_size > 1 and {CALL}:\n    {SUM}",
    "the helper and a redundant reason": f"if self.tp_size > 1 and {CALL} and not use_reduce_scatter:\n    {SUM}",
    "the helper in a local": f"run = self.tp_size > 1 and {CALL}\nif run:\n    {SUM}",
    "the helper in an early return": f"if {CALL[4:]}:\n    return x\n{SUM}",
    "the helper in a ternary": f"x = tensor_model_parallel_all_reduce(x) if {CALL} else x",
    "a norm between": f"x = self.norm(x)\n{SUM}",
    "ownership decides": f"if self.reduce_results:\n    {SUM}",
    "a settled debt": f"if getattr(x, '_sglang_needs_allreduce_fusion', False):\n    {SUM}",
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_not_reported(name: str, tmp_path: Path) -> None:
    assert reported(tmp_path, model(RIGHT[name])) == []


WRONG = {
    "MOE001 all reasons by hand": (
        f"if not (use_reduce_scatter or should_use_dp_reduce_scatterv() or should_allreduce_fusion) and not "
        f"should_use_flashinfer_cutlass_moe_fp4_allgather():\n    {SUM}"
    ),
    "MOE001 one reason": f"if self.tp_size >= 2 and not use_reduce_scatter:\n    {SUM}",
    "MOE001 an early return": f"if should_allreduce_fusion:\n    return x\n{SUM}",
    "MOE001 a nested if": f"if self.tp_size > 1:\n    if not should_allreduce_fusion:\n        {SUM}",
    "MOE002 size only": f"if 1 < self.tp_size:\n    {SUM}",
    "MOE002 nothing": SUM,
    "MOE004 the other axis": f"if not {HELPER}(is_tp_path=False, {BOTH}):\n    {SUM}",
    "MOE005 a keyword left out": f"if not {HELPER}(is_tp_path=True, use_reduce_scatter=use_reduce_scatter):\n    {SUM}",
    "MOE006 a constant": (
        f"if not {HELPER}(is_tp_path=True, use_reduce_scatter=use_reduce_scatter, should_allreduce_fusion=True):\n"
        f"    {SUM}"
    ),
    "MOE007 a lost not": f"if self.tp_size > 1 and {CALL[4:]}:\n    {SUM}",
    "MOE007 or for and": f"if self.shared or {CALL}:\n    {SUM}",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_reported_once_and_by_its_rule(name: str, tmp_path: Path) -> None:
    assert reported(tmp_path, model(WRONG[name])) == [name.split()[0]]


@pytest.mark.parametrize("name", sorted(WRONG.keys() - {"MOE007 or for and"}))  # that one is for a person
def test_a_rewrite_is_judged_equal_and_stable(name: str, tmp_path: Path) -> None:
    reported(tmp_path, model(WRONG[name]))
    options = Options((str(tmp_path / "engine/models/case.py"),), load_profile("sglang"))
    result = fixing.fix(options, run(options), fixing.ALLOWED["unsafe"])
    assert result.not_proven == ()
    for one in result.fixed:
        compile(one.after, one.path, "exec")
        write_all([one])
    assert run(options).findings == ()
    assert [row.relation for row in run(options).rows] == ["equal"]
    assert fixing.fix(options, run(options), fixing.ALLOWED["unsafe"]).fixed == ()


def test_without_an_absorber_an_unguarded_sum_is_right_and_only_listed_when_asked(tmp_path: Path) -> None:
    assert reported(tmp_path, model(SUM, absorber=False)) == []
    assert reported(tmp_path, model(SUM, absorber=False), ("MOE003",)) == ["MOE003"]


def test_a_pair_that_drifts_is_reported_at_the_half_that_forgot(tmp_path: Path) -> None:
    pair = (
        "if self.ep_size > 1 and not should_allreduce_fusion:\n    x = moe_expert_parallel_all_reduce(x)\n"
        "if self.tp_size > 1 and not should_allreduce_fusion and not use_reduce_scatter:\n"
        "    x = moe_tensor_model_parallel_all_reduce(x)"
    )
    assert reported(tmp_path, model(pair), ("MOE101",)) == ["MOE101"]
    same = pair.replace("fusion:", "fusion and not use_reduce_scatter:")
    assert reported(tmp_path, model(same), ("MOE101",)) == []


SIBLING = """
    def forward_cpu(self, x, should_allreduce_fusion=False):
        x = self.experts(x)
        if not should_allreduce_fusion:
            x = tensor_model_parallel_all_reduce(x)
        return x
"""


def test_siblings_that_skip_for_different_reasons_are_reported_at_the_weaker_one(tmp_path: Path) -> None:
    body = f"if {CALL}:\n    {SUM}"
    assert reported(tmp_path, model(body, more=SIBLING), ("MOE102",)) == ["MOE102"]
    deepep = "\n    def forward_deepep(self, x):\n        return self.experts(x)\n"
    assert reported(tmp_path, model(body, more=deepep), ("MOE102",)) == []


@pytest.mark.parametrize(
    ("test", "found"),
    [
        ("get_moe_a2a_backend().is_deepep() or get_moe_a2a_backend().is_mooncake()", ["MOE103"]),
        ("get_moe_a2a_backend().is_deepep()", []),  # may be meant as such: low confidence
        ("is_deepep_class_backend()", []),
    ],
)
def test_backends_listed_by_hand_are_reported_where_they_choose_the_path(
    test: str, found: list[str], tmp_path: Path
) -> None:
    dispatch = f"""
    def forward(self, x):
        if {test}:
            return x
        return self.forward_normal(x)
"""
    assert reported(tmp_path, model(f"if {CALL}:\n    {SUM}", more=dispatch)) == found


FACTORY = """
from engine.layers.moe.utils import get_moe_a2a_backend


def get_moe_impl_class(config):
    if {alike}:
        return SpreadMoE
    return FusedMoE
"""


@pytest.mark.parametrize(
    ("alike", "found"),
    [
        ("get_moe_a2a_backend().is_deepep() or get_moe_a2a_backend().is_mori()", ["MOE103"]),
        ("get_moe_a2a_backend().is_deepep()", []),  # the others may not sum in their combine
        ("get_moe_a2a_backend().is_mooncake() or get_moe_a2a_backend().is_mori()", []),
    ],
)
def test_a_single_backend_stands_for_those_with_the_same_experts(alike: str, found: list[str], tmp_path: Path) -> None:
    dispatch = """
    def __init__(self, config):
        self.experts = get_moe_impl_class(config)(config)

    def forward(self, x):
        if not get_moe_a2a_backend().is_deepep():
            return self.forward_normal(x)
        return self.experts(x)
"""
    factory = tmp_path / "engine/layers/moe/expert_factory.py"
    factory.parent.mkdir(parents=True)
    factory.write_text(FACTORY.format(alike=alike))
    imported = "from engine.layers.moe.expert_factory import get_moe_impl_class\n"
    assert reported(tmp_path, imported + model(f"if {CALL}:\n    {SUM}", more=dispatch)) == found


def test_comments_in_a_guard_survive_the_rewrite(tmp_path: Path) -> None:
    body = (
        f"if (\n    # only with peers\n    self.tp_size > 1\n    and not use_reduce_scatter  # scattered\n):\n    {SUM}"
    )
    reported(tmp_path, model(body))
    options = Options((str(tmp_path / "engine/models/case.py"),), load_profile("sglang"))
    (one,) = fixing.fix(options, run(options), fixing.ALLOWED["default"]).fixed
    assert "# only with peers" in one.after
    assert "# scattered" in one.after


@pytest.mark.parametrize(
    "body",
    [
        # FP4 is a reason of the TP path only: the helper does not cover it here
        "if self.ep_size > 1 and not use_reduce_scatter and not should_use_flashinfer_cutlass_moe_fp4_allgather():\n"
        "    x = moe_expert_parallel_all_reduce(x)",
        f"if not use_reduce_scatter and not should_use_other_thing():\n    {SUM}",
    ],
)
def test_a_reason_that_the_helper_does_not_cover_stays_in_the_guard(body: str, tmp_path: Path) -> None:
    reported(tmp_path, model(body))
    options = Options((str(tmp_path / "engine/models/case.py"),), load_profile("sglang"))
    (one,) = fixing.fix(options, run(options), fixing.ALLOWED["unsafe"]).fixed
    kept = "should_use_other_thing" if "other_thing" in body else "should_use_flashinfer_cutlass_moe_fp4_allgather"
    assert f"and not {kept}()" in one.after or f"not {kept}() and" in one.after


def test_a_guard_with_a_reason_of_its_own_is_stronger_and_not_rewritten_by_default(tmp_path: Path) -> None:
    body = (
        "if not (use_reduce_scatter or should_allreduce_fusion or should_use_dp_reduce_scatterv()\n"
        "    or should_use_flashinfer_cutlass_moe_fp4_allgather() or should_use_other_thing()):\n"
        f"    {SUM}"
    )
    reported(tmp_path, model(body))
    options = Options((str(tmp_path / "engine/models/case.py"),), load_profile("sglang"))
    report = run(options)
    assert [(f.rule, f.relation) for f in report.findings] == [("MOE001", "stronger")]
    assert fixing.fix(options, report, fixing.ALLOWED["default"]).fixed == ()


def test_an_unguarded_reduction_in_a_block_that_nobody_builds_is_said_to_be_open(tmp_path: Path) -> None:
    source = model(SUM).replace("self.mlp = Block(config)", "self.mlp = make_block(config)")
    assert reported(tmp_path, source) == []
    report = run(Options((str(tmp_path / "engine/models/case.py"),), load_profile("sglang")))
    assert [(p.reason.value, p.failed) for p in report.problems] == [("unknown-absorber", False)]
    assert report.exit_code == 0


SLIPPED = "x = self.mlp(x, should_allreduce_fusion, use_reduce_scatter)"
SCALED = "x, scale=None, use_reduce_scatter=False, should_allreduce_fusion=False"


@pytest.mark.parametrize(
    ("parameters", "layer", "severity", "why"),
    [
        (
            "x, use_reduce_scatter=False, should_allreduce_fusion=False",
            ASK + SLIPPED + SETTLE,
            "warning",
            "no number is wrong yet, but only because the block skips for the one as for the other",
        ),
        (
            SCALED,
            ASK + SLIPPED + SETTLE,
            "error",
            "lands on `scale` of `Block.forward`: where the flag is set the block goes on reducing",
        ),
        (
            SCALED,
            f"{ASK}{SLIPPED}\nx, residual = self.layer_communicator.postprocess_layer(x, residual, batch)",
            "warning",
            "no number is wrong yet, but only because the flag is never set for this block",
        ),
    ],
    ids=["taken-for-each-other", "lost", "never-deferred"],
)
def test_a_flag_that_lands_wrong_is_an_error_where_numbers_are(
    parameters: str, layer: str, severity: str, why: str, tmp_path: Path
) -> None:
    files = layer_case("slip", block(experts(ROUTED, parameters=parameters)), layer=layer).files
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    options = Options((str(tmp_path / "engine"),), load_profile("sglang"), select=("MOE202",))
    (finding,) = run(options).findings
    assert finding.severity.value == severity
    assert why in finding.message


def test_two_findings_of_one_rule_at_one_place_have_an_order() -> None:
    place = Finding(
        "MOE403", "summed-in-combine", "a.py", Span(1, 1, 1, 2), Severity.ERROR, Confidence.HIGH, "b", "f", None
    )
    assert sorted([place, replace(place, message="a")], key=lambda finding: finding.order)[0].message == "a"
