"""Fixes that hand a flag down from the layer to the reduction: what is written where, and what is refused."""

from __future__ import annotations

import ast
from inspect import cleandoc
from pathlib import Path
from textwrap import indent

import pytest

from codemods.edits import CannotRewrite, Source, apply_edits
from codemods.plans import plan_edits
from moe_lint import fixing
from moe_lint.engine import Options, run
from moe_lint.model import FixPlan, Safety, Span, display_path
from moe_lint.profile import load_profile
from moe_lint.rules._cases import BARE, COMMUNICATOR, FUSION_ONLY, SETTLE, UTILS, Piece, block, experts, layer_model

PROFILE = load_profile("sglang")
POST = "x, residual = self.layer_communicator.postprocess_layer(x, residual, batch)"
PLAIN = f"x = self.mlp(x)\n{POST}"
ASK_FUSION = "should_allreduce_fusion = self.layer_communicator.should_fuse_mlp_allreduce_with_next_layer(batch)\n"
ASKED = "self.layer_communicator.should_use_reduce_scatter(batch)"
HELPER = "should_skip_post_experts_all_reduce"


def tree(folder: Path, **models: str) -> Path:
    """A pretend engine with these model files; its folder."""
    files = {"layers/moe/utils.py": UTILS, "layers/communicator.py": COMMUNICATOR}
    files |= {f"models/{name}.py": text for name, text in models.items()}
    for name, text in files.items():
        path = folder / "engine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "engine"


def result(root: Path, *paths: Path) -> fixing.FixResult:
    options = Options(tuple(str(path) for path in paths or (root,)), PROFILE)
    return fixing.fix(options, run(options), fixing.ALLOWED["default"])


def written(*blocks: Piece, **parts: str) -> str:
    return str(layer_model(*blocks, **parts))


def fixed(folder: Path, *blocks: Piece, **parts: str) -> str:
    """The one model file after the fix, which is stable and leaves nothing to report."""
    root = tree(folder, pretend=written(*blocks, **{"layer": PLAIN, **parts}))
    done = result(root)
    assert done.not_proven == ()
    (one,) = done.fixed
    compile(one.after, one.path, "exec")
    Path(one.path).write_text(one.after)
    again = result(root)
    assert (again.fixed, again.report.findings) == ((), ())
    return one.after


def method(text: str, name: str) -> str:
    """One function of a file, normalised."""
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef) and n.name == name]
    return ast.unparse(nodes[0])


def reason(root: Path) -> str:
    """Why a finding's fix does not hand the flags down."""
    (plan,) = {f.fix for f in result_report(root) if f.fix is not None and f.fix.helper == HELPER}
    assert plan is not None
    assert plan.parts == ()
    return plan.reason


def result_report(root: Path) -> tuple[fixing.Finding, ...]:
    return run(Options((str(root),), PROFILE)).findings


TWO_STEPS = (
    "def forward(self, x):\n    return self.forward_normal(x)\n",
    experts(BARE, "forward_normal", "x"),
)


def test_the_flags_reach_the_reduction_through_every_function_on_the_way(tmp_path: Path) -> None:
    after = fixed(tmp_path, block(*TWO_STEPS))
    plain = ast.unparse(ast.parse(after))
    assert f"x = self.mlp(x, use_reduce_scatter={ASKED})\n" in ast.unparse(ast.parse(after))
    assert "def forward(self, x, use_reduce_scatter=False, should_allreduce_fusion=False):\n" in plain
    assert "def forward_normal(self, x, use_reduce_scatter=False, should_allreduce_fusion=False):\n" in plain
    assert "self.forward_normal(x, use_reduce_scatter=use_reduce_scatter, should_all" in method(after, "forward")
    assert "use_reduce_scatter=use_reduce_scatter, should_allreduce_fusion=should_all" in method(
        after, "forward_normal"
    )


def test_a_comment_further_left_than_its_method_is_no_obstacle(tmp_path: Path) -> None:
    text = written(block(*TWO_STEPS), layer=PLAIN).replace(
        "        return self.forward_normal", "# left\n        return self.forward_normal"
    )
    assert "\n# left\n" in text
    root = tree(tmp_path, pretend=text)
    (one,) = result(root).fixed
    assert "def forward(self, x, use_reduce_scatter=False, should_allreduce_fusion=False):\n# left\n" in one.after


def test_fusion_is_asked_for_only_by_a_layer_that_marks_the_tensor(tmp_path: Path) -> None:
    marking = f"{ASK_FUSION}x = self.mlp(x)\n{cleandoc(SETTLE)}"
    after = fixed(tmp_path, block(*TWO_STEPS), layer=marking)
    assert "should_allreduce_fusion=should_allreduce_fusion" in method(after, "forward")
    layer = after[after.index("class DecoderLayer") :]
    assert "should_allreduce_fusion=should_allreduce_fusion" in layer
    root = tree(tmp_path / "other", pretend=written(block(*TWO_STEPS), layer=PLAIN))
    (plan,) = {f.fix for f in result_report(root) if f.fix is not None and f.fix.parts}
    assert plan is not None
    assert plan.safety is Safety.CORRECTIVE
    assert "`DecoderLayer.forward` hands `use_reduce_scatter` down" in plan.reason
    assert "`should_allreduce_fusion` stays False: `DecoderLayer` never marks a tensor" in plan.reason


