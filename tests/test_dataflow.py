"""Which reductions sum the experts' output, across functions, classes and files of small trees."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent, indent

import pytest

from moe_lint.analysis import analyse
from moe_lint.discover import python_file_names
from moe_lint.model import SkipReason
from moe_lint.profile import load_profile

PROFILE = load_profile("sglang")
HEAD = "from .distributed import tensor_model_parallel_all_reduce\n"


def judged(root: Path, **files: str) -> dict[str, bool]:
    """`file.function` of every site in a tree -> whether it is a post-experts site. `R(` is the TP all-reduce."""
    for name, text in files.items():
        source = HEAD + dedent(text).replace("R(", "tensor_model_parallel_all_reduce(")
        (root / f"{name}.py").write_text(source)
    tree = analyse(str(root), python_file_names(str(root)), PROFILE)
    assert {problem.reason for problem in tree.problems} <= {SkipReason.NO_HELPER}
    found: dict[str, bool] = {}
    for site in tree.sites:
        key = f"{Path(site.path).stem}.{site.raw.function}"
        while key in found:
            key += "'"
        found[key] = site.post_experts
    return found


def one(root: Path, text: str) -> bool:
    """The verdict on the only site of a tree of one file."""
    (found,) = judged(root, block=text).values()
    return found


# --- in one function


def test_the_sum_of_the_experts_output_is_post_experts(tmp_path: Path) -> None:
    assert one(
        tmp_path,
        """
        class Block:
            def forward(self, x):
                return R(self.experts(x))
        """,
    )


def test_experts_plus_shared_experts_are_post_experts(tmp_path: Path) -> None:
    assert one(
        tmp_path,
        """
        class Block:
            def forward(self, x):
                shared = self.shared_experts(x)
                out = self.experts(x, self.topk(x))
                out = out * 2 + shared
                return R(out)
        """,
    )


def test_shared_experts_alone_are_not(tmp_path: Path) -> None:
    assert not one(
        tmp_path,
        """
        class Block:
            def forward(self, x):
                return self.experts(x) + R(self.shared_experts(x))
        """,
    )


@pytest.mark.parametrize("layer", ["self_attn", "attn", "input_layernorm", "norm", "gate", "embed_tokens"])
def test_what_other_layers_make_of_the_experts_output_is_not(tmp_path: Path, layer: str) -> None:
    assert not one(
        tmp_path,
        f"""
        class Layer:
            def forward(self, x):
                x = self.experts(x)
                return R(self.{layer}(x))
        """,
    )


def test_a_variance_is_not(tmp_path: Path) -> None:
    assert not one(
        tmp_path,
        """
        class Norm:  # inside a moe block
            def forward(self, x):
                variance = x.pow(2).mean(dim=-1, keepdim=True)
                return R(variance)
        """,
    )


def test_a_linear_after_the_experts_keeps_the_sum_owed(tmp_path: Path) -> None:
    assert one(
        tmp_path,
        """
        class Block:
            def __init__(self):
                self.up = RowParallelLinear(1, 1, reduce_results=False)
            def forward(self, x):
                y = self.experts(x)
                y, _ = self.up(y)
                return R(y)
        """,
    )


def test_a_file_that_speaks_of_no_experts_has_no_sites(tmp_path: Path) -> None:
    text = "class Attention:\n    def forward(self, x):\n        return R(self.o_proj(x))\n"
    assert judged(tmp_path, layers=text) == {}


@pytest.mark.parametrize("name", ["TinyMoeBlock", "TinyMoEBlock", "tiny_moe_block", "TINY_MOE_BLOCK"])
def test_a_file_speaks_of_experts_in_every_capitalisation(tmp_path: Path, name: str) -> None:
    base = "class Base:\n    def core(self, x):\n        return self.experts(x)\n"
    block = f"from .base import Base\nclass {name}(Base):\n    def forward(self, x):\n        return R(self.core(x))\n"
    assert judged(tmp_path, base=base, block=block) == {f"block.{name}.forward": True}


# --- through methods


@pytest.mark.parametrize(("order", "wanted"), [("shared, routed", True), ("routed, shared", False)])
def test_a_tuple_from_a_method_is_unpacked_by_position(tmp_path: Path, order: str, wanted: bool) -> None:
    found = one(
        tmp_path,
        f"""
        class Block:
            def both(self, x):
                return self.shared_mlp(x), self.experts(x)
            def forward(self, x):
                {order} = self.both(x)
                return R(routed)
        """,
    )
    assert found is wanted


@pytest.mark.parametrize(("order", "wanted"), [("shared, routed", True), ("routed, shared", False)])
def test_a_tuple_through_two_methods_is_unpacked_by_position(tmp_path: Path, order: str, wanted: bool) -> None:
    found = one(
        tmp_path,
        f"""
        class Block:
            def inner(self, x):
                shared = self.shared_mlp(x)
                routed = self.experts(x)
                return shared, routed
            def outer(self, x):
                if x.shape[0] == 0:
                    return self.inner(x)
                shared, routed = self.inner(x)
                return shared, routed
            def forward(self, x):
                {order} = self.outer(x)
                return R(routed)
        """,
    )
    assert found is wanted


def test_a_tuple_that_a_method_turns_round_is_followed(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        block="""
        class Block:
            def inner(self, x):
                return self.experts(x), self.shared_mlp(x)
            def outer(self, x):
                routed, shared = self.inner(x)
                return shared, routed
            def first(self, x):
                a, b = self.outer(x)
                return R(a)
            def second(self, x):
                a, b = self.outer(x)
                return R(b)
        """,
    )
    assert found == {"block.Block.first": False, "block.Block.second": True}


def test_a_method_that_only_reshapes_passes_the_experts_output_on(tmp_path: Path) -> None:
    assert one(
        tmp_path,
        """
        class Block:
            def finish(self, y):
                return y.view(-1) * self.scale
            def forward(self, x):
                return R(self.finish(self.experts(x)))
        """,
    )


def test_a_method_that_ignores_its_argument_does_not(tmp_path: Path) -> None:
    assert not one(
        tmp_path,
        """
        class Block:
            def fresh(self, y):
                return torch.zeros(1)
            def forward(self, x):
                return R(self.fresh(self.experts(x)))
        """,
    )


def test_methods_that_call_each_other_come_to_an_end(tmp_path: Path) -> None:
    assert one(
        tmp_path,
        """
        class Block:
            def a(self, x):
                return self.b(x) if self.deep else self.experts(x)
            def b(self, x):
                return self.a(x)
            def forward(self, x):
                return R(self.b(x))
        """,
    )


def test_a_method_that_is_named_like_experts_is_judged_by_its_body(tmp_path: Path) -> None:
    assert not one(
        tmp_path,
        """
        class Block:
            def forward_experts(self, x):
                return x
            def run_experts(self, x):
                return self.shared_mlp(x)
            def forward(self, x):
                return R(self.run_experts(x))
        """,
    )


# --- what callers pass


def test_a_reduction_in_a_helper_method_is_judged_by_what_it_is_passed(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        block="""
        class Block:
            def finish(self, y):
                return R(y)
            def other(self, z):
                return R(z)
            def forward(self, x):
                self.other(x)
                return self.finish(self.experts(x))
        """,
    )
    assert found == {"block.Block.finish": True, "block.Block.other": False}


def test_arguments_are_bound_by_the_order_of_the_callee(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        block="""
        class Block:
            def first(self, a, b):
                return R(a)
            def second(self, a, b):
                return R(b)
            def third(self, a, b):
                return R(a)
            def forward(self, x):
                y = self.experts(x)
                return self.first(y, x), self.second(y, x), self.third(b=x, a=y)
        """,
    )
    assert found == {"block.Block.first": True, "block.Block.second": False, "block.Block.third": True}


def test_a_module_level_function_is_judged_by_what_it_is_passed(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        tools="""
        # sums for moe blocks
        def finish(y):
            return R(y)
        def finish_attention(y):
            return R(y)
        """,
        block="""
        from .tools import finish, finish_attention
        class Block:
            def forward(self, x):
                return finish(self.experts(x)), tensor_model_parallel_all_reduce(finish_attention(self.o_proj(x)))
        """,
    )
    assert found["tools.finish"] is True
    assert found["tools.finish_attention"] is False


def test_a_module_level_function_that_runs_the_experts_is_followed(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        tools="def run(layer, x):\n    return layer.experts(x)\n",
        block="""
        from .tools import run as _run
        class Block:  # moe
            def forward(self, x):
                return R(_run(self, x))
        """,
    )
    assert found == {"block.Block.forward": True}


def test_a_function_that_is_called_under_another_name_is_judged_by_what_it_is_passed(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        tools="# sums for moe blocks\ndef finish(y):\n    return R(y)\n",
        block="""
        from .tools import finish as done
        class Block:
            def forward(self, x):
                return done(self.experts(x))
        """,
    )
    assert found == {"tools.finish": True}


def test_a_function_that_takes_the_layer_is_followed(tmp_path: Path) -> None:
    assert one(
        tmp_path,
        """
        def forward_block(layer, x):
            y = layer.mlp.experts(x)
            return R(y)
        """,
    )


# --- classes


def test_a_method_of_a_base_class_in_another_file_is_followed(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        base="""
        class Base:
            def core(self, x):
                return self.experts(x)
        """,
        block="""
        from .base import Base
        class Block(Base):  # moe
            def forward(self, x):
                return R(self.core(x))
        """,
    )
    assert found == {"block.Block.forward": True}


def test_a_reduction_in_a_base_class_is_judged_by_what_a_subclass_passes(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        base="""
        class Base:  # moe
            def finish(self, y):
                return R(y)
        """,
        block="""
        from .base import Base
        class Block(Base):
            def forward(self, x):
                return self.finish(self.experts(x))
        """,
    )
    assert found == {"base.Base.finish": True}


def test_super_is_followed(tmp_path: Path) -> None:
    assert judged(
        tmp_path,
        base="class Base:\n    def forward(self, x):\n        return self.experts(x)\n",
        block="""
        from .base import Base
        class Block(Base):  # moe
            def forward(self, x):
                return R(super().forward(x))
        """,
    ) == {"block.Block.forward": True}


def test_an_override_hides_the_method_of_the_base(tmp_path: Path) -> None:
    assert not one(
        tmp_path,
        """
        class Base:
            def core(self, x):
                return self.experts(x)
        class Block(Base):
            def core(self, x):
                return self.shared_mlp(x)
            def forward(self, x):
                return R(self.core(x))
        """,
    )


def test_an_attribute_that_is_built_as_experts_runs_the_experts(tmp_path: Path) -> None:
    assert one(
        tmp_path,
        """
        class Block:
            def __init__(self, config):
                self.layer = get_moe_impl_class(config)(config.n)
            def forward(self, x):
                return R(self.layer(x))
        """,
    )


def test_the_expert_class_itself_sums_the_experts_output(tmp_path: Path) -> None:
    assert one(
        tmp_path,
        """
        class FusedMoE:
            def forward(self, x):
                y = self.quant_method.apply(self, x)
                return R(y)
        """,
    )


def test_a_class_derived_from_the_expert_class_does_too(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        base="class FusedMoE:\n    pass\n",
        block="""
        from .base import FusedMoE
        class Special(FusedMoE):
            def forward(self, x):
                y = self.quant_method.apply(self, x)
                return R(y)
        """,
    )
    assert found == {"block.Special.forward": True}


def test_any_other_class_with_a_quant_method_does_not(tmp_path: Path) -> None:
    assert not one(
        tmp_path,
        """
        class Dense:  # stands beside the experts
            def forward(self, x):
                y = self.quant_method.apply(self, x)
                return R(y)
        """,
    )


def test_a_block_in_another_file_is_followed_into_its_forward(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        block="class Block:\n    def forward(self, x):\n        return self.experts(x)\n",
        layer="""
        from .block import Block
        class Layer:  # moe
            def __init__(self):
                self.mlp = Block()
            def forward(self, x):
                return R(self.mlp(x))
        """,
    )
    assert found == {"layer.Layer.forward": True}


def test_a_block_is_judged_by_what_the_layer_around_it_passes(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        block="class Sum:  # moe\n    def forward(self, y):\n        return R(y)\n",
        layer="""
        from .block import Sum
        class Layer:
            def __init__(self):
                self.finish = Sum()
            def forward(self, x):
                return self.finish(self.experts(x))
        """,
    )
    assert found == {"block.Sum.forward": True}


# --- traps


@pytest.mark.parametrize(
    ("names", "built", "wanted"),
    [
        ("from .tail import Tail", "Tail", True),
        ("from .tail import Tail as End", "End", True),
        ("from .tail import Tail\nclass Longer(Tail):\n    pass", "Longer", True),
        ("class Other:\n    def reduce_tail(self, x):\n        return x", "Other", False),
    ],
)
def test_a_method_is_judged_by_what_the_owner_of_its_object_passes(
    tmp_path: Path, names: str, built: str, wanted: bool
) -> None:
    found = judged(
        tmp_path,
        tail="""
        # behind the experts
        class Tail:
            def reduce_tail(self, x):
                return R(x)
        """,
        names=names,
        block=f"""
        from .names import {built}
        class Block:
            def __init__(self):
                self.experts = FusedMoE()
                self.tail = {built}()
            def forward(self, x):
                # self.tail.reduce_tail(self.experts(x))
                return self.tail.reduce_tail(self.experts(x))
        """,
    )
    assert found["tail.Tail.reduce_tail"] is wanted


def test_dense_mlps_in_a_list_are_not(tmp_path: Path) -> None:
    assert not one(
        tmp_path,
        """
        class Mlp:
            def forward(self, x):
                return self.down_proj(x)
        class Layer:  # moe
            def __init__(self):
                self.mlps = ModuleList([Mlp(), Mlp()])
                self.moe = Block()
            def forward(self, x):
                for i in range(2):
                    x = R(self.mlps[i](x))
                return x
        class Block:
            def forward(self, x):
                return self.experts(x)
        """,
    )


LAYER = """
class Block:
    def forward(self, x):
        return self.experts(x)
