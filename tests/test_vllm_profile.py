"""The second engine: the expert layer itself answers "is my output reduced already?", by a method or a property."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from moe_lint import fixing
from moe_lint.engine import Options, run
from moe_lint.model import MatrixRow, Report
from moe_lint.profile import load_profile
from tests.runs import moe_lint

VLLM = load_profile("vllm")

#: The expert layer of a tree in which models reduce, by the layer's method.
METHOD = """
from ...distributed import tensor_model_parallel_all_reduce


class FusedMoE:
    def __init__(self, reduce_results=False):
        self.reduce_results = reduce_results

    def must_reduce_shared_expert_outputs(self) -> bool:
        assert self.quant_method is not None
        return isinstance(self.quant_method, FusedMoEModularMethod) and self.quant_method.output_is_reduced()

    def maybe_all_reduce_tensor_model_parallel(self, final_hidden_states):
        if self.must_reduce_shared_expert_outputs():
            return final_hidden_states
        else:
            return tensor_model_parallel_all_reduce(final_hidden_states)

    def forward(self, x):
        x = self.quant_method.apply(self, x)
        if self.reduce_results and self.tp_size > 1:
            x = self.maybe_all_reduce_tensor_model_parallel(x)
        return x
"""

#: The runner of a tree in which it owns the reduction.
RUNNER = """
from ...distributed import tensor_model_parallel_all_reduce


class MoERunner:
    @property
    def _fused_output_is_reduced(self) -> bool:
        return self.quant_method.moe_kernel is not None and self.quant_method.moe_kernel.output_is_reduced()

    def _maybe_reduce_shared(self, shared):
        if shared is not None and not self.is_sequence_parallel and self._fused_output_is_reduced:
            shared = tensor_model_parallel_all_reduce(shared)
        return shared

    def _maybe_reduce(self, x):
        if not self.is_sequence_parallel and self.tp_size > 1 and not self._fused_output_is_reduced:
            x = tensor_model_parallel_all_reduce(x)
        return x

    def forward(self, x):
        shared, out = _unpack(self._forward_entry(x))
        shared = self._maybe_reduce_shared(shared)
        return self._maybe_reduce(out if shared is None else out + shared)


def _unpack(result):
    if isinstance(result, tuple):
        return result
    return (None, result)
"""

BLOCK = """
from ..distributed import tensor_model_parallel_all_reduce
from ..layers.fused_moe.layer import FusedMoE


class Block:
    def __init__(self):
        self.experts = FusedMoE(reduce_results=False)

    def forward(self, x):
        x = self.experts(x)
{}
        return x
"""


def block(body: str) -> str:
    return BLOCK.format("\n".join(f"        {line}" for line in dedent(body).strip().splitlines()))


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "engine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "engine"


def judged(root: Path, model: str, layer: str = METHOD) -> Report:
    return run(Options((str(tree(root, {"layers/fused_moe/layer.py": layer, "models/m.py": model})),), VLLM))


def row(report: Report, function: str) -> MatrixRow:
    (found,) = [row for row in report.rows if row.function == function]
    return found


# --- a helper that is a method


UNGUARDED = """
if self.tp_size > 1:
    x = tensor_model_parallel_all_reduce(x)
