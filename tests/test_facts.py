"""What one file says: guards and operands of its reductions, read from small snippets."""

from __future__ import annotations

import ast
from textwrap import dedent, indent

import pytest

from moe_lint.expressions import NotBoolean
from moe_lint.facts import (
    NOTHING,
    Argument,
    CallResult,
    Experts,
    FileFacts,
    FunctionFacts,
    Origins,
    Param,
    RawSite,
    group_axis,
    is_reduction_name,
)
from moe_lint.facts.definitions import _body
from moe_lint.facts.state import FileState, decoded, encoded
from moe_lint.formula import FALSE, TRUE, And, Atom, Formula, Not, Or, atom_set, conj, table
from moe_lint.model import Span
from moe_lint.profile import load_profile
from moe_lint.source import Lines, SourceError

PROFILE = load_profile("sglang")
A, B, C = (Atom(name) for name in ("self.a", "self.b", "self.c"))
REDUCE = "tensor_model_parallel_all_reduce"
FUSION = Atom("should_allreduce_fusion")
TP = Atom("self.tp_size > 1")


def facts(text: str) -> FileFacts:
    source = dedent(text)
    return FileFacts("f.py", Lines(source), PROFILE)


def method(body: str, head: str = "", params: str = "self, x") -> FunctionFacts:
    """The facts of a method with this body (`R` is short for the TP all-reduce)."""
    text = f"{dedent(head)}\nclass Block:\n    def forward({params}):\n{indent(dedent(body), ' ' * 8)}\n"
    return facts(text.replace("R(", f"{REDUCE}(")).function("Block.forward")


def sites(body: str, head: str = "", params: str = "self, x") -> tuple[RawSite, ...]:
    return method(body, head, params).sites


def site(body: str, head: str = "", params: str = "self, x") -> RawSite:
    (found,) = sites(body, head, params)
    return found


def guard(raw: RawSite) -> Formula:
    return conj(part.formula for part in raw.guard)


def equivalent(one: Formula, other: Formula) -> bool:
    names = sorted(atom_set(one) | atom_set(other))
    return table(one, names) == table(other, names)


def check(body: str, *wanted: Formula, head: str = "", params: str = "self, x") -> None:
    """The sites of a method, in order, are reached exactly when ``wanted`` says."""
    found = [guard(raw) for raw in sites(body, head, params)]
    assert len(found) == len(wanted)
    for reached, condition in zip(found, wanted, strict=True):
        assert equivalent(reached, condition), f"{reached}  is not  {condition}"


def leaves(origins: Origins) -> set[str]:
    """The names at the bottom of a history: parameters as `name`, callees as `name()` (`name()!`: the experts)."""
    found: set[str] = set()
    for origin in origins:
        if isinstance(origin, Param):
            found.add(origin.name)
        elif isinstance(origin, Experts):
            found.add(f"{origin.via}()!")
        else:
            found.add(f"{origin.callee}(){'!' if origin.named_experts else ''}")
            found |= leaves(origin.inputs)
    return found


def operand(body: str, params: str = "self, x") -> set[str]:
    """Where the operand of the last reduction of a method comes from."""
    return leaves(sites(body, params=params)[-1].origins)


# --- guards: if, else, early exits


def test_a_bare_reduction_has_no_guard() -> None:
    assert site("x = R(x)").guard == ()


def test_nested_ifs_are_conjoined() -> None:
    check("if self.a:\n    if self.b:\n        x = R(x)", And((A, B)))


def test_else_arms_negate_every_condition_above() -> None:
    body = """
        if self.a:
            x = R(x)
        elif self.b:
            x = R(x)
        else:
            x = R(x)
        x = R(x)
    """
    check(body, A, And((Not(A), B)), And((Not(A), Not(B))), TRUE)


def test_an_early_return_negates_its_condition() -> None:
    check("if self.a:\n    return x\nx = R(x)", Not(A))


@pytest.mark.parametrize("exit_", ["return x", "raise ValueError"])
def test_every_way_to_leave_counts_as_an_early_exit(exit_: str) -> None:
    check(f"if self.a:\n    {exit_}\nx = R(x)", Not(A))


def test_an_else_that_returns_keeps_the_condition() -> None:
    check("if self.a:\n    y = x\nelse:\n    return x\nx = R(x)", A)


def test_early_returns_add_up() -> None:
    check("if self.a:\n    return x\nif self.b:\n    return x\nx = R(x)", And((Not(A), Not(B))))


def test_a_nested_early_return_holds_under_both_conditions() -> None:
    check("if self.a:\n    if self.b:\n        return x\n    y = x\nx = R(x)", Not(And((A, B))))


def test_nested_early_returns_in_both_arms() -> None:
    body = """
        if self.a:
            if self.b:
                return x
        else:
            if self.c:
                return x
        x = R(x)
    """
    check(body, Or((And((A, Not(B))), And((Not(A), Not(C))))))


def test_an_early_return_three_levels_down() -> None:
    body = """
        if self.a:
            if self.b:
                if self.c:
                    return x
        x = R(x)
    """
    check(body, Not(And((A, B, C))))


def test_an_early_return_inside_the_arm_that_does_not_leave_the_other_does() -> None:
    body = """
        if self.a:
            return x
        else:
            if self.b:
                return x
        x = R(x)
    """
    check(body, And((Not(A), Not(B))))


def test_a_return_in_both_arms_ends_the_function() -> None:
    assert sites("if self.a:\n    return x\nelse:\n    return x\nx = R(x)") == ()


def test_code_after_a_return_is_never_reached() -> None:
    assert sites("return x\nx = R(x)") == ()


def test_a_guard_ends_with_its_block() -> None:
    check("if self.a:\n    y = x\nx = R(x)", TRUE)


def test_an_early_return_does_not_reach_back() -> None:
    check("x = R(x)\nif self.a:\n    return x", TRUE)


# --- guards: expressions


def test_a_ternary_guards_its_branches() -> None:
    check("x = R(x) if self.a else x", A)
    check("x = x if self.a else R(x)", Not(A))


def test_nested_ternaries_are_conjoined() -> None:
    check("x = x if self.a else (R(x) if self.b else x)", And((Not(A), B)))


def test_the_test_of_a_ternary_is_not_guarded_by_it() -> None:
    check("x = x if R(x) else x", TRUE)


def test_and_reaches_its_later_operands_when_the_earlier_ones_hold() -> None:
    check("self.a and self.b and R(x)", And((A, B)))


def test_or_reaches_its_later_operands_when_the_earlier_ones_do_not() -> None:
    check("self.a or self.b or R(x)", And((Not(A), Not(B))))


def test_the_operand_of_another_call_is_found() -> None:
    found = site("return self.scale(R(x), 1)")
    assert (found.collective, found.shape, found.operand) == (REDUCE, "other", "x")


@pytest.mark.parametrize("statement", ["x = self.norm(R(x))", "return self.input_layernorm(R(x) + x, 1)"])
def test_a_sum_that_a_norm_takes_on_the_spot_is_consumed(statement: str) -> None:
    found = site(statement)
    assert (found.shape, found.target) == ("consumed", None)


