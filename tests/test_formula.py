"""Formulas against brute force: tables, relations, witnesses, substitution, folding."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lint.formula import (
    FALSE,
    MAX_ATOMS,
    TRUE,
    And,
    Atom,
    Formula,
    Not,
    Or,
    Relation,
    State,
    TooManyAtoms,
    assign,
    atom_set,
    atoms,
    choose,
    compare,
    conj,
    disj,
    evaluate,
    exists,
    forall,
    negate,
    satisfiable,
    substitute,
    table,
)

A, B, C = Atom("a"), Atom("b"), Atom("c")
NAMES = ("a", "b", "c", "d")
quick = settings(max_examples=40, deadline=None)


def formulas(names: Sequence[str] = NAMES) -> st.SearchStrategy[Formula]:
    leaf: st.SearchStrategy[Formula] = st.one_of(st.sampled_from(names).map(Atom), st.sampled_from([TRUE, FALSE]))

    def grow(inner: st.SearchStrategy[Formula]) -> st.SearchStrategy[Formula]:
        several = st.lists(inner, max_size=3).map(tuple)
        return st.one_of(inner.map(Not), several.map(And), several.map(Or))

    return st.recursive(leaf, grow, max_leaves=10)


def states(names: Sequence[str]) -> Iterator[dict[str, bool]]:
    for values in product((False, True), repeat=len(names)):
        yield dict(zip(names, values, strict=True))


def value(formula: Formula, state: dict[str, bool]) -> bool:
    """The meaning of a formula, spelled out once more and independently of `evaluate`."""
    match formula:
        case Atom(name):
            return state[name]
        case Not(operand):
            return not value(operand, state)
        case And(operands):
            return not [o for o in operands if not value(o, state)]
        case Or(operands):
            return bool([o for o in operands if value(o, state)])


def same(one: Formula, other: Formula, names: Sequence[str] = NAMES) -> bool:
    return all(value(one, s) == value(other, s) for s in states(names))


# --- evaluation and tables


@quick
@given(formulas())
def test_evaluate_gives_the_value_in_every_state(formula: Formula) -> None:
    for state in states(NAMES):
        assert evaluate(formula, state) is value(formula, state)


@quick
@given(formulas(), st.permutations(NAMES))
def test_bit_i_of_a_table_is_the_value_in_the_state_spelled_by_the_bits_of_i(
    formula: Formula, names: list[str]
) -> None:
    bits = table(formula, names)
    assert 0 <= bits < 1 << (1 << len(names))
    for i in range(1 << len(names)):
        state = {name: bool(i >> position & 1) for position, name in enumerate(names)}
        assert bool(bits >> i & 1) is value(formula, state)


def test_a_table_over_no_names_is_the_constant() -> None:
    assert table(TRUE, ()) == 1
    assert table(FALSE, ()) == 0


def test_a_table_of_one_atom_has_its_upper_half_set() -> None:
    assert table(A, ("a",)) == 0b10
    assert table(A, ("b", "a")) == 0b1100
    assert table(B, ("b", "a")) == 0b1010


def test_a_table_leaves_nothing_that_only_the_garbage_collector_would_free() -> None:
    """It is off while a program runs, and thousands of tables are made."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        table(And((Atom("a"), Not(Or((Atom("b"), Atom("c")))))), ["a", "b", "c"])
        assert gc.collect() == 0
    finally:
        if enabled:
            gc.enable()


def test_a_table_refuses_an_atom_that_is_not_listed() -> None:
    with pytest.raises(KeyError):
        table(A, ("b",))


def test_evaluate_refuses_a_state_that_leaves_an_atom_open() -> None:
    with pytest.raises(KeyError):
        evaluate(A, {"b": True})


@quick
@given(formulas())
def test_satisfiable_is_true_when_some_state_makes_it_true(formula: Formula) -> None:
    assert satisfiable(formula) is any(value(formula, s) for s in states(NAMES))


def test_constants_are_satisfiable_or_not_by_themselves() -> None:
    assert satisfiable(TRUE)
    assert not satisfiable(FALSE)
    assert not satisfiable(And((A, Not(A))))