class Mlp:
    def forward(self, x):
        return self.down_proj(x)
class Layer:
    def __init__(self, config):
        self.is_layer_sparse = config.sparse
        if self.is_layer_sparse:
            self.mlp = Block()
        else:
            self.mlp = Mlp()
    def forward(self, x):
        x = self.mlp(x)
        if {condition}:
            x = R(x)
        return x
"""


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ("not self.is_layer_sparse", False),
        ("not self.is_layer_sparse and self.tp_size > 1", False),
        ("self.is_layer_sparse", True),
        ("self.tp_size > 1", True),
    ],
)
def test_a_decoder_site_is_dense_only_where_the_layer_is_not_sparse(
    tmp_path: Path, condition: str, wanted: bool
) -> None:
    assert one(tmp_path, LAYER.format(condition=condition)) is wanted


def test_a_decoder_site_after_an_early_return_of_the_sparse_layer_is_dense(tmp_path: Path) -> None:
    text = LAYER.replace(
        "if {condition}:\n            x = R(x)", "if self.is_layer_sparse:\n            return x\n        x = R(x)"
    )
    assert not one(tmp_path, text)


def test_an_attention_reduction_beside_experts_is_not(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        model="""
        class Attention:
            def forward(self, x):
                y = self.o_proj(x)
                return R(y)
        class Block:
            def forward(self, x):
                return R(self.experts(x))
        class Layer:
            def __init__(self):
                self.self_attn = Attention()
                self.mlp = Block()
            def forward(self, x):
                return self.mlp(self.self_attn(x))
        """,
    )
    assert found == {"model.Attention.forward": False, "model.Block.forward": True}


def test_an_attention_that_follows_the_experts_is_not(tmp_path: Path) -> None:
    assert not one(
        tmp_path,
        """
        class Attention:
            def forward(self, x):
                return R(x)
        class Layer:
            def __init__(self):
                self.self_attn = Attention()
            def forward(self, x):
                return self.self_attn(self.experts(x))
        """,
    )


def test_the_body_of_a_collective_is_no_site_of_its_own(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        tools="def moe_all_reduce(y):\n    return R(y)\n",
        block="""
        from .tools import moe_all_reduce
        class Block:
            def forward(self, x):
                return moe_all_reduce(self.experts(x))
        """,
    )
    assert found == {"tools.moe_all_reduce": False, "block.Block.forward": True}


def test_wrappers_are_post_experts_whatever_they_are_given(tmp_path: Path) -> None:
    assert judged(tmp_path, block="def moe(x):\n    return reduce_moe_output(x)\n") == {"block.moe": True}


def test_both_reductions_of_a_pair_are_post_experts(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        block="""
        class Block:
            def forward(self, x):
                y = self.experts(x)
                if self.ep_size > 1:
                    y = moe_expert_parallel_all_reduce(y)
                if self.tp_size > 1:
                    y = moe_tensor_model_parallel_all_reduce(y)
                return y
        """,
    )
    assert found == {"block.Block.forward": True, "block.Block.forward'": True}


def test_sibling_forwards_are_judged_one_by_one(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        block="""
        class Block:
            def forward_normal(self, x):
                return R(self.experts(x))
            def forward_dense(self, x):
                return R(self.shared_mlp(x))
        """,
    )
    assert found == {"block.Block.forward_normal": True, "block.Block.forward_dense": False}


# --- reductions that do not sum, functions chosen at run time, pairs


@pytest.mark.parametrize("op", ["torch.distributed.ReduceOp.MAX", "ReduceOp.MIN", "dist.ReduceOp.PRODUCT"])
def test_a_reduction_that_does_not_sum_is_not_post_experts(tmp_path: Path, op: str) -> None:
    text = f"""
        class Block:
            def forward(self, x):
                y = self.experts(x)
                torch.distributed.all_reduce(y, op={op}, group=tp_group)
                return y
        """
    assert not one(tmp_path, text)
    assert one(tmp_path, text.replace(op, "torch.distributed.ReduceOp.SUM"))


def test_every_method_that_a_local_may_hold_is_followed(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        block="""
        class Block:
            def forward(self, x):
                if self.small:
                    tail = self._a
                elif self.medium:
                    tail = self._b
                else:
                    tail = self._c
                return tail(self.experts(x))
            def _a(self, x):
                return R(x)
            def _b(self, x):
                return R(x)
            def _c(self, x):
                return R(x)
            def _d(self, x):
                return R(x)
        """,
    )
    assert found == {"block.Block._a": True, "block.Block._b": True, "block.Block._c": True, "block.Block._d": False}


def test_a_cast_is_what_it_casts(tmp_path: Path) -> None:
    assert one(
        tmp_path,
        """
        class Block:
            def forward(self, x):
                shared, y = cast(tuple, self.experts(x))
                return R(y)
        """,
    )


@pytest.mark.parametrize("name", ["dp_reduce_scatter_tensor", "reduce_scatterv"])
def test_the_body_of_a_reduce_scatter_is_no_site_of_its_own(tmp_path: Path, name: str) -> None:
    text = f"""
        def {name}(output, x):
            output.copy_(R(x))

        class Block:
            def forward(self, x):
                {name}(x, self.experts(x))
        """
    assert not one(tmp_path, text)
    assert one(tmp_path, text.replace(name, "finish"))


# --- functions inside a function, and functions that are handed over

RUNS = {
    "a-function-inside": "def routed():\n    return self.experts(x)\ny = routed()",
    "with-a-parameter": "def routed(z):\n    return self.experts(z)\ny = routed(x)",
    "handed-over": "def routed():\n    return self.experts(x)\ndef shared():\n    return self.shared_experts(x)\n"
    "a, b = side_by_side(routed, shared)\ny = a + b",
    "lambda-handed-over": "y, _ = side_by_side(lambda: self.experts(x), lambda: self.shared_experts(x))",
    "held-by-a-local": "run = lambda: self.experts(x)\ny = run()",
    "handed-over-to-a-function-that-is-known": "def routed():\n    return self.experts(x)\ny = then(routed)",
}
RUNS_NOTHING = {
    "attention-handed-over": "z = self.experts(x)\ny = side_by_side(lambda: self.self_attn(z))",
    "shared-experts-handed-over": "z = self.experts(x)\ny = side_by_side(lambda: self.shared_experts(x))",
    "only-made": "def routed():\n    return self.experts(x)\nself.later = routed\ny = x * 2",
    "a-key": "y = self.pick(x, key=lambda one: self.experts(one))",
}


@pytest.mark.parametrize(
    ("body", "is_post_experts"),
    [*((body, True) for body in RUNS.values()), *((body, False) for body in RUNS_NOTHING.values())],
    ids=[*RUNS, *RUNS_NOTHING],
)
def test_what_a_function_inside_another_returns_is_followed(tmp_path: Path, body: str, is_post_experts: bool) -> None:
    text = "class Block:\n    def forward(self, x):\n" + indent(body + "\nreturn R(y)\n", " " * 8)
    text += "\n\ndef then(run):\n    return run()\n"
    assert one(tmp_path, text) is is_post_experts
