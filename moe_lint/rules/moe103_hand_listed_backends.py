from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from textwrap import indent

from msgspec.structs import replace

from moe_lint.facts import BackendTest
from moe_lint.formula import Atom, Or, conj, implies, negate
from moe_lint.index import Ref
from moe_lint.launch import Configuration
from moe_lint.model import Axis, Confidence, Finding, Related, Severity
from moe_lint.policy import Policy
from moe_lint.rules._backends import Group, question, reducing_classes, runs_with
from moe_lint.rules._cases import BARE, ROUTED, UTILS, Piece, block, case, experts, layer_case, method
from moe_lint.rules._wording import named
from moe_lint.rules.base import Case, Context, Rule
from moe_lint.sites import Site, asked_before

_FUNCTION = re.compile(r"[A-Za-z_]\w*$")
_BY_MEMBERS = """
    if get_moe_a2a_backend().is_deepep() or get_moe_a2a_backend().is_mooncake():{mark}
        return self.forward_deepep(x)
    return self.forward_normal(x)
"""
_ROUTED = experts(
    ROUTED,
    name="forward_normal",
)
_DEEPEP = method("x = self.experts(x)", name="forward_deepep", parameters="x")


def _owned(name: str, given: str, mark: str = "") -> Case:
    """A block that reduces where its layer has left the sum to it."""
    init = "def __init__(self, config, reduce_results=True):\n    self.experts = FusedMoE(config)\n"
    init += "    self.reduce_results = reduce_results\n"
    body = "\nif self.reduce_results:\n    x = reduce_moe_output(x)"
    methods = (init, method(_BY_MEMBERS.format(mark=mark)), experts(body, name="forward_normal"), _DEEPEP)
    whole = "class Block:\n" + indent("\n".join(map(str, methods)), "    ")
    return layer_case(name, whole, build=f"self.mlp = Block(config{given})", layer="x = self.mlp(x)")


def _with_reason(found: Case, reason: str) -> Case:
    """The case in a tree whose helper has one reason more."""
    more = UTILS.replace(
        "    return is_tp_path and", f"    if {reason}:\n        return True\n    return is_tp_path and"
    )
    return Case(found.name, {**found.files, "engine/layers/moe/utils.py": more})


_BY_OTHERS = """
if not get_moe_a2a_backend().is_deepep() and not get_moe_a2a_backend().is_mooncake():{mark}
    return self.forward_normal(x, should_allreduce_fusion, use_reduce_scatter)
return self.forward_deepep(x)
"""
_PAIR = experts(
    """
    if self.ep_size > 1 and not should_skip_post_experts_all_reduce(
        is_tp_path=False, use_reduce_scatter=use_reduce_scatter, should_allreduce_fusion=should_allreduce_fusion
    ):
        x = moe_expert_parallel_all_reduce(x)
    if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
        is_tp_path=True, use_reduce_scatter=use_reduce_scatter, should_allreduce_fusion=should_allreduce_fusion
    ):
        x = moe_tensor_model_parallel_all_reduce(x)
    """,
    name="forward_normal",
)


_MEMBERS = "get_moe_a2a_backend().is_deepep() or get_moe_a2a_backend().is_mooncake()"
_LISTED = "def sums_in_combine():\n    return {}"
_ASKS = method("if sums_in_combine():\n    return self.forward_deepep(x)\nreturn self.forward_normal(x)")