# --- construction


@quick
@given(st.lists(formulas(), max_size=4))
def test_conj_means_all_of_its_operands(operands: list[Formula]) -> None:
    assert same(conj(operands), And(tuple(operands)))


@quick
@given(st.lists(formulas(), max_size=4))
def test_disj_means_any_of_its_operands(operands: list[Formula]) -> None:
    assert same(disj(operands), Or(tuple(operands)))


@quick
@given(formulas())
def test_negate_flips_the_value_in_every_state(formula: Formula) -> None:
    assert same(negate(formula), Not(formula))


@quick
@given(formulas(), formulas(), formulas())
def test_choose_is_a_conditional(condition: Formula, then: Formula, otherwise: Formula) -> None:
    chosen = choose(condition, then, otherwise)
    for state in states(NAMES):
        branch = then if value(condition, state) else otherwise
        assert value(chosen, state) is value(branch, state)


def test_conj_flattens_and_drops_repetitions_in_order() -> None:
    assert conj([A, conj([B, A]), C]) == And((A, B, C))


def test_disj_flattens_and_drops_repetitions_in_order() -> None:
    assert disj([A, disj([B, A]), C]) == Or((A, B, C))


def test_conj_folds_constants() -> None:
    assert conj([]) == TRUE
    assert conj([A, TRUE]) == A
    assert conj([A, FALSE, B]) == FALSE


def test_disj_folds_constants() -> None:
    assert disj([]) == FALSE
    assert disj([A, FALSE]) == A
    assert disj([A, TRUE, B]) == TRUE


def test_negate_folds_constants_and_double_negations() -> None:
    assert negate(TRUE) == FALSE
    assert negate(FALSE) == TRUE
    assert negate(negate(A)) == A
    assert negate(A) == Not(A)


def test_choose_with_a_constant_condition_is_the_branch() -> None:
    assert choose(TRUE, A, B) == A
    assert choose(FALSE, A, B) == B


# --- atoms


def test_atoms_come_in_order_of_appearance_with_repetitions() -> None:
    formula = And((B, Not(A), Or((A, C))))
    assert list(atoms(formula)) == ["b", "a", "a", "c"]
    assert atom_set(formula) == {"a", "b", "c"}


def test_constants_have_no_atoms() -> None:
    assert atom_set(TRUE) == atom_set(FALSE) == frozenset()


# --- substitution


@quick
@given(formulas(), st.dictionaries(st.sampled_from(NAMES), formulas(("x", "y")), max_size=4))
def test_substitute_evaluates_the_replacements_first(formula: Formula, by: dict[str, Formula]) -> None:
    replaced = substitute(formula, by.get)
    for state in states((*NAMES, "x", "y")):
        inner = {name: value(by[name], state) if name in by else state[name] for name in NAMES}
        assert value(replaced, state) is value(formula, inner)
    assert not atom_set(replaced) & set(by)


@quick
@given(formulas())
def test_substituting_nothing_keeps_the_meaning(formula: Formula) -> None:
    assert same(substitute(formula, lambda name: None), formula)


def test_substitute_is_simultaneous() -> None:
    swap: dict[str, Formula] = {"a": B, "b": A}
    assert substitute(And((A, Not(B))), swap.get) == And((B, Not(A)))


def test_substitute_folds_constants_on_the_way_up() -> None:
    assert assign(And((A, B)), "a", TRUE) == B
    assert assign(And((A, B)), "a", FALSE) == FALSE
    assert assign(Not(Or((A, B))), "b", TRUE) == FALSE


def test_assign_leaves_other_atoms_alone() -> None:
    assert assign(Or((A, B)), "c", TRUE) == Or((A, B))


@quick
@given(formulas(), st.lists(st.sampled_from(NAMES), unique=True))
def test_exists_holds_for_some_values_of_the_atoms_and_forall_for_all(formula: Formula, names: list[str]) -> None:
    some, every = exists(formula, names), forall(formula, names)
    assert not (atom_set(some) | atom_set(every)) & set(names)
    for state in states(NAMES):
        values = [value(formula, state | choice) for choice in states(names)]
        assert (value(some, state), value(every, state)) == (any(values), all(values))