"""


def test_a_sum_that_does_not_ask_the_expert_layer_is_reported_with_a_configuration(tmp_path: Path) -> None:
    (finding,) = judged(tmp_path, block(UNGUARDED)).findings
    assert finding.rule == "MOE002"
    assert finding.remedy == "guard it with `not self.experts.must_reduce_shared_expert_outputs()`"
    assert "--tensor-parallel-size 2 --data-parallel-size 2 --enable-expert-parallel" in (finding.witness or "")
    assert "the combine kernel of the expert layer sums again" in (finding.witness or "")
    (place,) = finding.related
    assert place.path.endswith("layer.py")
    assert place.line == 9


def test_the_wrapper_of_the_expert_layer_is_right(tmp_path: Path) -> None:
    body = "if self.tp_size > 1:\n    x = self.experts.maybe_all_reduce_tensor_model_parallel(x)"
    report = judged(tmp_path, block(body))
    assert report.findings == ()
    assert [(r.function, r.route) for r in report.rows if r.path.endswith("m.py")] == [("forward", "wrapper")]


@pytest.mark.parametrize(
    "guard",
    [
        "if self.tp_size > 1 and not self.experts.must_reduce_shared_expert_outputs():",
        "if not self.experts.must_reduce_shared_expert_outputs():",
        "reduced = self.experts.must_reduce_shared_expert_outputs()\nif not reduced:",
        "if not (\n    isinstance(self.experts.quant_method, FusedMoEModularMethod)\n"
        "    and self.experts.quant_method.output_is_reduced()\n):",
    ],
    ids=["method", "method-alone", "local", "opened"],
)
def test_asking_the_expert_layer_is_right(tmp_path: Path, guard: str) -> None:
    report = judged(tmp_path, block(f"{guard}\n    x = tensor_model_parallel_all_reduce(x)"))
    assert report.findings == ()
    (site,) = [r for r in report.rows if r.path.endswith("m.py")]
    assert site.relation == "equal"


def test_asking_and_not_following_is_not(tmp_path: Path) -> None:
    body = "if self.experts.must_reduce_shared_expert_outputs():\n    x = tensor_model_parallel_all_reduce(x)"
    assert [f.rule for f in judged(tmp_path, block(body)).findings] == ["MOE007"]


def test_the_wrapper_itself_and_the_layer_that_owns_the_sum_are_right(tmp_path: Path) -> None:
    report = judged(tmp_path, block("x = x + 1"))
    assert [(r.function, r.route, r.relation, r.post_experts) for r in report.rows] == [
        ("maybe_all_reduce_tensor_model_parallel", "helper", "equal", True),
        ("forward", "wrapper", None, True),
    ]


def test_the_wrapper_may_repeat_what_the_helper_says(tmp_path: Path) -> None:
    layer = METHOD.replace(
        "return isinstance(self.quant_method, FusedMoEModularMethod) and self.quant_method.output_is_reduced()",
        "return self.use_alpha or self.use_beta",
    ).replace("if self.must_reduce_shared_expert_outputs():", "if self.use_alpha or self.use_beta:")
    report = judged(tmp_path, block(UNGUARDED), layer)
    own, model = report.findings
    assert (own.rule, own.relation) == ("MOE001", "equal")
    assert "`FusedMoE.use_alpha`" in (model.witness or "")


def test_a_wrapper_is_not_fixed_into_a_call_of_itself(tmp_path: Path) -> None:
    layer = METHOD.replace("if self.must_reduce_shared_expert_outputs():", "if self.use_alpha:").replace(
        "return isinstance(self.quant_method, FusedMoEModularMethod) and self.quant_method.output_is_reduced()",
        "return self.use_alpha",
    )
    report = judged(tmp_path, block("x = x + 1"), layer)
    options = Options((str(tmp_path / "engine"),), VLLM)
    (fixed,) = fixing.fix(options, report, fixing.ALLOWED["default"]).fixed
    assert "return tensor_model_parallel_all_reduce(final_hidden_states)" in fixed.after


def test_experts_without_an_expert_layer_have_no_combine_that_sums(tmp_path: Path) -> None:
    model = block(UNGUARDED).replace("FusedMoE(reduce_results=False)", "None")
    assert judged(tmp_path, model.replace("self.experts(x)", "fused_experts(x)")).findings == ()


def test_an_override_in_a_subclass_is_not_the_definition(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "layers/fused_moe/layer.py": METHOD,
            "a.py": "from .layers.fused_moe.layer import FusedMoE\n\n\nclass Special(FusedMoE):\n"
            "    def must_reduce_shared_expert_outputs(self):\n        return self.special\n\n"
            "    def other(self, x):\n        return tensor_model_parallel_all_reduce(x)\n",
            "models/m.py": block(UNGUARDED),
        },
    )
    (finding,) = run(Options((str(root),), VLLM)).findings
    assert finding.related[-1].path.endswith("layer.py")


def test_the_fix_calls_the_wrapper_of_the_expert_layer(tmp_path: Path) -> None:
    report = judged(tmp_path, block(UNGUARDED))
    options = Options((str(tmp_path / "engine"),), VLLM)
    result = fixing.fix(options, report, fixing.ALLOWED["default"])
    assert result.not_proven == ()
    (fixed,) = result.fixed
    assert "        x = self.experts.maybe_all_reduce_tensor_model_parallel(x)\n" in fixed.after
    assert "tensor_model_parallel_all_reduce\n" not in fixed.after
    assert "must_reduce" not in fixed.after
    assert result.report.findings == ()


def test_without_a_wrapper_the_fix_asks_the_method(tmp_path: Path) -> None:
    layer = METHOD[: METHOD.index("    def maybe_all_reduce")]
    report = judged(tmp_path, block(UNGUARDED), layer)
    result = fixing.fix(Options((str(tmp_path / "engine"),), VLLM), report, fixing.ALLOWED["default"])
    (fixed,) = result.fixed
    assert "if self.tp_size > 1 and not self.experts.must_reduce_shared_expert_outputs():\n" in fixed.after


# --- a helper that is a property, in a tree whose runner owns the sum


def test_the_runner_that_asks_its_own_property_is_right(tmp_path: Path) -> None:
    report = judged(tmp_path, block("x = x + 1"), RUNNER)
    assert report.findings == ()
    assert row(report, "_maybe_reduce").route == "helper"
    assert row(report, "_maybe_reduce").relation == "equal"
    assert not row(report, "_maybe_reduce_shared").post_experts, "the shared experts' output alone"


def test_a_block_that_sums_what_the_runner_has_summed_is_reported(tmp_path: Path) -> None:
    assert [f.rule for f in judged(tmp_path, block(UNGUARDED), RUNNER).findings] == ["MOE002"]


@pytest.mark.parametrize("name", ["output_is_reduced", "skip_final_all_reduce", "reduce_results"])
def test_whoever_was_told_to_reduce_is_the_callers_choice(tmp_path: Path, name: str) -> None:
    body = f"if self.{name}:\n    x = tensor_model_parallel_all_reduce(x)"
    report = judged(tmp_path, block(body), RUNNER)
    assert report.findings == ()
    assert [r.route for r in report.rows if r.path.endswith("m.py")] == ["owned"]


# --- no helper


def test_a_tree_without_a_helper_and_without_a_reason_is_not_judged(tmp_path: Path) -> None:
    layer = METHOD.replace("must_reduce_shared_expert_outputs", "is_modular")
    layer = layer[: layer.index("    def maybe_all_reduce")]
    report = judged(tmp_path, block(UNGUARDED), layer)
    (problem,) = report.problems
    assert report.exit_code == 2
    assert problem.reason.value == "no-helper"
    assert problem.message == (
        "no `must_reduce_shared_expert_outputs` in this tree, and no guard names a skip reason: "
        "1 reduction after the experts not judged; "
        "an engine or fork with other names needs a profile of its own (`--profile FILE`), "
        "a plug-in the package of its engine in the same folder"
    )


def test_the_wrong_profile_is_told_which_one_fits(tmp_path: Path) -> None:
    root = tree(tmp_path, {"layers/fused_moe/layer.py": METHOD, "models/m.py": block(UNGUARDED)})
    result = moe_lint("check", str(root))
    assert result.exit_code == 2
    assert "did you mean `--profile vllm`?" in result.output
    assert moe_lint("check", "--profile", "vllm", str(root)).exit_code == 1


def test_a_file_without_reductions_is_fine_in_a_tree_without_a_helper(tmp_path: Path) -> None:
    root = tree(tmp_path, {"__init__.py": "", "m.py": block(UNGUARDED), "other.py": "x = 1\n"})
    assert run(Options((str(root / "other.py"),), VLLM)).exit_code == 0


def test_a_plug_in_is_judged_by_the_engine_in_the_same_folder(tmp_path: Path) -> None:
    plug_in = {"plug_in/m.py": block(UNGUARDED).replace("from ..layers", "from host.layers")}
    alone = run(Options((str(tree(tmp_path / "alone", plug_in)),), VLLM))
    assert (alone.findings, alone.exit_code) == ((), 2)
    both = {**plug_in, "host/__init__.py": "", "host/layers/fused_moe/layer.py": METHOD}
    beside = run(Options((str(tree(tmp_path / "beside", both)),), VLLM))
    assert [(finding.rule, Path(finding.path).parent.name) for finding in beside.findings] == [("MOE002", "plug_in")]


# --- a layer that is built whole on every rank


@pytest.mark.parametrize(("condition", "accused"), [("self.replicated", []), ("self.shared_experts", ["MOE304"])])
def test_a_shared_expert_owes_no_sum_where_it_runs_only_when_it_is_replicated(
    tmp_path: Path, condition: str, accused: list[str]
) -> None:
    own = "self.shared_experts = MLP(reduce_results=False, disable_tp=self.replicated)"
    body = (
        "if self.tp_size > 1:\n    x = self.experts.maybe_all_reduce_tensor_model_parallel(x)\n"
        f"if {condition}:\n    x = x + self.shared_experts(x)"
    )
    model = block(body).replace("reduce_results=False)", f"reduce_results=False)\n        {own}", 1)
    model += "\n\nclass Layer:\n    def __init__(self):\n        self.mlp = Block()\n"
    root = tree(tmp_path, {"layers/fused_moe/layer.py": METHOD, "models/m.py": model})
    report = run(Options((str(root),), VLLM, select=("MOE304",)))
    assert [f.rule for f in report.findings] == accused


# --- shared experts that are handed to the experts


#: The factory of the experts, and the runner that it gives the shared experts to.
FACTORY = (
    RUNNER.replace(
        "class MoERunner:\n",
        "class MoERunner:\n    def __init__(self, config, shared_experts=None, runner_options=None):\n"
        "        self.config = config\n        self._shared_experts = shared_experts\n\n",
    ).replace("self.is_sequence_parallel", "self.config.is_sequence_parallel")
    + """