def test_a_sum_after_a_norm_is_not_consumed() -> None:
    assert [s.shape for s in sites("self.norm(x)\nx = R(x)\nx = R(self.norm(x))")] == ["assign", "assign"]


# --- guards: names


def test_a_local_stands_for_its_condition() -> None:
    check("skip = self.a or self.b\ny = x\nif not skip:\n    x = R(x)", Not(Or((A, B))))


def test_a_local_of_locals_is_resolved() -> None:
    check("one = self.a\ntwo = one and self.b\nif two:\n    x = R(x)", And((A, B)))


def test_a_local_is_what_it_was_when_the_condition_was_computed() -> None:
    check("one = self.a\ntwo = not one\none = self.b\nif two:\n    x = R(x)", Not(A))


def test_a_local_that_is_assigned_again_is_its_last_value() -> None:
    check("skip = self.a\nskip = self.b\nif skip:\n    x = R(x)", B)


def test_a_local_that_is_assigned_in_both_arms_is_a_choice() -> None:
    body = "if self.a:\n    skip = self.b\nelse:\n    skip = self.c\nif skip:\n    x = R(x)"
    check(body, Or((And((A, B)), And((Not(A), C)))))


def test_a_local_that_is_assigned_in_one_arm_is_a_choice() -> None:
    body = "skip = self.c\nif self.a:\n    skip = self.b\nif skip:\n    x = R(x)"
    check(body, Or((And((A, B)), And((Not(A), C)))))


def test_a_local_with_constants_in_its_arms_is_the_condition() -> None:
    check("run = False\nif self.a:\n    run = True\nif run:\n    x = R(x)", A)


def test_a_local_that_refers_to_itself_keeps_what_it_was() -> None:
    check("run = self.a\nrun = run and self.b\nif run:\n    x = R(x)", And((A, B)))


def test_a_local_that_a_loop_changes_is_not_taken_for_its_first_value() -> None:
    found = guard(site("run = self.a\nfor y in x:\n    run = self.f(y)\nif run:\n    x = R(x)"))
    assert not equivalent(found, A)


def test_a_local_that_a_loop_changes_is_unknown_inside_the_loop() -> None:
    found = guard(site("run = self.a\nfor y in x:\n    if run:\n        y = R(y)\n    run = self.b"))
    assert not equivalent(found, A)


def test_an_augmented_local_is_not_taken_for_its_first_value() -> None:
    found = guard(site("run = self.a\nrun |= self.b\nif run:\n    x = R(x)"))
    assert not equivalent(found, A)


def test_a_walrus_binds_its_name_for_what_follows() -> None:
    check("self.log(skip := self.a)\nif not skip:\n    x = R(x)", Not(A))


def test_a_walrus_is_an_assignment() -> None:
    check("if (skip := self.a) and self.b:\n    return x\nif not skip:\n    x = R(x)", Not(A))


def test_locals_that_are_assigned_together_keep_their_own_values() -> None:
    check("one, two = self.a, self.b\nif one and not two:\n    x = R(x)", And((A, Not(B))))


def test_a_flag_parameter_is_the_flag() -> None:
    found = site("if not fuse_mlp_allreduce:\n    x = R(x)", params="self, x, fuse_mlp_allreduce=False")
    assert guard(found) == Not(FUSION)
    assert found.flags == ("fuse_mlp_allreduce",)


def test_a_flag_that_is_a_local_counts_as_a_flag_in_scope() -> None:
    assert site("use_reduce_scatter = self.ask()\nx = R(x)").flags == ("use_reduce_scatter",)


def test_a_property_stands_for_its_condition() -> None:
    found = facts(
        f"""
        from functools import cached_property
        class Block:
            @property
            def skips(self):
                '''When to skip.'''
                return self.a or self.b
            @cached_property
            def many(self):
                return self.tp_size > 1
            def forward(self, x):
                if self.many and not self.skips:
                    x = {REDUCE}(x)
                return x
        """
    ).function("Block.forward")
    assert equivalent(guard(found.sites[0]), And((TP, Not(Or((A, B))))))


def attribute_guard(text: str) -> Formula:
    """The guard of `if self.run: reduce` in a class with these other methods."""
    source = "class Block:\n" + indent(dedent(text), "    ")
    source += f"\n    def forward(self, x):\n        if self.run:\n            x = {REDUCE}(x)\n"
    return guard(facts(source).function("Block.forward").sites[0])


def test_an_attribute_that_is_assigned_once_stands_for_its_condition() -> None:
    assert attribute_guard("def __init__(self):\n    self.run = self.a and not self.b") == And((A, Not(B)))


def test_an_attribute_of_attributes_is_resolved() -> None:
    assert attribute_guard("def __init__(self):\n    self.half = self.a\n    self.run = not self.half") == Not(A)


@pytest.mark.parametrize(
    "text",
    [
        "def __init__(self):\n    self.run = self.a\n    self.run = self.b",
        "def __init__(self):\n    self.run = self.a\ndef reset(self):\n    self.run = False",
        "def __init__(self):\n    if self.b:\n        self.run = self.a",
        "def __init__(self, config):\n    self.run = config.run",
        "def __init__(self):\n    flag = ask()\n    self.run = flag",
        "def __init__(self):\n    self.run, self.x = self.a, 1",
        "def __init__(self):\n    self.run = self.a\n    self.run |= self.b",
        "def __init__(self):\n    self.x = 1",
        "def run(self):\n    return self.a",
        "@property\ndef run(self):\n    y = self.a\n    y = log(y)\n    return y",
    ],
)
def test_any_other_attribute_stays_an_atom(text: str) -> None:
    assert attribute_guard(text) == Atom("self.run")


def test_an_attribute_of_a_base_class_stays_an_atom() -> None:
    found = facts(
        f"""
        class Base:
            def __init__(self):
                self.run = self.a
        class Block(Base):
            def forward(self, x):
                if self.run:
                    x = {REDUCE}(x)
        """
    )
    assert guard(found.function("Block.forward").sites[0]) == Atom("self.run")


# --- guards: imports


@pytest.mark.parametrize(
    "head",
    [
        "from engine.moe import get_moe_a2a_backend",
        "from engine.moe import get_moe_a2a_backend as _backend",
        "import engine.moe as moe",
        "import engine.moe",
        "from engine import moe",
    ],
)
def test_a_question_has_one_name_however_it_is_imported(head: str) -> None:
    name = head.rsplit(" ", 1)[-1]
    name = name if "backend" in name else f"{name}.get_moe_a2a_backend"
    check(f"if {name}().is_none():\n    x = R(x)", Atom("get_moe_a2a_backend().is_none()"), head=head)


def test_a_function_local_import_alias_is_resolved() -> None:
    body = "from engine.moe import get_moe_a2a_backend as _b\nif _b().is_none():\n    x = R(x)"
    check(body, Atom("get_moe_a2a_backend().is_none()"))


def test_an_aliased_collective_is_the_collective() -> None:
    found = site("x = reduce(x)", head=f"from engine.distributed import {REDUCE} as reduce")
    assert (found.callee, found.collective, found.axis) == (REDUCE, REDUCE, "TP")


def test_a_collective_that_a_local_stands_for_is_the_collective() -> None:
    assert site(f"reduce = {REDUCE}\nx = reduce(x)").collective == REDUCE


