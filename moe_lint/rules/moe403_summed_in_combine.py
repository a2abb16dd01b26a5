from __future__ import annotations

from collections.abc import Iterable, Iterator

from moe_lint.absorbers import CombineSum, absorbers_of
from moe_lint.formula import FALSE, TRUE, Formula, TooManyAtoms, assign, conj, disj, negate, satisfiable
from moe_lint.index import Ref
from moe_lint.launch import Configuration
from moe_lint.model import Axis, Confidence, Finding, Problem, Related, Route
from moe_lint.policy import Policy
from moe_lint.rules._answers import answers
from moe_lint.rules._backends import groups, question, runs_with
from moe_lint.rules._cases import ROUTED, UTILS, experts, method, model
from moe_lint.rules._central import asked_by_helper, at_definition, engine, unread
from moe_lint.rules._wording import named
from moe_lint.rules.base import Case, Context, Rule
from moe_lint.sites import Site, asked_before, owner_of

_DISPATCHER = """\
from engine.distributed import get_tp_group
from engine.layers.moe.utils import should_use_flashinfer_cutlass_moe_fp4_allgather


class StandardDispatcher:
    def combine(self, x):
        if should_use_flashinfer_cutlass_moe_fp4_allgather():
            get_tp_group().reduce_scatterv(x)
        return x
"""
_BOTH_AXES = UTILS.replace(
    "return is_tp_path and should_use_flashinfer_cutlass_moe_fp4_allgather()",
    "return should_use_flashinfer_cutlass_moe_fp4_allgather()",
)
_NO_FP4 = UTILS.replace("return is_tp_path and should_use_flashinfer_cutlass_moe_fp4_allgather()", "return False")
_WHOLE = "the experts' output is whole already"
_HEADER = "def should_skip_post_experts_all_reduce("


_SPREAD = model(
    method("if {test}:\n    return self.forward_spread(x)\nreturn self.forward_normal(x)"),
    experts(ROUTED, name="forward_normal"),
    method("x = self.experts(x)", name="forward_spread", parameters="x"),
)
_BY_CLASS = _SPREAD.replace("{test}", "is_deepep_class_backend()")
_MIXED = _BY_CLASS.replace("class Block:", "class Block(Reduced):").replace(
    "    def forward_normal", "\nclass Reduced:\n    def forward_normal"
)
_BY_HAND = _SPREAD.replace("{test}", "get_moe_a2a_backend().is_mori()")
_ALL_KNOWN = _BOTH_AXES.replace(
    "    if should_use_dp_reduce_scatterv():", "    if is_deepep_class_backend() or should_use_dp_reduce_scatterv():"
)


#: Dispatchers that say for themselves whether their combine sums, and a helper that leaves its question to them.
_KERNELS = """\
from kernels import gathered_combine


class Dispatcher:
    def output_is_reduced(self):
        raise NotImplementedError


class First(Dispatcher):
    def output_is_reduced(self):
        return True

    def combine(self, x):
        return self._combined(x)

    def _combined(self, x):
        return self.buffer.low_latency_combine(x)


class Second(Dispatcher):
    def output_is_reduced(self):
        return True

    def combine(self, x):
        return self.buffer.combine(x)


class Plain(Dispatcher):
    def output_is_reduced(self):
        return False

    def combine(self, x):
        return {combine}


def gathered(x):
    return Kernels.gathered_combine(x)
"""
_DERIVED = """

class Own(Plain):
    def combine(self, x):
        return self.kernel.combine(x)
"""
_LEFT = _BOTH_AXES.replace("return should_use_f", "return get_dispatcher().output_is_reduced() or should_use_f")
_SAYS_NO = "    def output_is_reduced(self):\n        return False"
_SAYS_NO_MARKED = _SAYS_NO.replace("(self):", "(self):  # <- MOE403")


def _combining(name: str, combine: str, mark: bool = False, kernels: str = _KERNELS) -> Case:
    """A tree with a dispatcher that says no and gives the experts' output back by ``combine``."""
    text = kernels.replace("{combine}", combine)
    return engine(
        name,
        utils=_LEFT,
        layers__moe__dispatcher=text.replace(_SAYS_NO, _SAYS_NO_MARKED) if mark else text,
    )