def FusedMoEFactory(config, is_sequence_parallel=False, shared_experts=None, runner_cls=None):
    if runner_cls is None:
        runner_cls = MoERunner
    return runner_cls(make_config(config, is_sequence_parallel), shared_experts=shared_experts)
"""
)
HANDING = """
from ..layers.fused_moe.layer import FusedMoEFactory


class RowParallelLinear:
    def __init__(self, size, reduce_results=True, disable_tp=False):
        self.reduce_results = reduce_results


class MLP:
    def __init__(self, config, reduce_results=True, is_sequence_parallel=False, disable_tp=False):
        disable_tp = disable_tp or is_sequence_parallel
        self.expert_gate = config.gate
        self.down_proj = RowParallelLinear(config.size, reduce_results=reduce_results, disable_tp=disable_tp)

    def forward(self, x):
        out, _ = self.down_proj(x)
        if self.expert_gate is not None:
            out = F.sigmoid(self.expert_gate(x)[0]) * out
        return out


class Block:
    def __init__(self, config):
        self.is_sequence_parallel = config.use_sequence_parallel_moe
        self.shared_experts = MLP({})
        self.experts = FusedMoEFactory(
            config, shared_experts=self.shared_experts, is_sequence_parallel=self.is_sequence_parallel
        )

    def forward(self, x):
        return self.experts(x)
