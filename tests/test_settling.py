"""Fixes that run a deferred sum before the tensor that owes it is handed on: where, and when they are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from codemods.edits import CannotRewrite
from codemods.plans import plan_edits
from moe_lint import fixing
from moe_lint.engine import Options, run
from moe_lint.model import FixPlan, Safety, Severity, Span
from moe_lint.profile import load_profile
from moe_lint.rules._cases import ASK, ROUTED, SETTLE, block, experts, tree
from moe_lint.rules._cases import layer_model as written

PROFILE = load_profile("sglang")
LAYER = ASK + "x = self.mlp(x, should_allreduce_fusion, use_reduce_scatter)" + SETTLE
BLOCK = str(block(experts(ROUTED)))
MODEL = """

class Model:
    def __init__(self, config):
        self.layers = [DecoderLayer(config, i) for i in range(config.num_hidden_layers)]

    def forward(self, x, batch):
        residual = None
        aux_hidden_states = []
        for i in range(self.end):
            layer = self.layers[i]
{capture}
            x, residual = layer(x, residual, batch)
{send}
        return self.norm(x, residual), aux_hidden_states
"""
SEND = """
if not self.pp_group.is_last_rank:
    return PPProxyTensors({"hidden_states": x, "residual": residual})
"""
SETTLED = """
if getattr(x, "_sglang_needs_allreduce_fusion", False):
    x = tensor_model_parallel_all_reduce(x)
    x._sglang_needs_allreduce_fusion = False
"""


def indented(text: str, by: int) -> str:
    return "\n".join(" " * by + line if line else "" for line in text.strip("\n").splitlines())


def model(capture: str = "", send: str = "", *, blocks: tuple[str, ...] = (BLOCK,), layer: str = LAYER) -> str:
    tail = MODEL.format(capture=indented(capture, 12), send=indented(send, 8))
    return f"{written(*blocks, layer=layer)}{tail}"


def fixed(folder: Path, text: str) -> fixing.FixResult:
    for name, content in tree("settling", pretend=text).files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    options = Options((str(folder / "engine"),), PROFILE)
    return fixing.fix(options, run(options), fixing.ALLOWED["default"])


def after(folder: Path, text: str) -> str:
    """The model file after the fix, which leaves nothing to report."""
    done = fixed(folder, text)
    assert (done.not_proven, done.report.findings) == ((), ())
    (one,) = done.fixed
    compile(one.after, one.path, "exec")
    return one.after


def test_what_is_sent_is_settled_on_the_path_that_sends_it(tmp_path: Path) -> None:
    head, _, send = SEND.strip().partition("\n")
    wanted = f"{head}\n{indented(SETTLED, 4)}\n{send}"
    assert after(tmp_path, model(send=SEND)) == model(send=wanted)


def test_what_is_captured_is_settled_before_it_is_captured(tmp_path: Path) -> None:
    capture = "if i in self.captured:\n    aux_hidden_states.append(x + residual)"
    wanted = f"if i in self.captured:\n{indented(SETTLED, 4)}\n    aux_hidden_states.append(x + residual)"
    assert after(tmp_path, model(capture)) == model(wanted)


def test_a_capture_with_several_arms_is_settled_once_before_them(tmp_path: Path) -> None:
    arms = """
    if self.gathers:
        y = gather(x + residual)
        aux_hidden_states.append(y)
    else:
        aux_hidden_states.append(x + residual)
"""
    capture = f"if i in self.captured:{arms}"
    wanted = f"if i in self.captured:\n{indented(SETTLED, 4)}{arms}"
    assert after(tmp_path, model(capture)) == model(wanted)


def test_both_kinds_are_settled_in_one_function(tmp_path: Path) -> None:
    text = after(tmp_path, model("aux_hidden_states.append(x + residual)", SEND))
    assert text.count('if getattr(x, "_sglang_needs_allreduce_fusion", False):\n') == 2


def test_the_reduction_is_imported_from_where_the_tree_has_it(tmp_path: Path) -> None:
    text = str(written(BLOCK, layer=LAYER))
    head = (
        "from engine.models.pretend import DecoderLayer\nfrom engine.quantized import quantized_all_reduce  # experts\n"
    )
    apart = head + MODEL.format(capture="", send=indented(SEND, 8))
    for name, content in tree("apart", pretend=text, other=apart).files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    options = Options((str(tmp_path / "engine"),), PROFILE)
    (one,) = fixing.fix(options, run(options), fixing.ALLOWED["default"]).fixed
    assert one.path.endswith("other.py")
    assert one.after.startswith(f"from engine.distributed import tensor_model_parallel_all_reduce\n{head}\n")


def test_a_capture_is_a_warning_and_what_is_sent_an_error(tmp_path: Path) -> None:
    for name, content in tree("t", pretend=model("aux_hidden_states.append(x + residual)", SEND)).files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    captured, sent = run(Options((str(tmp_path / "engine"),), PROFILE)).findings
    assert (captured.severity, sent.severity) == (Severity.WARNING, Severity.ERROR)
    assert "`--pp-size 2`" in sent.message


EP_ONLY = ROUTED.replace("x = tensor_model_parallel_all_reduce", "x = moe_expert_parallel_all_reduce").replace(
    "is_tp_path=True", "is_tp_path=False"
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            model(send=SEND, blocks=(str(block(experts(EP_ONLY))),)),
            "the sum that `DecoderLayer` defers is not seen to be one over all ranks",
        ),
        (
            model(send=SEND).replace("x, residual = layer(", "state = layer(").replace('": x,', '": state[0],'),
            "what `DecoderLayer` returns is not handed on under one name",
        ),
        (
            model(send=SEND, layer=LAYER.replace("x._sglang", "x.data._sglang")),
            "which of its values `DecoderLayer` marks is not seen",
        ),
    ],
    ids=["another-group", "no-name", "another-tensor-is-marked"],
)
def test_no_fix_is_offered_where_it_is_not_for_sure(tmp_path: Path, text: str, why: str) -> None:
    done = fixed(tmp_path, text)
    assert done.fixed == ()
    assert [(f.rule, f.fix, f.unfixable) for f in done.report.findings] == [("MOE303", None, why)]


def test_a_statement_that_does_not_begin_its_line_is_left_alone() -> None:
    text = "if last: return send(x)\n"
    plan = FixPlan("x.py", "settle", Span(1, 10, 1, 24), None, True, (), "f", (("x", "m"),), "", Safety.CORRECTIVE, "")
    with pytest.raises(CannotRewrite, match="shares its line"):
        plan_edits(plan, text)


def test_it_is_reduced_by_the_collective_that_the_tree_calls(tmp_path: Path) -> None:
    """A profile lists several over all ranks; the first may be one of the base that a fork hardly uses."""
    quant = "tensor_model_parallel_quant_all_reduce"
    text = model(send=SEND).replace("tensor_model_parallel_all_reduce", quant)
    text += "\n\ndef norm_sum(x):\n    return tensor_model_parallel_all_reduce(x)\n"
    text += f"\n\ndef other_sum(x):\n    return {quant}(x)\n"
    assert re.search(rf"x = {quant}\(x\)\n +x\._sglang_needs_allreduce_fusion = False\n", after(tmp_path, text))