def test_an_alias_with_two_meanings_is_not_resolved() -> None:
    head = "if npu:\n    from engine import skip_npu as skip\nelse:\n    from engine import skip"
    check("if skip():\n    x = R(x)", Atom("skip()"), head=head)


def test_relative_imports_keep_their_dots() -> None:
    found = facts("from ..layers import moe as m\nfrom . import utils\nimport a.b as c\nimport d.e\n").imports
    assert found == {"m": ("..layers", "moe"), "utils": (".", "utils"), "c": ("a.b", None), "d": ("d", None)}


# --- guards: other statements


def test_a_loop_is_no_guard_and_its_site_is_found_once() -> None:
    check("for y in x:\n    if self.a:\n        y = R(y)", A)


def test_a_while_guards_its_body_and_not_what_follows() -> None:
    check("while self.a:\n    x = R(x)\nx = R(x)", A, TRUE)


def test_a_continue_is_an_early_exit_of_the_rest_of_the_body() -> None:
    check("for y in x:\n    if self.a:\n        continue\n    y = R(y)\nx = R(x)", Not(A), TRUE)


def test_a_with_block_is_no_guard() -> None:
    check("with self.lock as l:\n    x = R(x)", TRUE)


def test_an_early_return_in_a_with_block_holds_after_it() -> None:
    check("with self.lock:\n    if self.a:\n        return x\nx = R(x)", Not(A))


def test_a_with_block_that_returns_ends_the_function() -> None:
    assert sites("with self.lock:\n    return x\nx = R(x)") == ()


def test_a_try_is_no_guard_for_its_body() -> None:
    check("try:\n    x = R(x)\nfinally:\n    self.done()", TRUE)


def test_an_early_return_in_a_try_holds_after_it() -> None:
    check("try:\n    if self.a:\n        return x\nexcept ValueError:\n    raise\nx = R(x)", Not(A))


def test_sites_in_handlers_else_and_finally_are_found() -> None:
    body = """
        try:
            y = x
        except ValueError:
            x = R(x)
        else:
            x = R(x)
        finally:
            x = R(x)
    """
    assert len(sites(body)) == 3


def test_a_handler_that_falls_through_keeps_the_function_going() -> None:
    assert len(sites("try:\n    return x\nexcept ValueError:\n    pass\nx = R(x)")) == 1


def test_a_return_in_finally_ends_the_function() -> None:
    assert sites("try:\n    y = x\nfinally:\n    return x\nx = R(x)") == ()


def test_a_case_guards_its_body() -> None:
    found = sites("match self.mode:\n    case 'sum':\n        x = R(x)\n    case _:\n        x = R(x)\nx = R(x)")
    assert guard(found[0]) == Atom("self.mode == 'sum'")
    assert guard(found[2]) == TRUE


def test_a_guarded_case_needs_its_condition() -> None:
    found = site("match self.mode:\n    case 'sum' if self.a:\n        x = R(x)")
    assert equivalent(guard(found), And((Atom("self.mode == 'sum'"), A)))


def test_a_case_that_returns_holds_back_the_rest() -> None:
    found = site("match self.mode:\n    case 'sum':\n        return x\nx = R(x)")
    assert equivalent(guard(found), Not(Atom("self.mode == 'sum'")))


def test_a_lambda_in_init_is_read() -> None:
    found = facts(
        f"""
        class Block:
            def __init__(self):
                if self.a:
                    self.reduce = lambda y: {REDUCE}(y) if self.b else y
        """
    ).function("Block.__init__")
    (raw,) = found.sites
    assert raw.function == "Block.__init__.<lambda>"
    assert raw.class_name == "Block"
    assert equivalent(guard(raw), And((A, B)))
    assert raw.origins == {Param("y")}


def test_a_class_in_a_function_is_read() -> None:
    found = facts(
        f"""
        def patch(block):
            class Patched:
                def __init__(self):
                    self.run = self.a
                def forward(self, x):
                    if self.run:
                        x = {REDUCE}(x)
                    return x
            block.__class__ = Patched
        """
    )
    assert set(found.classes) == {"patch.Patched"}
    assert found.classes["patch.Patched"].methods == {"__init__", "forward"}
    (raw,) = found.function("patch.Patched.forward").sites
    assert (raw.class_name, guard(raw)) == ("patch.Patched", A)


def test_a_function_in_a_function_sees_the_tensors_around_it() -> None:
    found = facts(
        f"""
        class Block:
            def forward(self, x):
                y = self.experts(x)
                def finish():
                    return {REDUCE}(y)
                return finish()
        """
    )
    (raw,) = found.function("Block.forward.finish").sites
    assert leaves(raw.origins) == {"self.experts()!", "x"}
    assert found.function("Block.forward").sites == ()


def test_an_async_method_is_read() -> None:
    found = facts(f"class Block:\n    async def forward(self, x):\n        return await self.f({REDUCE}(x))\n")
    assert len(found.function("Block.forward").sites) == 1


# --- guard parts


def test_the_parts_of_a_guard_say_what_they_are() -> None:
    body = """
        if self.a:
            return x
        if self.b:
            pass
        else:
            y = R(x) if self.c else x
    """
    parts = [(p.text, p.polarity, p.kind) for p in site(body).guard]
    assert parts == [("self.a", False, "early-exit"), ("self.b", False, "else"), ("self.c", True, "ternary")]


def test_the_operands_of_a_condition_are_listed() -> None:
    (part,) = site("if self.tp_size > 1 and not (self.a or self.b):\n    x = R(x)").guard
    assert part.operands == (("self.tp_size > 1", TP), ("not (self.a or self.b)", Not(Or((A, B)))))


def test_the_operands_of_a_condition_that_must_be_false_are_those_of_the_or() -> None:
    (part,) = site("if self.a or self.b:\n    return x\nx = R(x)").guard
    assert part.operands == (("self.a", Not(A)), ("self.b", Not(B)))


def test_a_local_that_only_the_test_reads_is_the_carrier() -> None:
    raw = site("run = self.a and self.b\nif run:\n    x = R(x)")
    (part,) = raw.guard
    assert part.text == "run"
    assert [text for text, _ in part.operands] == ["self.a", "self.b"]
    assert part.carrier is not None
    assert part.carrier.line == part.span.line - 1


def test_a_local_that_is_read_twice_is_no_carrier() -> None:
    (part,) = site("run = self.a and self.b\nself.log(run)\nif run:\n    x = R(x)").guard
    assert part.carrier is None
    assert part.operands == (("run", And((A, B))),)


