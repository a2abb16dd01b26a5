"""Conditions become formulas: one name for one question, whatever its spelling."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from textwrap import dedent

import pytest

from moe_lint.expressions import FormulaBuilder, NotBoolean, Resolver, boolean_body, dotted, inline, is_condition
from moe_lint.formula import FALSE, TRUE, And, Atom, Formula, Not, Or, atom_set, table
from moe_lint.profile import load_profile

PROFILE = load_profile("sglang")
FUSION = Atom("should_allreduce_fusion")
SCATTER = Atom("use_reduce_scatter")


def expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def build(
    text: str,
    local: Mapping[str, str] | None = None,
    aliases: Mapping[str, str] | None = None,
    modules: frozenset[str] = frozenset(),
) -> Formula:
    values = {name: expression(value) for name, value in (local or {}).items()}
    resolver = Resolver(values.get, aliases or {}, modules, PROFILE)
    return FormulaBuilder(PROFILE).build(resolver.resolve(expression(text)))


def equivalent(one: Formula, other: Formula) -> bool:
    """Whether two formulas have the same atoms and the same truth table."""
    names = sorted(atom_set(one) | atom_set(other))
    return atom_set(one) == atom_set(other) and table(one, names) == table(other, names)


# --- sizes


@pytest.mark.parametrize(
    "text",
    [
        "self.tp_size > 1",
        "1 < self.tp_size",
        "self.tp_size >= 2",
        "2 <= self.tp_size",
        "self.tp_size != 1",
        "1 != self.tp_size",
        "not self.tp_size == 1",
        "not 1 == self.tp_size",
        "not self.tp_size <= 1",
        "not self.tp_size < 2",
        "not (1 >= self.tp_size)",
        "bool(self.tp_size > 1)",
        "(self.tp_size > 1) is True",
        "(self.tp_size > 1) == True",
        "(self.tp_size > 1) is not False",
        "(self.tp_size > 1) != False",
    ],
)
def test_every_spelling_of_more_than_one_rank_is_one_atom(text: str) -> None:
    assert build(text) == Atom("self.tp_size > 1")


@pytest.mark.parametrize(
    "text", ["self.ep_size == 1", "1 == self.ep_size", "self.ep_size <= 1", "self.ep_size < 2", "2 > self.ep_size"]
)
def test_every_spelling_of_one_rank_is_the_negation(text: str) -> None:
    assert build(text) == Not(Atom("self.ep_size > 1"))


@pytest.mark.parametrize("text", ["self.tp_size >= 1", "self.tp_size > 0", "0 < self.tp_size", "1 <= self.tp_size"])
def test_a_group_always_has_a_rank(text: str) -> None:
    assert build(text) == TRUE
    assert build(f"not ({text})") == FALSE


@pytest.mark.parametrize("text", ["self.tp_size < 1", "self.tp_size <= 0"])
def test_a_group_is_never_empty(text: str) -> None:
    assert build(text) == FALSE


@pytest.mark.parametrize(
    ("text", "atom"),
    [
        ("get_tensor_model_parallel_world_size() > 1", "get_tensor_model_parallel_world_size() > 1"),
        ("get_tensor_model_parallel_world_size() != 1", "get_tensor_model_parallel_world_size() > 1"),
        ("get_parallel().tp_size >= 2", "get_parallel().tp_size > 1"),
        ("moe_ep_size != 1", "moe_ep_size > 1"),
    ],
)
def test_sizes_are_told_by_their_last_name(text: str, atom: str) -> None:
    assert build(text) == Atom(atom)


def test_larger_bounds_stay_apart() -> None:
    assert build("self.tp_size > 4") == build("self.tp_size >= 5") == Atom("self.tp_size > 4")
    assert build("self.tp_size == 4") == Atom("self.tp_size == 4")
    assert build("self.tp_size != 4") == Not(Atom("self.tp_size == 4"))


def test_other_integers_keep_their_zero_and_may_be_negative() -> None:
    assert build("count >= 1") == Atom("count > 0")
    assert build("count < 1") == Not(Atom("count > 0"))
    assert build("count != 1") == Not(Atom("count == 1"))
    assert build("x.shape[0] > 0") == Atom("x.shape[0] > 0")


def test_a_chain_of_comparisons_is_a_conjunction() -> None:
    assert build("1 < self.tp_size <= 8") == And((Atom("self.tp_size > 1"), Not(Atom("self.tp_size > 8"))))


def test_a_size_against_a_size_is_one_atom_in_both_orders() -> None:
    assert build("self.tp_size == self.ep_size") == build("self.ep_size == self.tp_size")
    assert build("self.tp_size != self.ep_size") == Not(build("self.tp_size == self.ep_size"))


# --- logic


def test_and_or_not_are_taken_apart() -> None:
    assert build("a and not (b or c)") == And((Atom("a"), Not(Or((Atom("b"), Atom("c"))))))


def test_a_ternary_is_a_choice() -> None:
    a, b, c = Atom("a"), Atom("b"), Atom("c")
    assert equivalent(build("b if a else c"), Or((And((a, b)), And((Not(a), c)))))


def test_a_ternary_with_constant_branches_folds() -> None:
    assert build("True if a else False") == Atom("a")
    assert build("False if a else True") == Not(Atom("a"))


@pytest.mark.parametrize(("text", "wanted"), [("True", TRUE), ("False", FALSE), ("None", FALSE)])
def test_constants_are_constants(text: str, wanted: Formula) -> None:
    assert build(text) == wanted


def test_bool_of_a_condition_is_the_condition() -> None:
    assert build("bool(a and not b)") == build("a and not b")
    assert build("bool()") == Atom("bool()")


def test_all_and_any_of_a_display_are_taken_apart() -> None:
    assert build("all([a, not b])") == build("all((a, not b))") == And((Atom("a"), Not(Atom("b"))))
    assert build("any((a, b))") == build("any([a, b])") == Or((Atom("a"), Atom("b")))
    assert build("all([])") == TRUE
    assert build("any(())") == FALSE


def test_all_of_a_generator_stays_an_atom() -> None:
    assert build("all(x for x in xs)") == Atom("all((x for x in xs))")


@pytest.mark.parametrize("text", ["getattr(self, 'fused')", "getattr(self, 'fused', False)", "self.fused"])
def test_getattr_with_a_literal_name_is_attribute_access(text: str) -> None:
    assert build(text) == Atom("self.fused")


def test_getattr_of_a_flag_is_the_flag() -> None:
    assert build("getattr(batch, 'fuse_mlp_allreduce', False)") == FUSION


@pytest.mark.parametrize("text", ["getattr(self, name)", "getattr(self, 'no name')"])
def test_getattr_with_any_other_name_stays_an_atom(text: str) -> None:
    assert build(text) == Atom(text)


# --- membership and identity


@pytest.mark.parametrize("display", ["('x', 'y')", "['x', 'y']", "{'x', 'y'}"])
def test_membership_in_a_display_is_a_disjunction(display: str) -> None:
    found = Or((Atom("mode == 'x'"), Atom("mode == 'y'")))
    assert build(f"mode in {display}") == found
    assert build(f"mode not in {display}") == Not(found)


def test_membership_in_a_display_means_the_same_as_the_comparisons() -> None:
    assert build("mode in (Mode.A, Mode.B)") == build("mode == Mode.A or mode == Mode.B")


def test_membership_of_a_literal_means_the_same_as_the_comparisons() -> None:
    assert build("mode in ('x', 'y')") == build("mode == 'x' or mode == 'y'")


def test_membership_of_integers_means_the_same_as_the_comparisons() -> None:
    assert build("count in (2, 3)") == build("count == 2 or count == 3")
    assert build("self.tp_size in (1,)") == build("self.tp_size == 1")


def test_membership_in_a_name_stays_an_atom() -> None:
    assert build("mode in modes") == Atom("mode in modes")
    assert build("mode not in modes") == Not(Atom("mode in modes"))


@pytest.mark.parametrize("text", ["x is None", "x == None", "not x is not None", "None == x"])
def test_absence_is_one_atom(text: str) -> None:
    assert build(text) == Atom("x is None")


@pytest.mark.parametrize("text", ["x is not None", "x != None", "not x is None", "None != x"])
def test_presence_is_the_negation_of_absence(text: str) -> None:
    assert build(text) == Not(Atom("x is None"))


@pytest.mark.parametrize("text", ["None is x", "not (None is not x)"])
def test_identity_with_none_is_read_from_both_sides(text: str) -> None:
    assert build(text) == Atom("x is None")


@pytest.mark.parametrize("text", ["x is True", "x == True", "x is not False", "x != False", "True == x"])
def test_identity_with_true_is_the_condition(text: str) -> None:
    assert build(text) == Atom("x")


@pytest.mark.parametrize("text", ["x is False", "x == False", "x is not True", "x != True", "False == x"])
def test_identity_with_false_is_the_negation(text: str) -> None:
    assert build(text) == Not(Atom("x"))


def test_identity_of_objects_is_an_atom() -> None:
    assert build("a is b") == Atom("a is b")
    assert build("a is not b") == Not(Atom("a is b"))


def test_equality_reads_the_same_in_both_orders() -> None:
    assert build("b == a") == build("a == b") == Atom("a == b")
    assert build("b != a") == Not(Atom("a == b"))


def test_an_equality_with_a_string_reads_the_same_in_both_orders() -> None:
    assert build("'x' == mode") == build("mode == 'x'")


def test_a_call_is_an_atom_named_by_its_normalised_text() -> None:
    assert build("f( x,y = 1 )") == Atom("f(x, y=1)")


# --- names


@pytest.mark.parametrize(
    "text",
    [
        "should_allreduce_fusion",
        "fuse_mlp_allreduce",
        "can_fuse_mlp_allreduce",
        "batch.should_allreduce_fusion",
        "self.fuse_mlp_allreduce",
    ],
)
def test_every_spelling_of_a_flag_is_the_flag(text: str) -> None:
    assert build(text) == FUSION


def test_a_flag_is_not_replaced_by_what_was_assigned_to_it() -> None:
    assert build("not use_reduce_scatter", {"use_reduce_scatter": "compute(x)"}) == Not(SCATTER)


def test_an_alias_of_a_flag_through_a_local_is_the_flag() -> None:
    assert build("deferred", {"deferred": "batch.mlp_reduce_scatter"}) == SCATTER


def test_a_local_stands_for_its_condition() -> None:
    assert build("multi and not fused", {"multi": "self.tp_size != 1", "fused": "a or b"}) == And(
        (Atom("self.tp_size > 1"), Not(Or((Atom("a"), Atom("b")))))
    )


def test_a_local_inside_a_call_is_replaced_in_its_text() -> None:
    assert build("f(x, key=y)", {"x": "a.b", "y": "c"}) == Atom("f(a.b, key=c)")


def test_an_import_alias_is_replaced_by_the_imported_name() -> None:
    aliases = {"_backend": "get_moe_a2a_backend"}
    assert build("_backend().is_none()", aliases=aliases) == Atom("get_moe_a2a_backend().is_none()")


def test_access_through_a_module_is_the_bare_name() -> None:
    assert build("moe.utils.skip()", modules=frozenset({"moe.utils"})) == Atom("skip()")
    assert build("moe.skip()", modules=frozenset({"moe"})) == Atom("skip()")
    assert build("moe.skip()") == Atom("moe.skip()")


def test_an_attribute_stands_for_its_condition() -> None:
    assert build("not self.skips", {"self.skips": "a or b"}) == Not(Or((Atom("a"), Atom("b"))))


def test_an_attribute_that_names_a_size_stays_that_size() -> None:
    assert build("self.tp_size > 1", {"self.tp_size": "self.moe_tp_size"}) == Atom("self.tp_size > 1")


def test_attributes_that_stand_for_each_other_come_to_an_end() -> None:
    values = {"self.a": "f(self.b)", "self.b": "g(self.a)"}
    assert build("self.a", values) == Atom("f(g(self.a))")


def test_resolving_leaves_the_given_tree_as_it_was() -> None:
    node = expression("f(x, [y, z], k=x) and x")
    before = ast.dump(node)
    resolver = Resolver({"x": expression("a")}.get, {}, frozenset(), PROFILE)
    assert ast.unparse(resolver.resolve(node)) == "f(a, [y, z], k=a) and a"
    assert ast.dump(node) == before


def test_resolving_returns_the_same_node_when_nothing_changes() -> None:
    node = expression("f(x) and self.y[0]")
    assert Resolver(lambda name: None, {}, frozenset(), PROFILE).resolve(node) is node


@pytest.mark.parametrize("text", ["'x'", "lambda x: x", "f'{x}'"])
def test_strings_and_lambdas_are_not_looked_into(text: str) -> None:
    node = expression(text)
    assert Resolver({"x": expression("a")}.get, {}, frozenset(), PROFILE).resolve(node) is node


# --- dotted names and conditions


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a", "a"),
        ("a.b.c", "a.b.c"),
        ("self.layers[i].mlp", "self.layers.mlp"),
        ("super().forward", "super().forward"),
        ("f().x", None),
        ("super(A, self).forward", None),
        ("1", None),
    ],
)
def test_a_dotted_name_is_a_chain_of_attributes_of_a_name(text: str, name: str | None) -> None:
    assert dotted(expression(text)) == name


@pytest.mark.parametrize(
    "text",
    ["a and b", "a > 1", "not a", "True", "None", "f(x)", "x.f().g()", "a", "a.b", "a[0]", "a if c else b"],
)
def test_conditions_questions_and_names_may_stand_for_themselves(text: str) -> None:
    assert is_condition(expression(text))


@pytest.mark.parametrize("text", ["1", "'x'", "-a", "a + b", "[a]", "(a, b)", "1 if c else 2", "lambda: a", "f()()"])
def test_other_values_may_not(text: str) -> None:
    assert not is_condition(expression(text))


def test_a_condition_that_is_too_long_keeps_its_name() -> None:
    assert not is_condition(expression(" or ".join(f"x{i}" for i in range(60))))


# --- boolean functions


def body_of(text: str) -> Formula:
    builder = FormulaBuilder(PROFILE)
    statements = ast.parse(dedent(text)).body
    return boolean_body(statements, lambda node, local: builder.build(inline(node, local)))


def test_the_value_of_a_function_is_what_it_returns() -> None:
    assert body_of("return a and not b") == And((Atom("a"), Not(Atom("b"))))


def test_early_returns_are_choices() -> None:
    found = body_of(
        """
        if a:
            return True
        if b:
            return False
        return c
        """
    )
    assert equivalent(found, Or((Atom("a"), And((Not(Atom("b")), Atom("c"))))))


def test_branches_meet_again_after_an_if() -> None:
    found = body_of(
        """
        if a:
            x = b
        elif c:
            return True
        else:
            x = d
        return x
        """
    )
    a, b, c, d = (Atom(name) for name in "abcd")
    assert equivalent(found, Or((And((a, b)), And((Not(a), Or((c, d)))))))


def test_a_local_may_be_built_up_step_by_step() -> None:
    assert body_of("x = a\nx = x or b\nreturn not x") == Not(Or((Atom("a"), Atom("b"))))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = a\nx |= b\nreturn x", Or((Atom("a"), Atom("b")))),
        ("x: bool = a\nx &= b\nreturn x", And((Atom("a"), Atom("b")))),
        ("x = False\nif a:\n    x = True\nx |= b\nreturn x", Or((Atom("a"), Atom("b")))),
        ("x = a\nreturn x | b", Or((Atom("a"), Atom("b")))),
    ],
)
def test_truth_values_may_be_joined_bit_by_bit(text: str, found: Formula) -> None:
    assert equivalent(body_of(text), found)


def test_an_annotated_local_counts_as_a_local() -> None:
    assert body_of("x: bool = a or b\nreturn x") == Or((Atom("a"), Atom("b")))


@pytest.mark.parametrize("text", ["pass", "return", "return None", "'''only a docstring'''"])
def test_a_function_that_returns_nothing_is_false(text: str) -> None:
    assert body_of(text) == FALSE


def test_a_branch_that_falls_off_the_end_is_false() -> None:
    assert body_of("if a:\n    return True") == Atom("a")


@pytest.mark.parametrize(
    "line",
    [
        "'''a docstring'''",
        "from x import y",
        "import x",
        "pass",
        "assert x",
        "global x",
        "del x",
        "del x, y",
        "logger.debug('x')",
        "logging.info('x')",
        "warnings.warn('x')",
    ],
)
def test_harmless_statements_are_passed_over(line: str) -> None:
    assert body_of(f"{line}\nreturn a") == Atom("a")


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("pass\nfor x in xs:\n    return x", 2, "`for x in xs:` is neither `if`, `return` nor an assignment"),
        ("while a:\n    pass", 1, "`while a:` is neither `if`, `return` nor an assignment"),
        ("with a:\n    return b", 1, "`with a:` is neither `if`, `return` nor an assignment"),
        ("try:\n    return a\nexcept E:\n    return b", 1, "`try:` is neither `if`, `return` nor an assignment"),
        ("raise E", 1, "`raise E` is neither `if`, `return` nor an assignment"),
        ("x += 1\nreturn x", 1, "`x += 1` is neither `if`, `return` nor an assignment"),
        ("x |= a\nreturn x", 1, "`x |= a` changes what is no local of it"),
        ("return a ^ b", 1, "`return a ^ b` does not return a truth value"),
        ("return a & b", 1, "`return a & b` does not return a truth value"),
        ("f(x)\nreturn a", 1, "`f(x)` is neither `if`, `return` nor an assignment"),
        ("del x[0]", 1, "`del x[0]` is neither `if`, `return` nor an assignment"),
        ("x = y = a\nreturn x", 1, "`x = y = a` is not a plain local"),
        ("x, y = a\nreturn x", 1, " = a` is not a plain local"),  # `(x, y)` before Python 3.11
        ("self.x = a\nreturn a", 1, "`self.x = a` is not a plain local"),
        ("x[0] = a\nreturn a", 1, "`x[0] = a` is not a plain local"),
        ("x: bool\nreturn a", 1, "`x: bool` is not a plain local"),
        ("return 1", 1, "`return 1` does not return a truth value"),
        ("return 'yes'", 1, "`return 'yes'` does not return a truth value"),
        ("return (a, b)", 1, "`return (a, b)` does not return a truth value"),
        ("return [a]", 1, "`return [a]` does not return a truth value"),
        ("return a + b", 1, "`return a + b` does not return a truth value"),
        ("return -a", 1, "`return -a` does not return a truth value"),
        ("return lambda: a", 1, ": a` does not return a truth value"),
        ("return f'{a}'", 1, "does not return a truth value"),
        ("if a:\n    return b\nelse:\n    return 2", 4, "`return 2` does not return a truth value"),
        ("if a:\n    yield b", 2, "`yield b` is neither `if`, `return` nor an assignment"),
    ],
)
def test_any_other_body_is_not_boolean_and_says_where(text: str, line: int, what: str) -> None:
    with pytest.raises(NotBoolean) as caught:
        body_of(text)
    assert caught.value.line == line
    assert what in caught.value.what
    assert str(caught.value) == caught.value.what


def test_inlining_leaves_the_given_tree_as_it_was() -> None:
    node = expression("x and f(x)")
    before = ast.dump(node)
    assert ast.unparse(inline(node, {"x": expression("a.b")})) == "a.b and f(a.b)"
    assert ast.dump(node) == before


def test_inlining_nothing_returns_the_node() -> None:
    node = expression("x and y")
    assert inline(node, {}) is node
    assert inline(node, {"z": expression("a")}) is node