"""


@pytest.mark.parametrize(
    ("built", "message"),
    [
        ("config", "its term counts once for every rank"),
        ("config, reduce_results=False", "each rank keeps its own part"),
        ("config, reduce_results=False, is_sequence_parallel=self.is_sequence_parallel", None),
        ("config, reduce_results=False, disable_tp=self.is_sequence_parallel", None),
        ("config, reduce_results=False, is_sequence_parallel=True", "its term counts once for every rank"),
    ],
    ids=["sums-by-default", "split-in-sequence-parallel", "told", "replicated", "always-whole"],
)
def test_who_sums_handed_over_shared_experts_is_read_from_the_runner(
    built: str, message: str | None, tmp_path: Path
) -> None:
    report = judged(tmp_path, HANDING.format(built), FACTORY)
    found = [finding.message for finding in report.findings if finding.rule == "MOE312"]
    assert [message in one for one in found if message is not None] == ([True] if message else [])
    assert len(found) == (message is not None)


@pytest.mark.parametrize(
    ("guard", "rules"),
    [
        ("not self.config.skip_final_all_reduce", ["MOE002", "MOE309"]),
        ("self.reduce_results", ["MOE002", "MOE309"]),
        ("not self.config.skip_final_all_reduce and not self._fused_output_is_reduced", []),
        ("not output_is_reduced", []),
        ("not self.output_is_reduced", []),
    ],
    ids=["forgotten", "forgotten-too", "asked", "told", "kept"],
)
def test_the_runner_itself_has_to_ask_whatever_its_caller_chose(tmp_path: Path, guard: str, rules: list[str]) -> None:
    runner = FACTORY.replace("self.tp_size > 1 and not self._fused_output_is_reduced", f"self.tp_size > 1 and {guard}")
    runner = runner.replace("_maybe_reduce(self, x)", "_maybe_reduce(self, x, output_is_reduced=None)").replace(
        "    def forward(self, x):\n",
        "    def forward(self, x):\n        self.output_is_reduced = self._fused_output_is_reduced\n",
    )
    model = HANDING.format("config, reduce_results=False, is_sequence_parallel=self.is_sequence_parallel")
    assert [f.rule for f in judged(tmp_path, model, runner).findings] == rules


#: The factory's runner where `forward` asks once, and tells its methods.
TELLING = (
    FACTORY.replace("_maybe_reduce_shared(self, shared)", "_maybe_reduce_shared(self, shared, reduced)")
    .replace("is_sequence_parallel and self._fused_output_is_reduced:", "is_sequence_parallel and reduced:")
    .replace("_maybe_reduce(self, x)", "_maybe_reduce(self, x, output_is_reduced=None)")
    .replace(
        "        if not self.config.is_sequence_parallel and self.tp_size > 1 and not self._fused_output_is_reduced:",
        "        if output_is_reduced is None:\n            output_is_reduced = self._fused_output_is_reduced\n"
        "        if not self.config.is_sequence_parallel and self.tp_size > 1 and not output_is_reduced:",
    )
    .replace(
        "        shared = self._maybe_reduce_shared(shared)\n"
        "        return self._maybe_reduce(out if shared is None else out + shared)",
        "        is_reduced = self._fused_output_is_reduced\n"
        "        shared = self._maybe_reduce_shared(shared, is_reduced)\n"
        "        return self._maybe_reduce(out if shared is None else out + shared, is_reduced)",
    )
)
_OF_SHARED = "is_sequence_parallel and reduced:"
_OF_ALL = "if not self.config.is_sequence_parallel and self.tp_size > 1 and not output_is_reduced:"


@pytest.mark.parametrize(
    ("old", "new", "rules"),
    [
        ("", "", []),
        (_OF_SHARED, "is_sequence_parallel:", ["MOE309"]),
        (_OF_SHARED, "is_sequence_parallel and not reduced:", ["MOE309"]),
        (
            _OF_ALL,
            f"if output_is_reduced:\n            return x\n        {_OF_ALL.replace(' and not output_is_reduced', '')}",
            [],
        ),
        (_OF_ALL, "if not output_is_reduced and self.tp_size > 1 and not self.config.is_sequence_parallel:", []),
        ("output_is_reduced=None", "told=None", []),
    ],
    ids=[
        "as-it-is",
        "the-first-does-not-ask",
        "the-first-asks-the-opposite",
        "returns-early",
        "in-any-order",
        "renamed",
    ],
)
def test_the_sums_of_a_runner_run_in_turn_only_as_its_forward_tells_them(
    tmp_path: Path, old: str, new: str, rules: list[str]
) -> None:
    runner = TELLING.replace(old, new)
    if new == "told=None":
        runner = runner.replace("if output_is_reduced is", "output_is_reduced = told\n        if output_is_reduced is")
    model = HANDING.format("config, reduce_results=False, is_sequence_parallel=self.is_sequence_parallel")
    derived = "\n\nclass Own(MoERunner):\n    def scaled(self, x):\n        return x * 2\n"
    assert [f.rule for f in judged(tmp_path, model, runner + derived).findings] == rules


LAYER = """