@pytest.mark.parametrize(
    ("body", "alone"),
    [
        ("if self.a:\n    x = R(x)\nreturn x", True),
        ("if self.a:\n    y = x\n    x = R(x)", False),
        ("if self.a:\n    x = R(x)\nelse:\n    y = x", False),
        ("if self.a:\n    pass\nelse:\n    x = R(x)", True),
        ("if self.a:\n    if self.b:\n        x = R(x)", True),
        ("if self.a:\n    if self.b:\n        x = R(x)\n    else:\n        y = x", False),
        ("if self.a:\n    if y := self.b:\n        x = R(x)", False),
        ("if self.a:\n    with self.b:\n        x = R(x)", False),
        ("if self.a:\n    x = R(x) + self.y", False),
        ("if self.a:\n    return R(x)\nreturn x", True),
        ("if self.a:\n    return R(x)\nreturn self.y(x)", False),
        ("if self.a:\n    return R(x)\nelse:\n    return x", True),
        ("if self.a:\n    return x\nx = R(x)\nreturn x", True),
        ("if self.a:\n    return x\nx = R(x)\nx = self.y(x)\nreturn x", False),
        ("if self.a:\n    return x\nreturn R(x)", True),
        ("if self.a:\n    return\nR(x)", True),
        ("y = x\nif self.a:\n    y = R(x)\nreturn y", True),
        ("if self.a:\n    y = R(x)\nreturn y", False),
        ("x = R(x) if self.a else x", True),
        ("x = R(x) if self.a else self.y(x)", False),
        ("for x in self.b:\n    if self.a:\n        x = R(x)", True),
        ("for x in self.b:\n    if self.a:\n        continue\n    x = R(x)", False),
    ],
)
def test_a_condition_guards_a_reduction_alone_if_both_ways_do_the_same_without_it(body: str, alone: bool) -> None:
    text = f"class Block:\n    def forward(self, x):\n{indent(body, ' ' * 8)}\n".replace("R(", f"{REDUCE}(")
    read = facts(text)
    (raw,) = read.function("Block.forward").sites
    assert read.only_guards("Block.forward", raw.span, raw.guard[0].span) is alone


# --- sites


@pytest.mark.parametrize(
    ("statement", "shape", "target"),
    [
        ("x = R(x)", "assign", "x"),
        ("self.y = R(x)", "assign", "self.y"),
        ("return R(x)", "return", None),
        ("x = y = R(x)", "other", None),
        ("x[0] = R(x)", "other", None),
        ("R(x)", "other", None),
        ("x = R(x) + 1", "other", None),
        ("return x, R(x)", "other", None),
    ],
)
def test_a_site_knows_how_it_stands_in_its_statement(statement: str, shape: str, target: str | None) -> None:
    found = site(statement)
    assert (found.shape, found.target) == (shape, target)


def test_the_span_of_a_call_over_several_lines_counts_characters() -> None:
    text = f"def f(x):\n    é = 'üü'; x = {REDUCE}(\n        x,\n    )\n"
    (raw,) = facts(text).function("f").sites
    assert raw.span == Span(2, 19, 4, 6)
    assert raw.statement == Span(2, 15, 4, 6)


@pytest.mark.parametrize(
    ("call", "axis"),
    [
        ("tensor_model_parallel_all_reduce(x)", "TP"),
        ("moe_tensor_model_parallel_all_reduce(x)", "TP"),
        ("moe_expert_parallel_all_reduce(x)", "EP"),
        ("attn_tp_all_reduce(x)", "other"),
        ("get_tp_group().all_reduce(x)", "TP"),
        ("get_moe_ep_group().all_reduce(x)", "EP"),
        ("get_attention_tp_group().all_reduce(x)", "other"),
        ("torch.distributed.all_reduce(x, group=get_tp_group().device_group)", "TP"),
        ("torch.distributed.all_reduce(x, group=self.ep_group)", "EP"),
        ("torch.distributed.all_reduce(x)", "other"),
        ("expert_parallel_allreduce(x)", "EP"),
        ("reduce_moe_output(x)", "TP"),
    ],
)
def test_the_axis_of_a_reduction_is_told_by_its_name_or_its_group(call: str, axis: str) -> None:
    assert site(f"y = {call}").axis == axis


@pytest.mark.parametrize(
    "name",
    [
        "all_reduce",
        "allreduce",
        "tensor_model_parallel_all_reduce",
        "symm_mem_all_reduce",
        "all_reduce_",
        "_all_reduce",
    ],
)
def test_names_of_reductions(name: str) -> None:
    assert is_reduction_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "CustomAllReduceV2",
        "_add_all_reduce",
        "should_fuse_mlp_allreduce_with_next_layer",
        "should_skip_post_experts_all_reduce",
        "all_reduce_fusion",
        "register_all_reduce",
        "overall_reduce",
        "reduce",
        "all_gather",
    ],
)
def test_names_that_merely_contain_the_word(name: str) -> None:
    assert not is_reduction_name(name)


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("get_tp_group()", "TP"),
        ("self.tensor_parallel_group", "TP"),
        ("get_moe_ep_group()", "EP"),
        ("expert_group", "EP"),
        ("get_attn_tp_group()", "other"),
        ("get_pp_group()", "other"),
        ("group", "other"),
        ("step_group", "other"),
        ("self._shared_expert_tp_group", "TP"),
        ("self.experts.tp_group", "TP"),
        ("expert_tp_group", "TP"),
        ("shared_expert_group", "other"),
    ],
)
def test_the_axis_of_a_group_is_a_word_in_its_name(text: str, axis: str) -> None:
    assert group_axis(text) == axis


def test_reductions_are_found_wherever_an_expression_may_stand() -> None:
    body = """
        assert R(x)
        y = [R(x), {R(x): R(x)}]
        z = [y for y in R(x)]
        self.f(*R(x), k=R(x))
        w = f"{R(x)}"
    """
    assert len(sites(body)) == 8


def test_a_reduction_in_the_element_of_a_comprehension_is_found_once() -> None:
    assert len(sites("z = [R(y) for y in x]")) == 1


# --- operands


def test_a_parameter_comes_from_the_caller() -> None:
    assert operand("x = R(x)") == {"x"}


def test_the_output_of_the_experts_is_named() -> None:
    raw = site("y = self.experts(x)\ny = R(y)")
    assert raw.origins == {CallResult("self.experts", None, frozenset({Param("x")}), named_experts=True)}


@pytest.mark.parametrize(
    "call",
    [
        "self.experts(x)",
        "self.text_experts(x)",
        "self.mlp.experts.forward(x)",
        "layer.experts.run_all(x)",
        "self.experts.apply(x)",
        "fused_moe(x)",
        "fused_experts_impl(x)",
        "torch.ops.engine.fused_experts(x)",
        "self.experts[0](x)",
    ],
)
def test_every_way_to_run_the_experts(call: str) -> None:
    assert any(name.endswith("!") for name in operand(f"y = {call}\ny = R(y)", "self, x, layer"))


@pytest.mark.parametrize(
    "call",
    ["self.shared_experts(x)", "self.mlp(x)", "select_experts(x)", "self.experts.load_weights(x)", "torch.experts(x)"],
)
def test_other_calls_are_not_the_experts(call: str) -> None:
    assert not any(name.endswith("!") for name in operand(f"y = {call}\ny = R(y)"))