def test_a_formula_does_not_grow_by_the_atoms_that_are_taken_out() -> None:
    pairs = [(Atom(f"a{i}"), Atom(f"b{i}")) for i in range(300)]
    apart = conj([A, *(Not(And(pair)) for pair in pairs)])
    chosen = conj([A, *(Or((And((one, B)), And((Not(one), C)))) for one, _ in pairs)])
    assert exists(apart, sorted(atom_set(apart) - {"a"})) == A
    assert exists(chosen, sorted(atom_set(chosen) - {"a", "b", "c"})) == And((A, Or((B, C))))


def test_a_formula_that_grows_too_long_is_refused() -> None:
    """Each atom stands for and against, and with all others."""
    clauses = [
        Or((Atom(f"a{i}"), Not(Atom(f"a{j}")), Atom(f"b{i}{j}"))) for i in range(20) for j in range(20) if i != j
    ]
    with pytest.raises(TooManyAtoms, match="more than 5000 conditions"):
        exists(conj(clauses), [f"a{i}" for i in range(20)])


# --- texts


def test_a_formula_reads_like_the_python_condition() -> None:
    assert str(And((A, Not(Or((B, C)))))) == "a and not (b or c)"
    assert str(Or((And((A, B)), C))) == "(a and b) or c"
    assert str(Not(A)) == "not a"


def test_constants_read_like_python_constants() -> None:
    assert str(TRUE) == "True"
    assert str(FALSE) == "False"


# --- comparison


def brute_force(reduces: Formula, skips: Formula, feasible: Formula) -> tuple[set[frozenset[str]], set[frozenset[str]]]:
    """The states (as sets of true atoms of the helper) in which the site is over, and in which it is under."""
    shared = sorted(atom_set(skips))
    foreign = sorted((atom_set(reduces) | atom_set(feasible)) - set(shared))
    over: set[frozenset[str]] = set()
    under: set[frozenset[str]] = set()
    for state in states(shared):
        rest = list(states(foreign))
        possible = any(value(feasible, {**state, **more}) for more in rest)
        site = any(value(And((reduces, feasible)), {**state, **more}) for more in rest)
        helper = value(skips, state)
        held = frozenset(name for name, on in state.items() if on)
        if possible and site and helper:
            over.add(held)
        if possible and not site and not helper:
            under.add(held)
    return over, under


def relation_of(over: set[frozenset[str]], under: set[frozenset[str]]) -> Relation:
    if over:
        return Relation.DIFFERENT if under else Relation.WEAKER
    return Relation.STRONGER if under else Relation.EQUAL


def check_witness(witness: State | None, wanted: set[frozenset[str]], skips: Formula) -> None:
    if not wanted:
        assert witness is None
        return
    assert witness is not None
    assert {name for name, _ in witness.values} == atom_set(skips)
    assert list(witness.values) == sorted(witness.values)
    held = frozenset(witness.true())
    assert held in wanted, "the witness does not separate the two"
    assert not any(smaller < held for smaller in wanted), "the witness is not minimal"


@settings(max_examples=150, deadline=None)
@given(formulas(("a", "b", "c", "x", "y")), formulas(("a", "b", "c")), formulas(("a", "b", "c", "z")))
def test_compare_agrees_with_brute_force(reduces: Formula, skips: Formula, feasible: Formula) -> None:
    over, under = brute_force(reduces, skips, feasible)
    found = compare(reduces, skips, feasible)
    assert found.relation is relation_of(over, under)
    check_witness(found.over, over, skips)
    check_witness(found.under, under, skips)


@quick
@given(formulas())
def test_the_negated_helper_is_equal_to_it(skips: Formula) -> None:
    found = compare(Not(skips), skips)
    assert found.relation is Relation.EQUAL
    assert found.over is found.under is None