def _with_function(name: str, function: str, *methods: Piece) -> Case:
    """A block beside a function of its file."""
    return layer_case(name, function, block(*methods), layer="x = self.mlp(x)")


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
    backends for which the helper does not skip. A test for a single backend of the family may be meant as such: it
    counts where the factory that builds the block's experts makes one class for that backend and another of the family,
    so that what is true of one combine is true of the other. Elsewhere it is reported at low confidence: select the
    rule to see those too. There is no automatic fix: whether the model supports the other backends is for its
    maintainers to say.
    """

    code = "MOE103"
    name = "hand-listed-backends"
    severity = Severity.WARNING
    confidence = Confidence.MEDIUM
    VALID = (
        _with_function(
            "a-function-asks-the-class-predicate", _LISTED.format("is_deepep_class_backend()"), _ASKS, _ROUTED, _DEEPEP
        ),
        _with_function(
            "a-function-lists-all",
            _LISTED.format(_MEMBERS + " or get_moe_a2a_backend().is_mori()"),
            _ASKS,
            _ROUTED,
            _DEEPEP,
        ),
        _with_function(
            "a-function-that-does-not-decide",
            _LISTED.format(_MEMBERS),
            method("x = self.padded(x) if sums_in_combine() else x\nreturn self.forward_normal(x)"),
            _ROUTED,
            "def padded(self, x):\n    return x",
        ),
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
            "left-to-the-layer-by-a-constant",
            method(_BY_OTHERS.format(mark="")),
            _PAIR,
            _DEEPEP,
            layer="x = self.mlp(x, should_allreduce_fusion=True, use_reduce_scatter=use_reduce_scatter)",
        ),
        case(
            "all-named-by-what-they-are-not",
            method(_BY_OTHERS.format(mark="").replace(":\n", " and not get_moe_a2a_backend().is_mori():\n", 1)),
            _PAIR,
            _DEEPEP,
        ),
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
                ROUTED,
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
                ROUTED,
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
                ROUTED,
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
        _with_function(
            "listed-by-a-function",
            _LISTED.format(_MEMBERS),
            _ASKS.replace("combine():", "combine():  # <- MOE103"),
            _ROUTED,
            _DEEPEP,
        ),
        _with_function(
            "reduced-by-a-function",
            "def reduced(x):\n    return tensor_model_parallel_all_reduce(x)",
            method(_BY_MEMBERS.format(mark="  # <- MOE103")),
            experts("x = reduced(x)", name="forward_normal"),
            _DEEPEP,
        ),
        case(
            "through-another-method",
            method(_BY_MEMBERS.format(mark="  # <- MOE103")),
            method("return self.summed(self.experts(x))", "forward_normal"),
            method(BARE, "summed", "x"),
            _DEEPEP,
        ),
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
        case("named-by-what-they-are-not", method(_BY_OTHERS.format(mark="  # <- MOE103")), _PAIR, _DEEPEP),
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
                ROUTED,
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
                ROUTED,
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
                ROUTED,
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
        for group in reducing_classes(context):
            site = group.sites[0]
            reducing = _reducing(group, context)
            for test in (*_tests(group.owner, reducing, context), *_asked_tests(group, reducing, context)):
                if not (test.leaves or test.chooses & reducing):
                    continue
                for name, (members, ref) in sorted(classes.items()):
                    left_out = [m for m in sorted(members - test.members) if _reduces_with(m, group, context.policy)]
                    common = test.members & members
                    if common and left_out:
                        finding = self._report(site, test, name, left_out, ref, context)
                        finding = replace(finding, path=group.owner.path, class_name=group.owner.name)
                        sure = len(common) > 1 or _is_built_alike(group.owner, common, left_out, context)
                        yield finding if sure else replace(finding, confidence=Confidence.LOW)
                        break

    def _report(
        self, site: Site, test: BackendTest, name: str, left_out: list[str], ref: Ref, context: Context
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
        )


def _is_built_alike(owner: Ref, listed: frozenset[str], left_out: list[str], context: Context) -> bool:
    """Whether the block's experts are the same with a backend that it lists and with one that it leaves out."""
    index = context.index
    for ref in index.mro(owner):
        facts = index.facts(ref.path)
        if facts is None or ref.name not in facts.classes:
            continue
        for name in context.policy.profile.expert_constructors:
            factory = index.resolve(ref.path, name) if facts.holds(ref.name, f"{name}(") else None
            made = index.function(factory) if factory is not None else None
            tests = made.backend_tests if made is not None else ()
            if any(listed & test.members and test.members.intersection(left_out) for test in tests):
                return True
    return False