@pytest.mark.parametrize(
    "line",
    [
        "y = y + x",
        "y = x + y",
        "y += x",
        "y = y.view(-1)",
        "y = y.mul_(2).to(x.dtype)",
        "y = torch.add(x, y)",
        "y = F.pad(y, (0, 1))",
        "y = -y",
        "y = y[0]",
        "y = y[:, 1:]",
        "y = y if self.a else x",
        "y = (y, x)[0]",
        "y = self.scale * y",
        "z = y\ny = z",
        "y: Tensor = y",
        "(y := y)",
        "if self.a:\n    y = x",
        "if self.a:\n    y = y * 2\nelse:\n    y = x",
        "with self.lock:\n    y = y * 2",
        "try:\n    y = y * 2\nexcept E:\n    y = x",
        "for i in self.n:\n    y = y * 2",
        "while self.a:\n    y = y * 2",
        "y = self.down_proj(y)",
        "y, _ = self.down_proj(y)",
        "y = attach(y)",
    ],
)
def test_the_experts_output_stays_the_experts_output(line: str) -> None:
    assert "self.experts()!" in operand(f"y = self.experts(x)\n{line}\ny = R(y)")


@pytest.mark.parametrize(
    "line",
    [
        "y = x",
        "y = None",
        "y = y.shape",
        "y = y.shape[0]",
        "y = y.dtype",
        "y = y.size(0)",
        "y = y.numel()",
        "y = torch.empty_like(y)",
        "y = y > 0",
        "y = self.norm(y)",
        "y = self.self_attn(y)",
        "y = self.input_layernorm(y)",
        "y = len(y)",
        "if self.a:\n    y = x\nelse:\n    y = None",
    ],
)
def test_what_no_longer_owes_the_sum_is_not_the_experts_output(line: str) -> None:
    assert "self.experts()!" not in operand(f"y = self.experts(x)\n{line}\ny = R(y)")


def test_out_is_an_assignment() -> None:
    assert "self.experts()!" in operand("torch.add(x, self.experts(x), out=x)\ny = R(x)")


def test_out_is_an_assignment_in_an_expression_too() -> None:
    assert "self.experts()!" in operand("z = torch.add(x, self.experts(x), out=x)\ny = R(x)")


def test_adding_in_place_changes_the_receiver() -> None:
    body = (
        "routed = self.experts(x)\nshared = self.shared_mlp(x)\nshared.add_(routed)\nfinal = shared\nfinal = R(final)"
    )
    assert operand(body) >= {"self.experts()!", "self.shared_mlp()"}


def test_adding_in_place_does_not_change_what_is_added() -> None:
    body = "routed = self.experts(x)\nshared = self.shared_mlp(x)\nshared.add_(routed)\nrouted = R(shared * 0)"
    assert "self.experts()!" in operand(body)
    assert operand("y = self.experts(x)\nx.add_(1)\ny = R(x)") == {"x"}


def test_a_masked_store_adds_to_what_is_there() -> None:
    body = "out = self.shared_mlp(x)\nout[mask] = self.experts(x[mask])\nout = R(out)"
    assert operand(body, "self, x, mask") >= {"self.experts()!", "self.shared_mlp()"}


def test_a_masked_augmented_store_adds_to_what_is_there() -> None:
    body = "out = self.shared_mlp(x)\nout[mask] += self.experts(x[mask])\nout = R(out)"
    assert operand(body, "self, x, mask") >= {"self.experts()!", "self.shared_mlp()"}


def test_an_opaque_op_passes_on_what_it_was_given() -> None:
    raw = site("y = torch.ops.engine.custom(x, self.experts(x))\ny = R(y)")
    assert "self.experts()!" in leaves(raw.origins)
    raw = site("y = engine_op(self.experts(x), 1)\ny = R(y)")
    (origin,) = raw.origins
    assert isinstance(origin, CallResult)
    assert (origin.callee, origin.named_experts) == ("engine_op", False)
    assert "self.experts()!" in leaves(origin.inputs)


def test_unpacked_elements_keep_their_positions() -> None:
    raw = site("shared, routed = self.both(x)\ny = R(routed)")
    assert raw.origins == {CallResult("self.both", 1, frozenset({Param("x")}), named_experts=False)}


def test_an_element_of_a_value_that_was_bound_whole_keeps_its_position() -> None:
    raw = site("out = self.both(x)\nshared, routed = out\ny = R(shared)")
    assert raw.origins == {CallResult("self.both", 0, frozenset({Param("x")}), named_experts=False)}


def test_an_indexed_call_is_an_element() -> None:
    raw = site("y = self.both(x)[1]\ny = R(y)")
    assert raw.origins == {CallResult("self.both", 1, frozenset({Param("x")}), named_experts=False)}


def test_a_tuple_is_unpacked_by_position() -> None:
    assert "self.experts()!" not in operand("y, z = x, self.experts(x)\ny = R(y)")
    assert "self.experts()!" in operand("y, z = x, self.experts(x)\ny = R(z)")


def test_names_can_be_swapped() -> None:
    assert "self.experts()!" in operand("y, z = x, self.experts(x)\ny, z = z, y\ny = R(y)")
    assert "self.experts()!" not in operand("y, z = x, self.experts(x)\ny, z = z, y\ny = R(z)")


def test_the_returns_of_a_function_are_listed_element_by_element() -> None:
    found = method("if self.a:\n    return x, self.experts(x)\nreturn self.experts(x)").returns
    assert [len(elements) for elements in found] == [2, 1]
    assert leaves(found[0][0]) == {"x"}
    assert leaves(found[0][1]) == leaves(found[1][0]) == {"self.experts()!", "x"}


def test_a_loop_over_modules_carries_the_tensor_through() -> None:
    assert operand("for layer in self.layers:\n    x = layer(x)\nx = R(x)") >= {"self.layers()", "x"}


def test_a_loop_over_experts_runs_the_experts() -> None:
    body = "out = torch.zeros(1)\nfor e in self.experts:\n    out += e(x)\nout = R(out)"
    assert any(name.endswith("!") for name in operand(body))


def test_a_loop_over_enumerated_experts_runs_the_experts() -> None:
    body = "out = 0\nfor i, e in enumerate(self.experts):\n    out = out + e(x)\nout = R(out)"
    assert any(name.endswith("!") for name in operand(body))


def test_a_loop_over_expert_indices_runs_the_experts() -> None:
    body = "out = 0\nfor i in range(self.n):\n    out = out + self.experts[i](x)\nout = R(out)"
    assert any(name.endswith("!") for name in operand(body))


def test_the_second_pass_of_a_loop_meets_what_the_first_left_behind() -> None:
    assert "self.experts()!" in operand("y = x\nfor i in self.n:\n    x = R(y)\n    y = self.experts(x)")


def test_a_very_long_history_keeps_its_sources() -> None:
    steps = "\n".join(f"y = step{i}(y)" for i in range(60))
    raw = site(f"y = self.experts(x)\n{steps}\ny = R(y)")
    assert "self.experts()!" in leaves(raw.origins)
    assert "x" in leaves(raw.origins)


def test_constants_come_from_nothing() -> None:
    assert site("y = R(1)").origins == NOTHING
    assert site("y = R()").origins == NOTHING


def test_a_reduced_value_is_still_made_from_its_operand() -> None:
    assert "self.experts()!" in operand("y = R(self.experts(x))\ny = moe_expert_parallel_all_reduce(y)")


# --- calls, attributes, headers


def test_a_call_that_hands_on_a_flag_is_kept() -> None:
    found = method(
        "return self.mlp(x, False, fuse_mlp_allreduce, use_reduce_scatter=True)", params="self, x, fuse_mlp_allreduce"
    )
    (call,) = found.calls
    assert call.callee == "self.mlp"
    assert [a.keyword for a in call.arguments] == [None, None, None, "use_reduce_scatter"]
    assert call.arguments[1] == Argument(None, "", False, NOTHING)
    assert call.arguments[2].text == "fuse_mlp_allreduce"
    assert call.arguments[3].literal is True


