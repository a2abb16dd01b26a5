from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from moe_lint.facts import BackendTest
from moe_lint.formula import Atom, disj
from moe_lint.index import Ref
from moe_lint.model import Confidence, Finding, Related, Severity
from moe_lint.rules._cases import case, experts, method
from moe_lint.rules._wording import named
from moe_lint.rules.base import Context, Rule
from moe_lint.sites import Site


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

    Reported only where the test decides whether a method with an all-reduce after the experts runs. A test for a
    single backend may be meant as such, so it is reported at low confidence: select the rule to see those too. There
    is no automatic fix: whether the model supports the other backends is for its maintainers to say.
    """

    code = "MOE103"
    name = "hand-listed-backends"
    severity = Severity.WARNING
    confidence = Confidence.MEDIUM
    VALID = (
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
        for group in context.groups():
            site = group[0]
            reducing = {member.method for member in group}
            for test in _tests(site, reducing, context):
                if not (test.leaves or test.chooses & reducing):
                    continue
                for name, (members, ref) in sorted(classes.items()):
                    if test.members < members:
                        yield self._report(site, test, name, members, ref, context)
                        break

    def _report(
        self, site: Site, test: BackendTest, name: str, members: frozenset[str], ref: Ref, context: Context
    ) -> Finding:
        left_out = tuple(f"is_{member}()" for member in sorted(members - test.members))
        questions = disj(Atom(f"{context.policy.profile.backend_getter}.{question}") for question in left_out)
        shown = context.policy.configuration(questions, site.axis)
        facts = context.index.facts(ref.path)
        line = facts.header(ref.name)[0] if facts is not None else 1
        finding = self.finding(
            site,
            f"a2a backends listed by hand: `{name}()` also counts {named(left_out)}, "
            "with which this block takes the path that reduces",
            context,
            witness=f"with {shown} the backend's combine has summed, and this block sums again" if shown else None,
            remedy=f"ask `{name}()`",
            related=(Related(ref.path, line, f"`{name}` is defined here"),),
        )
        return replace(
            finding,
            span=test.span,
            guard=test.span,
            function=test.function.rsplit(".", 1)[-1],
            relation=None,
            confidence=Confidence.LOW if len(test.members) == 1 else self.confidence,
        )


def _tests(site: Site, reducing: set[str], context: Context) -> Iterable[BackendTest]:
    """The backend tests in the methods of a site's class that reduce, or call one that does."""
    facts = context.index.facts(site.path)
    if facts is None or site.raw.class_name is None:
        return
    for name in facts.functions_in(site.raw.class_name):
        text = facts.function_text(name)
        if name.rsplit(".", 1)[-1] in reducing or any(f"self.{method}(" in text for method in reducing):
            yield from facts.function(name).backend_tests
