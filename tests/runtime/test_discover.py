"""Which classes of a model file are MoE blocks, and what is around them."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from reference_runtime.discover import blocks
from reference_runtime.tree import TreeError, find_tree
from tests.runtime.mini import PAIR, engine


def found(tmp_path: Path, text: str) -> list[tuple[str, str | None, bool]]:
    file = tmp_path / "m.py"
    file.write_text(textwrap.dedent(text))
    return [(b.name, b.decoder, b.communicator) for b in blocks("m", file)]


def test_experts_made_by_a_class_a_factory_or_a_local_count(tmp_path: Path) -> None:
    assert found(
        tmp_path,
        """
        class A(Module):
            def __init__(self):
                self.experts = FusedMoE(8)
            def forward(self, x): ...
        class B(Module):
            def __init__(self):
                self.experts = get_moe_impl_class(q)(num_experts=8)
            def forward(self, x): ...
        class C(Module):
            def __init__(self):
                impl = get_moe_impl_class(q)
                self.experts = impl(num_experts=8)
            def forward(self, x): ...
        """,
    ) == [("A", None, False), ("B", None, False), ("C", None, False)]


def test_mentions_of_the_experts_class_elsewhere_do_not(tmp_path: Path) -> None:
    assert (
        found(
            tmp_path,
            """
            class Weights(Module):
                def __init__(self):
                    self.mapping = 1
                def forward(self, x):
                    return FusedMoE.make_expert_params_mapping(x)
            class NoForward(Module):
                def __init__(self):
                    self.experts = FusedMoE(8)
            """,
        )
        == []
    )


def test_the_layer_that_builds_the_block_and_its_communicator_are_named(tmp_path: Path) -> None:
    assert found(
        tmp_path,
        """
        class Moe(Module):
            def __init__(self):
                self.experts = FusedMoE(8)
            def forward(self, x): ...
        class Layer(Module):
            def __init__(self):
                self.self_attn = Attention()
                self.mlp = Moe()
                self.layer_communicator = LayerCommunicator()
        """,
    ) == [("Moe", "Layer", True)]


def test_a_tree_is_found_from_above_from_inside_and_from_a_file(tmp_path: Path) -> None:
    tree = engine(tmp_path / "checkout" / "python", {"pair": PAIR})
    for path in (tmp_path / "checkout", tree, tree / "mini", tree / "mini" / "models" / "pair.py"):
        found_tree = find_tree(path)
        assert (found_tree.root, found_tree.engine) == (tree, "mini")


def test_two_engines_below_one_path_are_refused(tmp_path: Path) -> None:
    engine(tmp_path / "a", {"pair": PAIR})
    engine(tmp_path / "b", {"pair": PAIR})
    with pytest.raises(TreeError, match="more than one engine"):
        find_tree(tmp_path)