def test_a_call_that_hands_on_nothing_is_not_kept() -> None:
    assert method("self.log(1)\nreturn x").calls == ()


def test_an_attribute_knows_its_constructors_and_its_condition() -> None:
    found = facts(
        """
        class Layer:
            def __init__(self, config, sparse):
                if sparse:
                    self.mlp = Block(config)
                else:
                    self.mlp = Dense(config) if config.x else wrap(Other(config))
        """
    ).attribute("Layer", "mlp")
    assert [fact.callees for fact in found] == [("Block",), ("Dense", "wrap", "Other")]
    assert [fact.condition for fact in found] == [Atom("sparse"), Not(Atom("sparse"))]


def test_a_class_that_is_passed_by_reference_is_seen_through() -> None:
    found = facts("class L:\n    def __init__(self):\n        kind = Block\n        self.mlp = kind(1)\n")
    assert found.attribute("L", "mlp")[0].callees == ("Block",)


def test_an_attribute_may_be_an_alias() -> None:
    found = facts("class L:\n    def __init__(self):\n        self.run = self.forward_normal\n")
    assert found.attribute("L", "run")[0].alias == "self.forward_normal"


def test_parameters_and_their_defaults_are_listed() -> None:
    found = facts("def f(a, /, b, c=False, *rest, d, e=True, g=3, **more):\n    pass\n")
    assert found.header("f") == (1, ("a", "b", "c", "d", "e", "g"), {"c": False, "e": True, "g": None})
    assert found.keyword_only("f") == {"d", "e", "g"}


def test_the_headers_of_classes_and_functions_are_listed_whatever_they_stand_in() -> None:
    found = facts(
        """
        if x:
            class A(base.B, C[int], f()):
                @property
                def p(self): ...
                def m(self): ...
        else:
            def g(): ...
        try:
            def h(): ...
        except E:
            def i(): ...
        """
    )
    assert set(found.functions) == {"A.p", "A.m", "g", "h", "i"}
    assert found.classes["A"].bases == ("base.B", "C")
    assert found.classes["A"].methods == {"p", "m"}
    assert found.classes["A"].properties == {"p"}


def test_the_innermost_function_and_class_around_a_line_are_found() -> None:
    found = facts("class A:\n    def m(self):\n        def n():\n            pass\n        return n\nx = 1\n")
    assert found.functions_at([2]) == ["A.m"]
    assert found.functions_at([4, 5, 6]) == ["A.m.n", "A.m"]
    assert found.class_at(4) == "A"
    assert found.class_at(6) is None


def test_an_unknown_function_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        facts("x = 1\n").function("f")


# --- predicates


def test_the_condition_of_a_predicate_is_its_value() -> None:
    found = facts(
        """
        import engine.moe as moe
        def skip(*, is_tp_path, fuse_mlp_allreduce=False):
            '''When to skip.'''
            if fuse_mlp_allreduce:
                return True
            return is_tp_path and moe.ask()
        """
    ).condition("skip")
    assert equivalent(found, Or((FUSION, And((Atom("is_tp_path"), Atom("ask()"))))))


def test_a_predicate_that_is_a_method_sees_the_class() -> None:
    found = facts(
        """
        class A:
            def __init__(self):
                self.run = self.a or self.b
            def skip(self):
                return not self.run
        """
    )
    assert found.condition("A.skip") == Not(Or((A, B)))


def test_a_function_that_is_no_predicate_says_so_every_time() -> None:
    found = facts("def skip(x):\n    for y in x:\n        return y\n")
    for _ in range(2):
        with pytest.raises(NotBoolean) as caught:
            found.condition("skip")
        assert caught.value.line == 2


def test_a_body_that_is_too_long_is_no_predicate() -> None:
    body = "\n".join(f"    x{i} = a" for i in range(30))
    with pytest.raises(NotBoolean, match="too long"):
        facts(f"def skip():\n{body}\n    return x1\n").condition("skip")


def test_a_predicate_that_returns_nothing_is_false() -> None:
    assert facts("def skip():\n    pass\n").condition("skip") == FALSE


# --- hand-listed backends


def test_a_hand_written_list_of_backends_is_noted() -> None:
    found = method(
        """
        if get_moe_a2a_backend().is_deepep() or get_moe_a2a_backend().is_mooncake():
            return self.forward_deepep(x)
        return x
        """
    ).backend_tests
    (test,) = found
    assert test.members == {"deepep", "mooncake"}
    assert test.chooses == {"forward_deepep"}


def test_a_negated_list_of_backends_is_noted() -> None:
    body = "if not get_moe_a2a_backend().is_deepep():\n    return x\nreturn self.f(x)"
    assert [t.members for t in method(body).backend_tests] == [{"deepep"}]


def test_a_mixed_condition_is_no_list_of_backends() -> None:
    assert method("if get_moe_a2a_backend().is_deepep() or self.a:\n    return x").backend_tests == ()


# --- blocks


def test_only_the_block_that_a_question_leads_to_is_parsed() -> None:
    found = facts("import a\n\n@wrap\nclass A(B):\n    def m(self):\n        return 1\n\n\ndef broken(:\n")
    assert found.classes["A"].methods == {"m"}
    assert found.header("A.m")[0] == 5


@pytest.mark.parametrize("name", ["m", "broken"])
def test_an_error_in_a_block_is_told_when_the_block_is_needed(name: str) -> None:
    source = "def m():\n    return 1\n\n\ndef broken(:\n"
    found = FileFacts("f.py", Lines(source), PROFILE)
    assert (name in found.functions) is (name == "m")
    found.parse_all()
    assert [f"{error.line}: {error.message}" for error in found.errors] == ["5: syntax error: invalid syntax"]


def test_an_error_at_the_top_level_is_told_at_once() -> None:
    with pytest.raises(SourceError, match="syntax error"):
        facts("def m():\n    return 1\n\n<<<<<<< HEAD\nx = 1\n")


@pytest.mark.parametrize("quote", ['"""', "'''"])
def test_code_in_a_string_at_the_left_margin_is_no_block(quote: str) -> None:
    found = facts(f"S = {quote}\ndef inner():\n    pass\nclass Inner:\n    pass\n{quote}\n\ndef real():\n    pass\n")
    assert (set(found.functions), set(found.classes)) == ({"real"}, set())


def test_a_function_with_a_string_at_the_left_margin_is_read_whole() -> None:
    found = facts(
        'def f(x):\n    s = """\nmargin\n"""\n    y = R(self.experts(x))\n    return y\n'.replace("R", REDUCE)
    )
    assert [site.span.line for site in found.function("f").sites] == [5]


def test_quotes_in_comments_do_not_hide_functions() -> None:
    found = facts('# an odd """ here\ndef f():\n    pass\n\n\ndef g():\n    """Doc."""\n')
    assert set(found.functions) == {"f", "g"}


def test_a_header_over_several_lines_belongs_to_its_block() -> None:
    found = facts("def f(\n    a,\n    b=True,\n):\n    return a\n\n\nX = 1\n")
    assert found.header("f") == (1, ("a", "b"), {"b": True})


