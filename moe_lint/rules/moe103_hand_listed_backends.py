from __future__ import annotations

from collections.abc import Iterable
from textwrap import indent

from msgspec.structs import replace

from moe_lint.facts import BackendTest
from moe_lint.formula import TRUE, Atom, TooManyAtoms, atom_set, conj, disj, negate, satisfiable
from moe_lint.index import Ref
from moe_lint.launch import Configuration
from moe_lint.model import Axis, Confidence, Finding, Related, Route, Severity
from moe_lint.policy import Policy
from moe_lint.rules._cases import UTILS, case, experts, layer_case, method
from moe_lint.rules._wording import named
from moe_lint.rules.base import Case, Context, Rule
from moe_lint.sites import Site, is_ownership

_BY_MEMBERS = """
    if get_moe_a2a_backend().is_deepep() or get_moe_a2a_backend().is_mooncake():{mark}
        return self.forward_deepep(x)
    return self.forward_normal(x)
"""
_ROUTED = experts(
    """
    if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
        is_tp_path=True,
        use_reduce_scatter=use_reduce_scatter,
        should_allreduce_fusion=should_allreduce_fusion,
    ):
        x = tensor_model_parallel_all_reduce(x)
    """,
    name="forward_normal",
)
_DEEPEP = method("x = self.experts(x)", name="forward_deepep", parameters="x")


def _owned(name: str, given: str, mark: str = "") -> Case:
    """A block that reduces where its layer has left the sum to it."""
    init = "def __init__(self, config, reduce_results=True):\n    self.experts = FusedMoE(config)\n"
    init += "    self.reduce_results = reduce_results\n"
    body = "\nif self.reduce_results:\n    x = reduce_moe_output(x)"
    methods = (init, method(_BY_MEMBERS.format(mark=mark)), experts(body, name="forward_normal"), _DEEPEP)
    whole = "class Block:\n" + indent("\n".join(methods), "    ")
    return layer_case(name, whole, build=f"self.mlp = Block(config{given})", layer="x = self.mlp(x)")


def _with_reason(found: Case, reason: str) -> Case:
    """The case in a tree whose helper has one reason more."""
    more = UTILS.replace(
        "    return is_tp_path and", f"    if {reason}:\n        return True\n    return is_tp_path and"
    )
    return Case(found.name, {**found.files, "engine/layers/moe/utils.py": more})