def test_a_guard_that_forgets_a_reason_is_weaker_and_the_witness_is_that_reason_alone() -> None:
    found = compare(reduces=Not(A), skips=Or((A, B, C)))
    assert found.relation is Relation.WEAKER
    assert found.under is None
    assert found.over is not None
    assert found.over.values in (
        (("a", False), ("b", True), ("c", False)),
        (("a", False), ("b", False), ("c", True)),
    )
    assert len(found.over.true()) == 1


def test_a_guard_with_a_reason_negated_twice_is_stronger() -> None:
    found = compare(reduces=FALSE, skips=A)
    assert found.relation is Relation.STRONGER
    assert found.over is None
    assert found.under == State((("a", False),))


def test_a_guard_with_the_opposite_reason_is_different() -> None:
    found = compare(reduces=A, skips=A)
    assert found.relation is Relation.DIFFERENT
    assert found.over == State((("a", True),))
    assert found.under == State((("a", False),))


def test_a_foreign_conjunct_counts_neither_for_nor_against_the_site() -> None:
    foreign = Atom("hidden_states.shape[0] > 0")
    assert compare(And((foreign, Not(A))), A).relation is Relation.EQUAL
    assert compare(foreign, A).relation is Relation.WEAKER


def test_a_difference_in_infeasible_states_only_is_no_difference() -> None:
    exclusive = Not(And((A, B)))
    reduces = And((Or((Not(A), B)), Or((Not(B), A))))  # wrong only when both hold
    assert compare(reduces, Or((A, B))).relation is Relation.WEAKER
    assert compare(reduces, Or((A, B)), exclusive).relation is Relation.EQUAL


def test_a_foreign_atom_that_excludes_a_reason_protects_the_site_from_it() -> None:
    none, alpha = Atom("is_none"), Atom("is_alpha")
    exclusive = Not(And((none, alpha)))
    assert compare(And((none, Not(A))), Or((A, alpha))).relation is Relation.WEAKER
    assert compare(And((none, Not(A))), Or((A, alpha)), exclusive).over is None


def test_a_feasibility_constraint_on_atoms_of_neither_side_does_not_matter() -> None:
    assert compare(Not(A), Or((A, B)), feasible=Atom("z")).relation is Relation.WEAKER


def test_nothing_feasible_means_nothing_to_report() -> None:
    assert compare(A, A, feasible=FALSE).relation is Relation.EQUAL


def test_a_state_lists_the_atoms_that_hold() -> None:
    assert State((("a", False), ("b", True), ("c", True))).true() == ("b", "c")


# --- limits


def many(count: int) -> tuple[Formula, ...]:
    return tuple(Atom(f"p{i:02}") for i in range(count))


def test_as_many_atoms_as_allowed_are_compared() -> None:
    reasons = many(MAX_ATOMS)
    found = compare(And(tuple(Not(r) for r in reasons[1:])), Or(reasons))
    assert found.relation is Relation.WEAKER
    assert found.over is not None
    assert found.over.true() == ("p00",)


def test_one_atom_more_is_refused_with_both_numbers() -> None:
    with pytest.raises(TooManyAtoms, match=rf"{MAX_ATOMS + 1} atoms, at most {MAX_ATOMS}"):
        compare(TRUE, Or(many(MAX_ATOMS + 1)))


def test_conditions_that_have_nothing_in_common_are_not_too_many() -> None:
    names = many(2 * MAX_ATOMS)
    apart = And(tuple(Or((one, other)) for one, other in zip(names[::2], names[1::2], strict=True)))
    assert satisfiable(apart)
    assert not satisfiable(And((*apart.operands, Not(names[0]), Not(names[1]))))


def test_satisfiable_refuses_too_many_atoms() -> None:
    with pytest.raises(TooManyAtoms):
        satisfiable(Or(many(MAX_ATOMS + 1)))


def test_foreign_atoms_do_not_count_towards_the_limit() -> None:
    reduces = And((Not(A), *many(MAX_ATOMS + 5)))
    assert compare(reduces, A).relation is Relation.EQUAL