def test_a_name_that_is_defined_twice_is_read_from_both_blocks() -> None:
    found = facts("class A:\n    def one(self): pass\n\n\nclass A:\n    def two(self): pass\n")
    assert found.classes["A"].methods == {"two"}


def test_functions_below_a_condition_are_found() -> None:
    found = facts("if x:\n    def f(): pass\nelse:\n    def f(a): pass\n\n    class C:\n        def m(self): pass\n")
    assert (set(found.functions), set(found.classes)) == ({"f", "C.m"}, {"C"})


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("from a.b import c as d", {"d"}),
        ("from a.b import (\n        c,\n        d,\n    )", {"c", "d"}),
        ("import a; from b import c", {"a", "c"}),
        ("if x: from b import c", {"c"}),
        ("from . import \\\n        c", {"c"}),
        ('"""Values to import from a table."""', set()),
        ("x = 'import y'", set()),
        ("# import y", set()),
    ],
)
def test_imports_inside_functions_are_read(statement: str, names: set[str]) -> None:
    assert set(facts(f"def f():\n    {statement}\n").imports) == names


def test_nested_definitions_are_found_by_name() -> None:
    found = facts("def f():\n    class C:\n        def m(self): pass\n\n\nclass D:\n    class C: pass\n")
    assert found.nested("C") == ["f.C", "D.C"]
    assert found.nested("m") == ["f.C.m"]


def test_a_function_inside_a_method_may_ask_what_another_such_method_assigns() -> None:
    text = """
    class Block:
        def __init__(self, group):
            self.together = group.size > 1

            def count():
                return self.together

            self.count = count

        def hook_of(self):
            def hook(x):
                if self.together:
                    x = tensor_model_parallel_all_reduce(x)
                return x

            return hook
    """
    (found,) = facts(text).function("Block.hook_of.hook").sites
    assert found.collective == REDUCE


def test_classes_are_found_by_their_base() -> None:
    found = facts("class A(Base): pass\nclass B(\n    mod.Base,\n    Other,\n): pass\nclass C(Basement): pass\n")
    assert found.classes_deriving("Base") == ["A", "B"]


# --- methods are parsed apart, as the whole file would be

SHAPES = '''\
x = f("\'\'\'")  # \'\'\'

class Outer(
    Base,
):
    """Doc with
    def not_a_method(self): pass
    """

    limit: int = 3

    @property
    def size(self):  # """
        return self._size

    @size.setter
    def size(self, value):
        self._size = value

    @decorated(
        1,
    )
    async def wait(self):
        def inner():
            return 1
        return inner
        # behind

    class Nested:
        def own(self): return 1

    if FLAG:
        def forward(self): return 2

    table = {
        "a": 1,
    }


class OnlyNested:
    class Within:
        def forward(self): return 3
'''


def test_methods_read_apart_are_those_of_the_whole_file() -> None:
    read = facts(SHAPES)
    tree = ast.parse(SHAPES)
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        own = [node for node in cls.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        assert read.classes[cls.name].methods == {node.name for node in own}
        assert read.class_text(cls.name) == "\n".join(SHAPES.split("\n")[cls.lineno - 1 : cls.end_lineno])
        for node in own:
            extents = [(other.lineno, other.end_lineno) for other in own if other.name == node.name]
            assert read.extent(f"{cls.name}.{node.name}") == extents[-1]
    assert read.classes["Outer"].properties == {"size"}
    assert {"Outer.Nested.own", "Outer.forward", "Outer.wait.inner", "OnlyNested.Within.forward"} <= set(read.functions)


def test_a_function_whose_syntax_tree_was_given_up_is_parsed_again() -> None:
    rest = (
        "if True:\n    def conditional(x, y=False):\n        def within(z):\n            return z\n        return x\n"
    )
    kept, given_up = facts(SHAPES + rest), facts(SHAPES + rest)
    names = [*kept.functions]
    assert {"conditional", "conditional.within", "Outer.wait.inner", "Outer.Nested.own"} <= set(names)
    for name in names:
        _body.cache_clear()
        assert given_up.header(name) == kept.header(name)
        assert given_up.keyword_only(name) == kept.keyword_only(name)
        _body.cache_clear()
        assert given_up.function(name) == kept.function(name)
        _body.cache_clear()
        assert given_up.conduct(name).params == kept.header(name)[1]
    assert kept.header("conditional") == (SHAPES.count("\n") + 2, ("x", "y"), {"y": False})


KEPT = (
    SHAPES
    + f"""
from .distributed import {REDUCE} as reduce, helper


class Block(Base):
    def __init__(self, config, quick=False):
        self.experts = FusedMoE(config, reduce_results=quick and not config.slow)
        self.mlp = Mlp(config, deep=config.a and config.b)

    @property
    def several(self):
        return self.tp_size > 1

    def twice(self, x):
        if self.several:
            return 1
        y = 2
        return y

    def forward(self, x, *, use_reduce_scatter: bool = False):
        x = self.experts(x)
        if self.several and not use_reduce_scatter:
            x = reduce(x)
        return self.mlp(x, last=use_reduce_scatter or self.several, size=len(x))
"""
)


def test_what_was_found_out_about_a_text_can_be_kept() -> None:
    fresh, first = FileFacts("f.py", Lines(KEPT), PROFILE), FileFacts("f.py", Lines(KEPT), PROFILE)
    for name in list(first.functions):
        ask(first, name)
    first.confirmed.add(Span(1, 2, 3, 4))
    kept = first.kept()
    assert kept is not None
    again = FileFacts("f.py", Lines(KEPT), PROFILE, kept)
    assert (again.imports, again.aliases, again.modules) == (fresh.imports, fresh.aliases, fresh.modules)
    assert dict(again.classes) == dict(fresh.classes)
    assert list(again.functions) == list(first.functions)
    _body.cache_clear()
    answers = {name: ask(again, name) for name in again.functions}
    assert _body.cache_info().misses == 0  # nothing is parsed
    assert answers == {name: ask(fresh, name) for name in fresh.functions}
    assert again.confirmed == {Span(1, 2, 3, 4)}


TWICE = (
    KEPT
    + """
import os.path
import torch.distributed as dist
from . import parallel


class Block(Base):
    @overload
    def forward(self, x): ...

    def forward(self, x, y=None):
        import inner.part
        def within(z):
            return z
        return within(x)


def Block():
    pass
"""
)


@pytest.mark.parametrize("asked", [[], ["Block.forward"], ["Outer", "Block"], None])
def test_a_state_comes_back_as_it_was_however_much_was_asked(asked: list[str] | None) -> None:
    """Names that occur twice, modules that are imported as a whole, blocks that nobody has asked for."""
    first = FileFacts("f.py", Lines(TWICE), PROFILE)
    for name in list(first.functions) if asked is None else asked:
        if name in first.functions:
            first.function(name)
        else:
            first.functions_in(name)
    state = first._state
    again = decoded(encoded(state), "f.py", lambda name, number: TRUE)
    assert again == state
    assert list(again.unread) == list(state.unread)

    def places(state: FileState) -> list[list[str]]:
        """The definitions that are one and the same."""
        standing: dict[int, list[str]] = {}
        lists = [("apart", state.apart), *state.methods.items(), ("all", list(state.definitions.values()))]
        for name, definitions in lists:
            for position, definition in enumerate(definitions):
                standing.setdefault(id(definition), []).append(f"{name} {position}")
        return list(standing.values())

    assert places(again) == places(state)


def ask(found: FileFacts, name: str) -> object:
    try:
        condition: Formula | str = found.condition(name)
    except NotBoolean as error:
        condition = f"{error.line}: {error}"
    header = (*found.header(name), found.keyword_only(name), found.first_returned(name))
    spans = [call.span for call in found.conduct(name).calls]
    reached = [found.call_condition(name, span) for span in spans]
    sites = found.function(name).sites
    alone = [found.only_guards(name, site.span, part.span) for site in sites for part in site.guard]
    leaving = found.leaving(name, spans[:1], spans)
    return header, found.function(name), found.conduct(name), condition, reached, alone, leaving


def test_a_truth_value_that_was_not_kept_is_worked_out_from_the_text() -> None:
    def truths(found: FileFacts) -> list[Formula | None]:
        calls = found.conduct("Block.forward").calls + found.conduct("Block.__init__").calls
        return [passed.formula for call in calls for passed in call.arguments]

    first = FileFacts("f.py", Lines(KEPT), PROFILE)
    first.conduct("Block.forward")
    first.conduct("Block.__init__")
    kept = first.kept()
    again = FileFacts("f.py", Lines(KEPT), PROFILE, kept)
    assert again.kept() is kept
    assert truths(again) == truths(first)
    assert any(formula is not None for formula in truths(first))
    assert again.kept() is not kept
    third = FileFacts("f.py", Lines(KEPT), PROFILE, again.kept())
    _body.cache_clear()
    assert truths(third) == truths(again)
    assert _body.cache_info().misses == 0


def test_nothing_is_kept_of_a_text_with_an_error() -> None:
    found = facts("def broken(:\n")
    found.parse_all()
    assert found.kept() is None


def test_a_class_behind_quotes_in_a_string_is_found() -> None:
    text = "def f():\n    return g(\"'''\")\n\n\nclass Later:\n    pass\n\n\ndef h():\n    return \"'''\"\n"
    assert "Later" in facts(text).classes


def test_an_error_in_a_method_that_nobody_asks_for_is_told() -> None:
    text = "class Block:\n    def f(self):\n        return 1\n\n    def g(self):\n        return (\n"
    read = FileFacts("x.py", Lines(text), PROFILE)
    assert read.function("Block.f").name == "f"
    assert read.errors == []
    read.parse_all()
    assert [error.line for error in read.errors] == [6]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("self.a = 1", {"a"}),
        ("self.a, b, self.c = f(self.d, x=1)", {"a", "c"}),
        ("self.a[f(1)], self.b = 1, 2", {"a", "b"}),
        ("x = self.a = self.b", {"a"}),
        ("self.a: int", {"a"}),
        ("self.a += 1", {"a"}),
        ("(self.a, self.b) = f((1, 2))", {"a", "b"}),
        ("if x: self.a = 1", {"a"}),
        ("(\n            self.a,\n            self.b,\n        ) = f()", {"a", "b"}),
        ("self.a, \\\n            self.b = 1, 2", {"a", "b"}),
        ("f(self.a, x=1)", set()),
        ("x = self.a", set()),
        ("if self.a == 1: pass", set()),
        ("f(\n            self.a,\n            x=self.b,\n        )", set()),
    ],
)
def test_only_methods_that_may_assign_an_attribute_are_parsed_for_its_value(line: str, names: set[str]) -> None:
    text = f"class Block:\n    def f(self):\n        {line}\n"
    assert {name for name in "abcd" if facts(text)._lines_that_may_assign(name)} == names