def _reduces_with(member: str, group: Group, policy: Policy) -> bool:
    """Whether the reductions over some axis can run with that backend: the helper may know what the list does not.

    Where only some of those over an axis can, their guards have drifted apart, which is another rule's business.
    """
    runs: dict[Axis, bool] = {}
    for site in group.sites:
        above = asked_before(site, policy)
        runs[site.axis] = runs.get(site.axis, True) and runs_with(member, site, policy, above)
    return any(runs.values())


def _shown(left_out: list[str], axis: Axis, policy: Policy) -> str | None:
    """A launch configuration for the first of the backends that has one; the others by name."""
    shown: dict[str, Configuration] = {}
    for member in left_out:
        found = policy.configuration(question(member, policy), axis)
        if found is not None:
            shown[member] = found
    if not shown:
        return None
    first, *others = shown
    more = f" (or {', '.join(f'`{member}`' for member in others)})" if others else ""
    return f"with {shown[first]}{more} the backend's combine has summed, and this block sums again"


def _tests(owner: Ref, reducing: set[str], context: Context) -> Iterator[BackendTest]:
    """The backend tests in the methods of a class that reduce, or call one that does."""
    facts = context.index.facts(owner.path)
    for name in _calling(owner, reducing, context) if facts is not None else ():
        if facts is not None:
            yield from facts.function(name).backend_tests


def _asked_tests(group: Group, reducing: set[str], context: Context) -> Iterator[BackendTest]:
    """The same where a function of the tree lists the backends: the reductions run where it denies them all."""
    index, owner = context.index, group.owner
    facts = index.facts(owner.path)
    for name in _calling(owner, reducing, context) if facts is not None else ():
        conduct = context.callers.conduct(Ref(owner.path, name))
        calls = conduct.calls if conduct is not None else ()
        asked = {call.callee: call for call in calls if _FUNCTION.match(call.callee) and not call.arguments}
        tests = {callee: members for callee in asked if (members := _listed(callee, owner.path, context))}
        own = [site for site in group.sites if (site.path, site.raw.function) == (owner.path, name)]
        reached = [call.condition for call in calls if call.callee.removeprefix("self.") in reducing]
        reached += [conj(part.formula for part in site.raw.guard) for site in own]
        for callee, members in tests.items():
            denied = negate(Atom(f"{callee}()"))
            if reached and all(implies(condition, denied) for condition in reached):
                span = asked[callee].span
                yield BackendTest(members, span, name, owner.name, frozenset(reducing), True)


def _listed(callee: str, path: str, context: Context) -> frozenset[str]:
    """The backends that a function of the tree asks for, and nothing else."""
    index, policy = context.index, context.policy
    ref = index.resolve(path, callee) if callee not in policy.profile.helpers else None
    body = index.condition(ref) if ref is not None and ref.path in index.texts else None
    if body is None or callee in policy.backend_classes():
        return frozenset()
    prefix = f"{policy.profile.backend_getter}.is_"
    parts = body.operands if isinstance(body, Or) else (body,)
    names = [part.name for part in parts if isinstance(part, Atom)]
    listed = [name[len(prefix) : -2] for name in names if name.startswith(prefix) and name.endswith("()")]
    return frozenset(listed) if len(listed) == len(parts) else frozenset()


def _calling(owner: Ref, reducing: set[str], context: Context) -> Iterator[str]:
    """The methods of a class that reduce, or call one that does."""
    facts, calls = context.index.facts(owner.path), _calls(reducing)
    for name in facts.functions_in(owner.name) if facts is not None else ():
        if facts is not None and (name.rsplit(".", 1)[-1] in reducing or facts.matches(name, calls)):
            yield name


def _calls(methods: set[str]) -> str:
    return rf"self\.(?:{'|'.join(sorted(methods)) or '(?!)'})\("


def _reducing(group: Group, context: Context) -> set[str]:
    """The methods of a class that hold its reductions, and those beside `forward` that hand the output on to them."""
    found, owner = set(group.methods), group.owner
    facts = context.index.facts(owner.path)
    names = facts.functions_in(owner.name) if facts is not None else ()
    while facts is not None:
        calling = {name.rsplit(".", 1)[-1] for name in names if facts.matches(name, _calls(found))} - {"forward"}
        if calling <= found:
            break
        found |= calling
    return found