def test_only_the_flag_that_is_missing_is_added(tmp_path: Path) -> None:
    parts = experts(FUSION_ONLY, parameters="x, should_allreduce_fusion=False")
    layer = f"{ASK_FUSION}x = self.mlp(x, should_allreduce_fusion)\n{cleandoc(SETTLE)}"
    after = fixed(tmp_path, block(parts), layer=layer)
    assert "def forward(self, x, should_allreduce_fusion=False, use_reduce_scatter=False):\n" in after
    assert f"x = self.mlp(x, should_allreduce_fusion, use_reduce_scatter={ASKED})" in ast.unparse(ast.parse(after))


def test_two_reductions_of_a_block_share_the_parameters(tmp_path: Path) -> None:
    forward = """
    def forward(self, x):
        if self.cpu:
            return self.forward_cpu(x)
        return self.forward_normal(x)
    """
    after = fixed(tmp_path, block(forward, experts(BARE, "forward_normal", "x"), experts(BARE, "forward_cpu", "x")))
    assert method(after, "forward").count("use_reduce_scatter=use_reduce_scatter") == 2
    assert after.count(f"not {HELPER}(") == 2


def test_a_block_and_its_layer_in_two_files_are_fixed_together(tmp_path: Path) -> None:
    whole = written(block(*TWO_STEPS), layer=PLAIN)
    head, _, layer = whole.partition("class DecoderLayer")
    imports = head[: head.index("class Block")]
    root = tree(
        tmp_path,
        blocks=head,
        layers=f"{imports}from engine.models.blocks import Block\n\n\nclass DecoderLayer{layer}",
    )
    done = result(root)
    assert done.not_proven == ()
    assert sorted(Path(one.path).name for one in done.fixed) == ["blocks.py", "layers.py"]
    assert done.report.findings == ()
    # half of the fix is no fix
    alone = result(root, root / "models/blocks.py")
    assert alone.fixed == ()
    assert [why for _, _, why in alone.not_proven] == [
        f"it also needs a change in {display_path(str(root / 'models/layers.py'))}, "
        "which is not among the files to check"
    ]


def test_a_flag_that_the_layer_knows_is_passed_as_it_knows_it(tmp_path: Path) -> None:
    layer = f"scatter = {ASKED}\nx = self.mlp(x)\n{POST}"
    assert "x = self.mlp(x, use_reduce_scatter=scatter)\n" in fixed(tmp_path, block(*TWO_STEPS), layer=layer)


DENSE = "class Dense:\n    def forward(self, x):\n        return x\n"


@pytest.mark.parametrize(
    ("parts", "layer", "why"),
    [
        ((experts(BARE, parameters="x, **kwargs"),), {}, "`Block.forward` takes unnamed arguments"),
        ((experts(BARE, parameters="x, *rest"),), {}, "`Block.forward` takes unnamed arguments"),
        (("@decorate\n" + experts(BARE, parameters="x"),), {}, "`Block.forward` is decorated"),
        ((experts(BARE, parameters="x"),), {"layer": f"x = self.mlp(*[x])\n{POST}"}, "passes unnamed arguments"),
        ((experts(BARE, parameters="x"),), {"layer": "x = self.mlp(x)"}, "does not hand the result to"),
        (
            (experts(BARE, parameters="x"),),
            {"layer": f"x = self.mlp(x)\n{POST.replace('batch', 'state.batch')}", "batch": "state"},
            "lacks an argument of `should_use_reduce_scatter`",
        ),
        (
            (experts(BARE, parameters="x"),),
            {"build": "if config.sparse:\n    self.mlp = Block(config)\nelse:\n    self.mlp = Dense()"},
            "may also reach `Dense.forward`, which takes no `use_reduce_scatter`",
        ),
        (
            (experts(BARE, parameters="x"),),
            {"build": "if config.sparse:\n    self.mlp = Block(config)\nelse:\n    self.mlp = config.make()"},
            "what `self.mlp` may be in `DecoderLayer.forward` cannot be told",
        ),
        (
            (experts(BARE, parameters="x"),),
            {"more": "class Other(Block):\n    def forward(self, x):\n        return x\n"},
            "`Other.forward` overrides `Block.forward`",
        ),
        (
            (experts(f"use_it(use_reduce_scatter)\n{cleandoc(BARE)}", parameters="x"),),
            {},
            "`Block.forward` uses the name `use_reduce_scatter` already",
        ),
    ],
)
def test_what_cannot_be_done_surely_is_left_with_the_reason(
    tmp_path: Path, parts: tuple[Piece, ...], layer: dict[str, str], why: str
) -> None:
    extra = {k: v for k, v in layer.items() if k in ("layer", "build")}
    text = written(block(*parts), DENSE, layer.get("more", ""), **{"layer": PLAIN, **extra})
    if "batch" in layer:
        text = text.replace("residual, batch):", f"residual, {layer['batch']}):")
    assert why in reason(tree(tmp_path, pretend=text))