# --- what a class hands on


@pytest.mark.parametrize(
    ("statement", "handed_on"),
    [
        ("run(self.part)", True),
        ("run(part=self.part)", True),
        ("run(part=None if c else self.part)", True),
        ("run(part=(self.part if c else None))", True),
        ("run([self.part, c], {'part': c})", True),
        ("run(self.part or c)", True),
        ("part = self.part", True),
        ("part = c and self.part", True),
        ("return self.part", True),
        ("part = lambda: self.part", True),
        ("x = self.part(x)", False),
        ("x = self.part.weight", False),
        ("run(self.part.weight)", False),
        ("run(self.part(x))", False),
        ("run(self.part is None)", False),
        ("run(c if self.part else x)", False),
        ("if self.part and c:\n    pass", False),
        ("while not self.part:\n    pass", False),
        ("assert self.part", False),
        ("run(isinstance(self.part, Part))", False),
        ("self.part = run(x)", False),
        ("run(self.partner, other.part)", False),
    ],
)
def test_a_value_is_handed_on_where_somebody_else_gets_hold_of_it(statement: str, handed_on: bool) -> None:
    read = facts(f"class B:\n    def f(self, x, c):\n{indent(statement, '        ')}")
    assert read.hands_on("B", "part") is handed_on


@pytest.mark.parametrize(
    ("elsewhere", "guard"),
    [
        ("self.model.capture = True", "self.capture"),
        ("model.capture= True", "self.capture"),
        ("if self.model.capture == True: pass", "False"),
        ("self.model.capture.on = True", "False"),
        ("self.model.captured = True", "False"),
    ],
)
def test_an_attribute_that_the_file_also_sets_from_outside_is_not_taken_for_granted(elsewhere: str, guard: str) -> None:
    read = facts(
        "class Model:\n"
        "    def __init__(self):\n        self.capture = False\n"
        "    def forward(self, x):\n        if self.capture:\n            x = tensor_model_parallel_all_reduce(x)\n"
        "class Outer:\n"
        f"    def start(self, model):\n        {elsewhere}\n"
    )
    (found,) = read.function("Model.forward").sites
    assert str(found.guard[0].formula) == guard


def test_a_truth_value_is_the_same_however_many_functions_were_read_since() -> None:
    functions = "".join(
        f"def run_{n}(x, fuse):\n    done = fuse and x.ready\n    call_{n}(x, done)\n" for n in range(60)
    )
    found = facts(functions)
    conducts = [found.conduct(f"run_{n}") for n in range(60)]
    told = [conduct.calls[0].arguments[1].formula for conduct in conducts]
    assert told == [conj((Atom("fuse"), Atom("x.ready")))] * 60


@pytest.mark.parametrize(
    ("call", "group"),
    [
        ("get_moe_tp_group().all_reduce(x)", "get_moe_tp_group"),
        ("parallel.get_moe_tp_group(\n    ).all_reduce(\n        x\n    )", "get_moe_tp_group"),
        ("get_group('tp').all_reduce(x)", None),
        ("self.group.all_reduce(x)", None),
        (f"{REDUCE}(x)", None),
    ],
)
def test_a_reduction_is_known_by_the_function_that_gives_its_group(call: str, group: str | None) -> None:
    found = facts(f"class Block:\n    def forward(self, x):\n        x = self.experts(x)\n        return {call}\n")
    assert [site.group for site in found.function("Block.forward").sites] == [group]
