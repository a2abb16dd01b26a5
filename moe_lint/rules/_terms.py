"""Terms of a sum over the ranks: which of them count once although every rank holds them whole."""

from __future__ import annotations

import ast
import re

from moe_lint.facts.conduct import Addition
from moe_lint.formula import Atom, Formula, atom_set, implies
from moe_lint.profile import Profile

#: `self.tp_rank == 0`, `get_tensor_model_parallel_rank() == 0`, `group.is_first_rank`
_ONE_RANK = re.compile(r"^(?:.*rank(?:\(\))? == 0|.*\bis_first_rank)$")


def counts_once(addition: Addition, profile: Profile) -> bool:
    """Whether a term that is whole on every rank counts once in their sum: divided by their number, or on one rank."""
    return is_divided(addition.term, profile) or on_one_rank(addition.condition)


def is_divided(term: str, profile: Profile) -> bool:
    """Whether a term is divided by the size of a group."""
    for node in ast.walk(ast.parse(term, mode="eval")):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            if profile.is_size(ast.unparse(node.right)):
                return True
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            if node.func.attr in ("div", "div_") and profile.is_size(ast.unparse(node.args[0])):
                return True
    return False


def on_one_rank(condition: Formula) -> bool:
    """Whether a condition holds on the first rank of a group only."""
    return any(implies(condition, Atom(name)) for name in atom_set(condition) if _ONE_RANK.match(name))
