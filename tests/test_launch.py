"""Launch configurations: the cheapest options under which a formula holds, and none where it cannot hold."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_lint.formula import FALSE, Atom, Formula, TooManyAtoms, conj, disj, evaluate, negate
from moe_lint.launch import Choice, ExpressionError, Size, Space, Switch
from moe_lint.profile import ProfileError, load_profile

SPACE = Space(
    sizes=(
        Size("tp", ("tp_size", "world_size()"), option="--tp {}"),
        Size("dp", ("dp_size",), option="--dp {}"),
        Size("ep", ("ep_size",), option="--ep {}"),
        Size("moe_tp", ("moe_tp_size",), value="tp // ep"),
    ),
    switches=(
        Switch("dp_attention", ("dp_attention()",), option="--dp-attention", value="dp > 1"),
        Switch("fuse", ("fuse", "*.fuse"), option="--fuse", requires="tp > 1 and not dp_attention"),
        Switch("scatter", ("scatter",), requires="dp > 1", note="in a padded batch"),
    ),
    choices=(Choice("a2a", "backend()", "none", "--a2a {}", ("deepep",)),),
    constraints=("tp % ep == 0", "tp % dp == 0", "a2a == 'none' or ep == tp"),
    groups=(("TP", "tp"), ("EP", "ep"), ("moe_tp_sum", "moe_tp")),
)


def told(formula: Formula, *larger: str) -> str | None:
    found = SPACE.find(formula, larger)
    return None if found is None else str(found)


def test_a_flag_is_told_as_its_option_on_the_smallest_machine_that_has_something_to_sum() -> None:
    assert told(Atom("fuse"), "tp") == "`--tp 2 --fuse`"


def test_what_a_condition_needs_comes_with_it() -> None:
    assert told(Atom("scatter"), "tp") == "`--tp 2 --dp 2 --dp-attention` in a padded batch"


def test_a_size_is_known_by_the_last_part_of_its_text() -> None:
    assert told(Atom("self.config.ep_size > 2")) == "`--tp 4 --ep 4`"
    assert told(Atom("dist.world_size() == 4")) == "`--tp 4`"


def test_two_sizes_are_compared_with_each_other() -> None:
    same = Atom("get().dp_size == get().ep_size")
    assert told(conj((same, Atom("get().dp_size > 1")))) == "`--tp 2 --dp 2 --ep 2 --dp-attention`"


def test_a_derived_size_is_what_the_others_leave() -> None:
    assert told(Atom("self.moe_tp_size > 1"), "ep") == "`--tp 4 --ep 2`"


def test_a_member_of_a_choice_is_told_by_its_name() -> None:
    assert told(Atom("backend().is_deepep()"), "tp") == "`--tp 2 --ep 2 --a2a deepep`"


def test_members_of_one_choice_exclude_one_another() -> None:
    assert told(conj((Atom("backend().is_deepep()"), Atom("backend().is_mori()")))) is None


def test_no_configuration_where_what_one_needs_the_other_forbids() -> None:
    assert told(conj((Atom("fuse"), Atom("scatter"))), "tp") is None


def test_a_condition_that_no_option_sets_is_false_if_it_can_be() -> None:
    assert told(disj((Atom("f(x)"), Atom("fuse"))), "tp") == "`--tp 2 --fuse`"
    assert told(conj((negate(Atom("f(x)")), Atom("fuse"))), "tp") == "`--tp 2 --fuse`"


def test_a_condition_that_no_option_sets_is_told_where_it_must_hold() -> None:
    assert told(conj((Atom("f(x)"), Atom("fuse"))), "tp") == "`--tp 2 --fuse`, where `f(x)` holds"
    assert told(Atom("f(x)")) == "`f(x)` true"


def test_a_contradiction_has_no_configuration() -> None:
    assert told(FALSE) is None


def test_too_many_conditions_are_refused() -> None:
    with pytest.raises(TooManyAtoms):
        SPACE.find(conj(Atom(f"f{i}()") for i in range(21)))


def test_a_group_goes_by_the_collective_and_else_by_the_axis() -> None:
    assert [SPACE.group_of(*key) for key in (("moe_tp_sum", "TP"), ("sum", "EP"), ("sum", "other"))] == [
        "moe_tp",
        "ep",
        None,
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tp %", "'tp %' is not an expression"),
        ("pp > 1", "'pp > 1' names 'pp', which is not declared"),
        ("tp + 1 > 2", "`tp + 1` is more than"),
        ("f(tp)", "names 'f'"),
    ],
)
def test_an_expression_that_is_not_understood_is_named(text: str, message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        Space(sizes=(Size("tp", ("tp_size",)),), constraints=(text,))
    assert message in str(caught.value)


def test_a_name_may_be_declared_once() -> None:
    with pytest.raises(ExpressionError, match="'tp' is declared twice"):
        Space(sizes=(Size("tp", ()),), switches=(Switch("tp", ()),))


@pytest.mark.parametrize(
    ("sizes", "constraints", "message"),
    [
        ((Size("tp", (), (0, 1)),), (), "the size 'tp' has a value below 1"),
        ((Size("a", (), value="b"), Size("b", (), value="1")), (), "'b' is used in a value before it has one itself"),
        ((Size("tp", ()),), ("tp > 'deepep'",), "an expression compares or computes with names that are no numbers"),
    ],
)
def test_what_no_configuration_could_satisfy_is_refused(
    sizes: tuple[Size, ...], constraints: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ExpressionError) as caught:
        Space(sizes=sizes, constraints=constraints)
    assert str(caught.value) == message


def test_a_group_without_ranks_is_no_configuration() -> None:
    space = Space(
        sizes=(
            Size("tp", ("tp_size",), option="--tp {}"),
            Size("ep", ("ep_size",), option="--ep {}"),
            Size("rest", ("rest",), value="tp // ep"),
            Size("per", ("per",), value="tp // rest"),
        )
    )
    assert str(space.find(Atom("per > 1"))) == "`--tp 2 --ep 2`"


# --- the enumeration, against one written out by hand

ATOMS = (
    "tp_size > 1",
    "ep_size > 1",
    "dp_size == ep_size",
    "moe_tp_size > 1",
    "dp_attention()",
    "fuse",
    "scatter",
    "backend().is_deepep()",
    "backend().is_none()",
    "f(x)",
)


def formulas() -> st.SearchStrategy[Formula]:
    return st.recursive(
        st.sampled_from(ATOMS).map(Atom),
        lambda inner: st.one_of(
            inner.map(negate),
            st.lists(inner, min_size=2, max_size=3).map(conj),
            st.lists(inner, min_size=2, max_size=3).map(disj),
        ),
        max_leaves=6,
    )


def every_state() -> list[dict[str, bool]]:
    """The truth values of ``ATOMS`` in every feasible configuration of at least two ranks."""
    found = []
    sizes = (1, 2, 4, 8)
    for tp, dp, ep, fuse, scatter, a2a, free in product(
        sizes, sizes, sizes, (False, True), (False, True), ("none", "deepep"), (False, True)
    ):
        feasible = tp > 1 and tp % ep == 0 and tp % dp == 0 and (a2a == "none" or ep == tp)
        if feasible and not (fuse and dp > 1) and not (scatter and dp == 1):
            values = (tp > 1, ep > 1, dp == ep, tp // ep > 1, dp > 1, fuse, scatter, a2a == "deepep", a2a == "none")
            found.append(dict(zip(ATOMS, (*values, free), strict=True)))
    return found


STATES = every_state()


@given(formulas())
@settings(deadline=None, max_examples=150)
def test_a_configuration_is_found_exactly_where_some_feasible_state_satisfies_the_formula(formula: Formula) -> None:
    possible = any(evaluate(formula, state) for state in STATES)
    assert (SPACE.find(formula, ("tp",)) is not None) is possible


@given(formulas())
@settings(deadline=None, max_examples=150)
def test_a_free_condition_is_told_only_where_the_formula_fails_without_it(formula: Formula) -> None:
    found = SPACE.find(formula, ("tp",))
    if found is not None:
        without = any(evaluate(formula, state) for state in STATES if not state["f(x)"])
        assert found.also == (() if without else ("f(x)",))


# --- profiles


def test_the_bundled_profile_tells_the_options_of_the_engine() -> None:
    launch = load_profile("sglang").launch
    reasons = ("should_allreduce_fusion", "use_reduce_scatter", "get_moe_a2a_backend().is_deepep()")
    assert [str(launch.find(Atom(reason), ("tp",))) for reason in reasons] == [
        "`--tp 2 --enable-flashinfer-allreduce-fusion`",
        "`--tp 2 --dp 2 --enable-dp-attention` in a batch padded to the longest rank",
        "`--tp 2 --ep 2 --moe-a2a-backend deepep`",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[launch]\nconstraint = []", "unknown key 'launch.constraint'; did you mean 'launch.constraints'?"),
        ("[[launch.sizes]]\nname = 'a'\nvalues = ['1']", "launch.sizes.values must be a list of integers"),
        ("[[launch.switches]]\natoms = ['a']", "an entry of launch.switches has no name"),
        ("[[launch.switches]]\nname = 'a'\nrequires = 'zz'", "names 'zz', which is not declared"),
        ("[launch]\nsizes = 1", "launch.sizes must be an array of tables"),
        ("[launch.groups]\nTP = 'pp'", "the group 'pp' is no size"),
    ],
)
def test_a_wrong_launch_section_is_an_error_that_names_the_key(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(f"name = 'own'\nextends = 'sglang'\n{text}\n")
    with pytest.raises(ProfileError) as caught:
        load_profile(str(path))
    assert message in str(caught.value)


def test_an_entry_of_a_derived_profile_changes_the_base_entry_of_that_name(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(
        "name = 'own'\nextends = 'sglang'\n[[launch.sizes]]\nname = 'tp'\nnames = ['tp_size']\noption = '-tp={}'\n"
    )
    assert str(load_profile(str(path)).launch.find(Atom("self.tp_size > 2"))) == "`-tp=4`"


@pytest.mark.parametrize(
    ("backend", "told"),
    [
        ("deepep", "`--tp 2 --ep 2 --moe-a2a-backend deepep`"),
        ("pplx", "`--tp 2 --dp 2 --ep 2 --enable-dp-attention --moe-a2a-backend pplx`"),
        (
            "flashinfer",
            "`--tp 2 --dp 2 --ep 2 --enable-dp-attention --moe-a2a-backend flashinfer "
            "--moe-runner-backend flashinfer_cutlass`",
        ),
    ],
)
def test_a_backend_comes_with_the_options_that_the_server_asks_for_beside_it(backend: str, told: str) -> None:
    launch = load_profile("sglang").launch
    assert str(launch.find(Atom(f"get_moe_a2a_backend().is_{backend}()"), ("ep",))) == told


def test_the_cutlass_experts_have_all_ranks_in_one_expert_parallel_group_or_in_none() -> None:
    launch = load_profile("sglang").launch
    cutlass = Atom("get_moe_runner_backend().is_flashinfer_cutlass()")
    gathers = conj((cutlass, Atom("get_moe_expert_parallel_world_size() == get_attention_dp_size()")))
    told = "`--tp 2 --dp 2 --ep 2 --enable-dp-attention --moe-runner-backend flashinfer_cutlass`"
    assert str(launch.find(gathers, ("attn_dp",))) == told
    assert str(launch.find(cutlass, ("moe_tp",))) == "`--tp 2 --moe-runner-backend flashinfer_cutlass`"
    assert launch.find(cutlass, ("moe_tp", "ep")) is None
    assert launch.find(gathers, ("attn_dp", "attn_tp")) is None