# --- the layout of what is added

LAYOUTS = {
    "one line": ("def f(self, x):\n    pass\n", "def f(self, x, flag=False):\n    pass\n"),
    "nothing yet": ("def f():\n    pass\n", "def f(flag=False):\n    pass\n"),
    "comma in one line": ("def f(self, x,):\n    pass\n", "def f(self, x, flag=False):\n    pass\n"),
    "annotated": (
        "def f(self, x: int) -> int:\n    pass\n",
        "def f(self, x: int, flag: bool = False) -> int:\n    pass\n",
    ),
    "keyword-only": ("def f(self, *, a=1):\n    pass\n", "def f(self, *, a=1, flag=False):\n    pass\n"),
    "brackets inside": (
        "def f(x: A[B, (C, D)] = (1, 2)):\n    pass\n",
        "def f(x: A[B, (C, D)] = (1, 2), flag: bool = False):\n    pass\n",
    ),
    "one each": (
        "def f(\n    self,\n    x,  # why\n):\n    pass\n",
        "def f(\n    self,\n    x,  # why\n    flag=False,\n):\n    pass\n",
    ),
    "no last comma": (
        "def f(\n    self,\n    x  # why\n):\n    pass\n",
        "def f(\n    self,\n    x,  # why\n    flag=False,\n):\n    pass\n",
    ),
    "a line of their own": ("def f(\n    self, x\n):\n    pass\n", "def f(\n    self, x, flag=False\n):\n    pass\n"),
    "comment at the end": (
        "def f(\n    x,\n    # no more\n):\n    pass\n",
        "def f(\n    x,\n    flag=False,\n    # no more\n):\n    pass\n",
    ),
    "hanging": ("def f(self,\n      x):\n    pass\n", "def f(self,\n      x, flag=False):\n    pass\n"),
    "backslash": ("def f(self, \\\n      x):\n    pass\n", "def f(self, \\\n      x, flag=False):\n    pass\n"),
    "windows": ("def f(\r\n    x,\r\n):\r\n    pass\r\n", "def f(\r\n    x,\r\n    flag=False,\r\n):\r\n    pass\r\n"),
    "tabs": ("def f(\n\tx,\n):\n\tpass\n", "def f(\n\tx,\n\tflag=False,\n):\n\tpass\n"),
    "too long": (
        f"def f(self, {'x' * 40}: int, {'y' * 30}: int) -> int:\n    pass\n",
        f"def f(\n    self, {'x' * 40}: int, {'y' * 30}: int, flag: bool = False\n) -> int:\n    pass\n".replace(
            f"    self, {'x' * 40}: int, {'y' * 30}: int, flag: bool = False",
            f"    self,\n    {'x' * 40}: int,\n    {'y' * 30}: int,\n    flag: bool = False,",
        ),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_parameter_is_added_in_the_layout_of_the_others(name: str) -> None:
    before, after = LAYOUTS[name]
    assert apply_edits(before, plan_edits(added(), before)) == after
    inside = indent(before, "\t" if name == "tabs" else "    ")
    moved = apply_edits(f"class C:\n{inside}", plan_edits(added(line=2), f"class C:\n{inside}"))
    assert ast.dump(ast.parse(moved).body[0].body[0]) == ast.dump(ast.parse(after).body[0])  # type: ignore[attr-defined]


def added(line: int = 1) -> FixPlan:
    span = Span(line, 1, line, 1)
    return FixPlan("x.py", "parameters", span, None, True, (), "", (("flag", "False"),), "", Safety.CORRECTIVE, "")


@pytest.mark.parametrize(
    "text", ["x = 1\n", "def f(*a):\n    pass\n", "def f(**a):\n    pass\n", "def f(flag):\n    pass\n"]
)
def test_a_parameter_is_not_added_where_it_does_not_fit(text: str) -> None:
    with pytest.raises(CannotRewrite):
        plan_edits(added(), text)


CALLS = {
    "f(x)": "f(x, flag=on)",
    "f()": "f(flag=on)",
    "f(x,)": "f(x, flag=on)",
    "f(\n    x,  # why\n)": "f(\n    x,  # why\n    flag=on,\n)",
    "f(\n    x  # why\n)": "f(\n    x,  # why\n    flag=on,\n)",
    "g(1)(x)": "g(1)(x, flag=on)",
    "f(g(x), [h(y)])": "f(g(x), [h(y)], flag=on)",
}


@pytest.mark.parametrize("call", CALLS)
def test_a_keyword_is_added_in_the_layout_of_the_others(call: str) -> None:
    lines = call.split("\n")
    span = Span(1, 1, len(lines), len(lines[-1]) + 1)
    plan = FixPlan("x", "keywords", span, None, True, (), "", (("flag", "on"),), "", Safety.CORRECTIVE, "", call=span)
    assert apply_edits(call + "\n", plan_edits(plan, call + "\n")) == CALLS[call] + "\n"
    assert Source(call).text == call