class Layer:
    def __init__(self, config):
        self.mlp = Block(config)

    def forward(self, x):
        x = self.mlp(x)
        return {}


class Model:
    def __init__(self, config):
        self.layers = [Layer(config)]
"""


@pytest.mark.parametrize(
    ("default", "returned", "rules"),
    [
        ("True", "tensor_model_parallel_all_reduce(x)", ["MOE306"]),
        ("False", "tensor_model_parallel_all_reduce(x)", []),
        ("True", "x", []),
        ("True", "tensor_model_parallel_all_reduce(x) if self.mlp.left else x", []),
    ],
    ids=["summed-again", "left-to-the-layer", "left-alone", "asked"],
)
def test_a_layer_does_not_sum_what_experts_sum_by_the_default_of_their_factory(
    tmp_path: Path, default: str, returned: str, rules: list[str]
) -> None:
    factory = FACTORY.replace("runner_cls=None)", f"runner_cls=None, reduce_results={default})")
    shared = "config, reduce_results=False, is_sequence_parallel=self.is_sequence_parallel"
    model = "from ..distributed import tensor_model_parallel_all_reduce\n" + HANDING.format(shared)
    assert [f.rule for f in judged(tmp_path, model + LAYER.format(returned), factory).findings] == rules


# --- functions of a plug-in that are patched into a block


#: Shared experts that are whole under sequence parallelism, and a block that sums them with its experts.
PATCHED = HANDING.format("config, reduce_results=False, is_sequence_parallel=self.is_sequence_parallel")
PATCH = """
from engine.distributed import tensor_model_parallel_all_reduce
from engine.models.m import Block