class HandListedBackends(Rule):
    """A path to the all-reduce is chosen by a2a backends listed by hand, fewer than the tree's own class predicate.

    The tree has one function that names a family of backends (`is_deepep_class_backend()`: those whose combine has
    already summed). A model that lists some of them itself takes the reducing path with the others, and their tokens
    are summed once more than they should be. New backends are added to the function, not to the copies.

    Instead of

        if get_moe_a2a_backend().is_deepep() or get_moe_a2a_backend().is_mooncake():
            return self.forward_deepep(x)
        return self.forward_normal(x)

    ask the tree:

        if is_deepep_class_backend():
            return self.forward_deepep(x)
        return self.forward_normal(x)

    Reported only where the test decides whether a method with an all-reduce after the experts runs, and for those
    backends for which the helper does not skip. A test for a single backend of the family may be meant as such, so it
    is reported at low confidence: select the rule to see those too. There
    is no automatic fix: whether the model supports the other backends is for its maintainers to say.
    """

    code = "MOE103"
    name = "hand-listed-backends"
    severity = Severity.WARNING
    confidence = Confidence.MEDIUM
    VALID = (
        case(
            "all-members-and-one-of-another-family",
            method(
                """
                if is_deepep_class_backend() or get_moe_a2a_backend().is_fuseep():
                    return self.forward_deepep(x)
                return self.forward_normal(x)
                """,
            ),
            _ROUTED,
            _DEEPEP,
        ),
        _owned("left-to-the-layer", ", reduce_results=False"),
        case(
            "class-predicate-before-a-wrapper",
            method(
                """
                if is_deepep_class_backend():
                    return self.forward_deepep(x)
                return self.forward_normal(x)
                """
            ),
            experts("x = reduce_moe_output(x)", name="forward_normal"),
            _DEEPEP,
        ),
        _with_reason(
            case("helper-knows-the-others", method(_BY_MEMBERS.format(mark="")), _ROUTED, _DEEPEP),
            "get_moe_a2a_backend().is_mori()",
        ),
        case(
            "class-predicate",
            method(
                """
                if is_deepep_class_backend():
                    return self.forward_deepep(x)
                return self.forward_normal(x)
                """,
            ),
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = tensor_model_parallel_all_reduce(x)
                """,
                name="forward_normal",
            ),
            method(
                "x = self.experts(x)",
                name="forward_deepep",
                parameters="x",
            ),
        ),
        case(
            "all-members",
            method(
                """
                if (
                    get_moe_a2a_backend().is_mori()
                    or get_moe_a2a_backend().is_deepep()
                    or get_moe_a2a_backend().is_mooncake()
                ):
                    return self.forward_deepep(x)
                return self.forward_normal(x)
                """,
            ),
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = tensor_model_parallel_all_reduce(x)
                """,
                name="forward_normal",
            ),
            method(
                "x = self.experts(x)",
                name="forward_deepep",
                parameters="x",
            ),
        ),
        case(
            "chooses-no-reduction",
            method(
                """
                if get_moe_a2a_backend().is_deepep() or get_moe_a2a_backend().is_mooncake():
                    x = self.prepare(x)
                """,
            ),
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = tensor_model_parallel_all_reduce(x)
                """,
                name="forward_normal",
            ),
            method(
                "x = self.experts(x)",
                name="forward_deepep",
                parameters="x",
            ),
        ),
    )
    INVALID = (
        case(
            "one-of-another-family-listed-too",
            method(
                """
                if (
                    get_moe_a2a_backend().is_deepep()  # <- MOE103
                    or get_moe_a2a_backend().is_mooncake()
                    or get_moe_a2a_backend().is_fuseep()
                ):
                    return self.forward_deepep(x)
                return self.forward_normal(x)
                """,
            ),
            _ROUTED,
            _DEEPEP,
        ),
        _owned("left-to-the-block", "", mark="  # <- MOE103"),
        _with_reason(
            case("helper-knows-another", method(_BY_MEMBERS.format(mark="  # <- MOE103")), _ROUTED, _DEEPEP),
            "get_moe_a2a_backend().is_mooncake()",
        ),
        case(
            "behind-a-wrapper",
            method(_BY_MEMBERS.format(mark="  # <- MOE103")),
            experts("x = reduce_moe_output(x)", name="forward_normal"),
            _DEEPEP,
        ),
        case(
            "two-of-three",
            method(
                """
                if get_moe_a2a_backend().is_deepep() or get_moe_a2a_backend().is_mooncake():  # <- MOE103
                    return self.forward_deepep(x)
                return self.forward_normal(x)
                """,
            ),
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = tensor_model_parallel_all_reduce(x)
                """,
                name="forward_normal",
            ),
            method(
                "x = self.experts(x)",
                name="forward_deepep",
                parameters="x",
            ),
        ),
        case(
            "one-of-three",
            method(
                """
                if get_moe_a2a_backend().is_deepep():  # <- MOE103
                    return self.forward_deepep(x)
                return self.forward_normal(x)
                """,
            ),
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = tensor_model_parallel_all_reduce(x)
                """,
                name="forward_normal",
            ),
            method(
                "x = self.experts(x)",
                name="forward_deepep",
                parameters="x",
            ),
        ),
        case(
            "another-order",
            method(
                """
                if get_moe_a2a_backend().is_mori() or get_moe_a2a_backend().is_deepep():  # <- MOE103
                    return self.forward_deepep(x)
                return self.forward_normal(x)
                """,
            ),
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = tensor_model_parallel_all_reduce(x)
                """,
                name="forward_normal",
            ),
            method(
                "x = self.experts(x)",
                name="forward_deepep",
                parameters="x",
            ),
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        classes = context.policy.backend_classes()
        if not classes:
            return
        for group in _groups(context):
            site = group[0]
            reducing = {member.method for member in group}
            for test in _tests(site, reducing, context):
                if not (test.leaves or test.chooses & reducing):
                    continue
                for name, (members, ref) in sorted(classes.items()):
                    left_out = [m for m in sorted(members - test.members) if _reduces_with(m, group, context.policy)]
                    common = test.members & members
                    if common and left_out:
                        yield self._report(site, test, name, left_out, ref, context, len(common))
                        break

    def _report(
        self, site: Site, test: BackendTest, name: str, left_out: list[str], ref: Ref, context: Context, common: int
    ) -> Finding:
        facts = context.index.facts(ref.path)
        line = facts.header(ref.name)[0] if facts is not None else 1
        finding = self.finding(
            site,
            f"a2a backends listed by hand: `{name}()` also counts {named(tuple(f'is_{m}()' for m in left_out))}, "
            "with which this block takes the path that reduces",
            context,
            witness=_shown(left_out, site.axis, context.policy),
            remedy=f"ask `{name}()`",
            related=(Related(ref.path, line, f"`{name}` is defined here"),),
        )
        return replace(
            finding,
            span=test.span,
            guard=test.span,
            function=test.function.rsplit(".", 1)[-1],
            relation=None,
            confidence=Confidence.LOW if common == 1 else self.confidence,
        )