def _marked(utils: str) -> str:
    header = next(line for line in utils.splitlines() if line.startswith(_HEADER))
    return utils.replace(header, f"{header}  # <- MOE403")


class SummedInCombine(Rule):
    """The experts' dispatcher sums in a state in which the helper tells a block to reduce.

    Under some configurations the dispatcher's `combine` sums the partials itself and hands each rank its own tokens.
    What leaves `self.experts(x)` is whole then: a block that reduces once more sums twice, and over a group whose ranks
    hold different tokens it adds up rows that have nothing to do with each other. The helper has to know every such
    state, on both axes. One helper did so on the TP axis only: for a dozen releases, every EP all-reduce beside it
    added up outputs of different tokens in an FP4 configuration.

    A dispatcher

        def combine(self, x):
            if should_use_flashinfer_cutlass_moe_fp4_allgather():
                get_tp_group().reduce_scatterv(x)

    and a helper that skips for that reason on one axis:

        return is_tp_path and should_use_flashinfer_cutlass_moe_fp4_allgather()

    Skip on both. The condition of a `combine` is compared where it asks global predicates only; one that looks at its
    arguments cannot be told from outside.

    Where each dispatcher answers for itself (`output_is_reduced()`), one that combines by a kernel of an all-to-all and
    says no is reported, if most of those say yes: what theirs gives back is whole, and so is its own. Of a `combine` of
    a group of ranks nothing is said: which ranks it sums over is the group's.

    The combine of an a2a backend is a kernel, and nothing in the tree shows that it sums. But blocks do: where one
    takes another path for a backend, and so leaves its sum out, that backend's combine sums, and a block that asks the
    helper only and is told to reduce sums again. Reported for the backends of the tree's own class predicate, but not
    for blocks behind a boundary that takes sums by contract. No fix: the helper is central, a change there is yours to
    make.
    """

    code = "MOE403"
    name = "summed-in-combine"
    VALID = (
        engine("both-axes", utils=_BOTH_AXES, layers__moe__dispatcher=_DISPATCHER),
        engine("no-sum-in-the-dispatcher"),
        engine("backends-that-the-helper-knows", utils=_ALL_KNOWN, models__spread=_BY_CLASS),
        engine("every-block-asks-for-the-backend", models__pretend=_BY_CLASS, models__spread=_BY_CLASS),
        engine("a-derived-class-asks-for-the-backend", models__pretend=_MIXED, models__spread=_BY_CLASS),
        engine("a-backend-of-no-family", models__spread=_SPREAD.replace("{test}", "get_moe_a2a_backend().is_own()")),
        engine(
            "an-a2a-backend-that-the-helper-knows",
            utils=_BOTH_AXES.replace("allgather()\n", "allgather() or get_moe_a2a_backend().is_mori()\n"),
            layers__moe__dispatcher=_DISPATCHER.replace(
                "import should_use_flashinfer_cutlass_moe_fp4_allgather", "import get_moe_a2a_backend"
            ).replace("should_use_flashinfer_cutlass_moe_fp4_allgather()", "get_moe_a2a_backend().is_mori()"),
        ),
        engine(
            "another-group",
            layers__moe__dispatcher=_DISPATCHER.replace("get_tp_group()", "get_attention_tp_group()"),
        ),
        engine(
            "its-own-arguments-decide",
            layers__moe__dispatcher=_DISPATCHER.replace(
                "if should_use_flashinfer_cutlass_moe_fp4_allgather():", "if x.format.is_standard():"
            ),
        ),
        _combining("a-dispatcher-that-combines-nothing", "x"),
        _combining("a-group-of-ranks-combines", "get_ep_group().combine(x)"),
        _combining("a-group-that-it-holds-combines", "self.dp_group.combine(x)"),
        _combining("one-against-one", "self.buffer.combine(x)", kernels=_KERNELS.replace("True", "self.whole", 1)),
        _combining("it-depends", "self.buffer.combine(x)", kernels=_KERNELS.replace("False", "self.whole")),
    )
    INVALID = (
        _combining("a-kernel-combines", "self.buffer.combine(x)", mark=True),
        _combining("a-function-of-the-tree-calls-the-kernel", "gathered(x)", mark=True),
        _combining(
            "the-answer-is-inherited",
            "x",
            mark=True,
            kernels=_KERNELS + _DERIVED,
        ),
        engine(
            "an-a2a-backend-that-sums",
            utils=_marked(_BOTH_AXES),
            layers__moe__dispatcher=_DISPATCHER.replace(
                "import should_use_flashinfer_cutlass_moe_fp4_allgather", "import get_moe_a2a_backend"
            ).replace("should_use_flashinfer_cutlass_moe_fp4_allgather()", "get_moe_a2a_backend().is_mori()"),
        ),
        engine("backends-that-another-block-takes-for-summed", utils=_marked(UTILS), models__spread=_BY_CLASS),
        engine(
            "by-a-wrapper",
            utils=_marked(UTILS),
            models__pretend=model(experts("x = reduce_moe_output(x)")),
            models__spread=_BY_CLASS,
        ),
        engine("one-of-them", utils=_marked(UTILS), models__spread=_BY_HAND),
        engine("tp-axis-only", utils=_marked(UTILS), layers__moe__dispatcher=_DISPATCHER),
        engine("neither-axis", utils=_marked(_NO_FP4), layers__moe__dispatcher=_DISPATCHER),
        engine(
            "half-of-the-condition",
            utils=_marked(
                UTILS.replace(
                    "return is_tp_path and should_use_flashinfer_cutlass_moe_fp4_allgather()",
                    "return should_use_flashinfer_cutlass_moe_fp4_allgather() and get_moe_a2a_backend().is_none()",
                )
            ),
            layers__moe__dispatcher=_DISPATCHER,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        helper = context.policy.helper
        if helper is None or helper.proposed:
            return
        for found in absorbers_of(context.policy).combines:
            broken = {axis: holds for axis in _axes(context) if (holds := _broken(found, axis, context)) is not None}
            if not broken:
                continue
            axes = " and ".join(broken)
            axis, holds = next(iter(broken.items()))
            shown = context.policy.configuration(holds, axis)
            sites = sum(1 for site in context.judged() if site.route is Route.HELPER and site.axis in broken)
            yield at_definition(
                self,
                Ref(helper.path, helper.name),
                f"`{helper.name}` does not skip on the {axes} ax{'is' if len(broken) == 1 else 'es'} "
                f"where `{found.owner}` sums by itself, when `{found.condition}`",
                context,
                witness=f"{_whole(shown)}: "
                f"{sites} reduction{'' if sites == 1 else 's'} that ask{'s' if sites == 1 else ''} this helper "
                "sum it once more, and over ranks that hold different tokens",
                remedy=f"skip for `{found.condition}` on both axes",
                related=(Related(found.path, found.line, f"`{found.owner}` sums here"),),
            )

        yield from self._by_blocks(context)
        yield from self._by_answers(context)

    def _by_answers(self, context: Context) -> Iterator[Finding]:
        """Dispatchers that combine by a kernel and say that nothing is summed, where most others say that it is."""
        found = list(answers(context))
        summed = [one for one in found if one.summed]
        wrong = [one for one in found if not one.summed]
        shown = context.policy.configuration(TRUE, "TP")
        for one in wrong if len(summed) > len(wrong) else ():
            others = ", ".join(f"`{other.owner.name}`" for other in summed)
            yield at_definition(
                self,
                one.at,
                f"`{one.at.name.rpartition('.')[2]}` says no for `{one.owner.name}`, which combines by "
                f"`{one.kernel.callee}`: its output is summed once more. It says yes for the others that combine by a "
                f"kernel: {others}",
                context,
                confidence=Confidence.MEDIUM,
                witness=f"with {shown} and the backend of `{one.owner.name}` {_WHOLE}" if shown is not None else None,
                remedy=f"say yes for `{one.owner.name}`",
                related=(Related(one.path, one.kernel.span.line, f"`{one.owner.name}` combines here"),),
            )

    def _by_blocks(self, context: Context) -> Iterator[Finding]:
        """Backends whose combine some blocks take for a sum, and for which the helper has others reduce."""
        policy, helper = context.policy, context.policy.helper
        members = sorted({member for known, _ in policy.backend_classes().values() for member in known})
        if helper is None or not members:
            return
        asking, others = _by_what_they_ask(context)
        found = {member: [block for block in others if _leaves(block, member, policy)] for member in members}
        unknown = [member for member in members if found[member] and any(_sums(b, member, policy) for b in asking)]
        wrong = [block for block in asking if any(_sums(block, member, policy) for member in unknown)]
        if not unknown or not wrong:
            return
        shown = policy.configuration(question(unknown[-1], policy), wrong[0][0].axis)
        right, names = found[unknown[0]][0][0], tuple(f"{block[0].raw.class_name}" for block in wrong)
        ask = "asks" if len(names) == 1 else "ask"
        yield at_definition(
            self,
            Ref(helper.path, helper.name),
            f"`{helper.name}` does not skip for {named(tuple(f'is_{member}()' for member in unknown))}, whose combine "
            f"`{right.raw.class_name}` takes for a sum: {named(names)} {ask} this helper alone",
            context,
            witness=f"{_whole(shown)}, and {'this block sums' if len(names) == 1 else 'these blocks sum'} it once more",
            remedy="skip for every backend whose combine sums, or let these blocks take another path with them",
            related=(
                Related(right.path, right.raw.span.line, f"`{right.raw.class_name}` skips this sum then"),
                *(Related(b[0].path, b[0].raw.span.line, f"`{b[0].raw.class_name}` sums here") for b in wrong),
            ),
        )

    def unjudged(self, context: Context) -> Iterable[Problem]:
        return unread(asked_by_helper(context), context)


def _whole(shown: Configuration | None) -> str:
    return f"{f'with {shown} ' if shown is not None else ''}{_WHOLE}"


def _axes(context: Context) -> list[Axis]:
    """The axes that some reduction in the tree asks the helper about."""
    asked = {site.axis for site in context.judged() if site.route is Route.HELPER}
    order: tuple[Axis, ...] = ("TP", "EP")
    return [axis for axis in order if axis in asked]


def _broken(found: CombineSum, axis: Axis, context: Context) -> Formula | None:
    """When the dispatcher sums and the helper, told no flag, says that the block must; None if never."""
    policy = context.policy
    skips = disj(reason.formula for reason in policy.reasons(axis))
    for flag in policy.profile.flags:
        skips = assign(skips, flag.name, FALSE)
    coarse = conj((found.condition, negate(skips)))
    try:
        if not satisfiable(coarse) or not satisfiable(policy.opened(coarse)):
            return None
    except TooManyAtoms:
        return None
    return coarse


def _by_what_they_ask(context: Context) -> tuple[list[list[Site]], list[list[Site]]]:
    """The blocks that ask the helper and nothing about the a2a backend; those that ask about it themselves.

    Of a block behind a boundary that takes sums by contract it is not told who sums. A base may leave the question to
    the classes derived from it, and they to their base.
    """
    policy, index = context.policy, context.index
    words = (policy.profile.backend_getter.partition("(")[0], *policy.backend_classes())
    asking: list[list[Site]] = []
    others: list[list[Site]] = []
    for block in groups(context):
        owner = owner_of(block[0])
        family = {ref for one in (owner, *index.subclasses(owner)) for ref in index.mro(one)}
        held = ((index.facts(ref.path), ref.name) for ref in family)
        known = [(facts, name) for facts, name in held if facts is not None and name in facts.classes]
        if any(facts.holds(name, word) for facts, name in known for word in words):
            others.append(block)
        elif all(site.route in (Route.HELPER, Route.WRAPPER) for site in block) and (
            absorbers_of(policy).asked or not any(site.absorber for site in block)
        ):
            asking.append(block)
    return asking, others


def _sums(block: Iterable[Site], member: str, policy: Policy) -> bool:
    return any(runs_with(member, site, policy, asked_before(site, policy)) for site in block)


def _leaves(block: Iterable[Site], member: str, policy: Policy) -> bool:
    """Whether none of a block's sums runs with a backend because the block asks for it: the helper does not."""
    return not _sums(block, member, policy) and any(runs_with(member, site, policy) for site in block)