{}
def patched(self, x):
    out = self.experts(x)
    if {}:
        out = out + self.shared_experts(x)
    if self.tp_size > 1:
        out = tensor_model_parallel_all_reduce(out)
    return out


{}
"""
BY_NAME = '@register_patch(\n    target="engine.models.m.Block.forward",\n    reason="3-D tensors",\n)'


@pytest.mark.parametrize(
    ("decorator", "joins", "assigned", "found"),
    [
        ("", "self.shared_experts is not None", "Block.forward = patched", ["MOE306"]),
        (BY_NAME, "self.shared_experts is not None", "", ["MOE306"]),
        ("", "not self.is_sequence_parallel", "Block.forward = patched", []),
        (BY_NAME, "not self.is_sequence_parallel", "", []),
        ("", "self.shared_experts is not None", "Block.backward = other", []),
    ],
    ids=["assigned", "named", "assigned-and-joined-where-it-is-split", "named-and-joined-there", "not-patched-in"],
)
def test_a_function_that_is_patched_into_a_block_is_judged_as_its_method(
    decorator: str, joins: str, assigned: str, found: list[str], tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin"
    plugin.mkdir()
    (plugin / "patches.py").write_text(PATCH.format(decorator, joins, assigned))
    tree(tmp_path, {"layers/fused_moe/layer.py": FACTORY, "models/m.py": PATCHED})
    report = run(Options((str(tmp_path),), VLLM))
    assert [one.rule for one in report.findings if one.path.endswith("patches.py")] == found