def _groups(context: Context) -> Iterable[list[Site]]:
    """The reductions after experts, by hand or by a wrapper, class by class."""
    found: dict[tuple[str, str], list[Site]] = {}
    for site in context.sites:
        judged = site.comparison is not None or site.route is Route.WRAPPER
        if site.post_experts and judged and site.raw.class_name is not None and not _left_to_others(site, context):
            found.setdefault((site.path, site.raw.class_name), []).append(site)
    return found.values()


def _left_to_others(site: Site, context: Context) -> bool:
    """Whether every layer that uses the block has taken its sum over (`reduce_results=False`)."""
    owned = any(is_ownership(name, context.policy.profile) for name in atom_set(site.guard))
    return owned and not context.callers.routes_to(site)


def _question(member: str, policy: Policy) -> Atom:
    return Atom(f"{policy.profile.backend_getter}.is_{member}()")


def _reduces_with(member: str, group: Iterable[Site], policy: Policy) -> bool:
    """Whether each of the reductions can run with that backend: the helper may know it even if the list does not.

    Where only some of them can, their guards have drifted apart, which is another rule's business.
    """
    axes: tuple[Axis, ...] = ("TP", "EP")
    wrapped = disj(negate(policy.skips(axis)) for axis in axes) if policy.helper is not None else TRUE
    for site in group:
        guard = conj((site.guard, wrapped)) if site.route is Route.WRAPPER else policy.with_helper(site.guard)
        holds = policy.opened(conj((guard, _question(member, policy))))
        try:
            if not satisfiable(conj((holds, policy.feasible(atom_set(holds))))):
                return False
        except TooManyAtoms:
            continue
    return True


def _shown(left_out: list[str], axis: Axis, policy: Policy) -> str | None:
    """A launch configuration for the first of the backends that has one; the others by name."""
    shown: dict[str, Configuration] = {}
    for member in left_out:
        found = policy.configuration(_question(member, policy), axis)
        if found is not None:
            shown[member] = found
    if not shown:
        return None
    first, *others = shown
    more = f" (or {', '.join(f'`{member}`' for member in others)})" if others else ""
    return f"with {shown[first]}{more} the backend's combine has summed, and this block sums again"


def _tests(site: Site, reducing: set[str], context: Context) -> Iterable[BackendTest]:
    """The backend tests in the methods of a site's class that reduce, or call one that does."""
    facts = context.index.facts(site.path)
    if facts is None or site.raw.class_name is None:
        return
    calls = rf"self\.(?:{'|'.join(sorted(reducing)) or '(?!)'})\("
    for name in facts.functions_in(site.raw.class_name):
        if name.rsplit(".", 1)[-1] in reducing or facts.matches(name, calls):
            yield from facts.function(name).backend_tests
