from __future__ import annotations

from collections.abc import Iterable, Iterator

from moe_lint.facts.conduct import Addition
from moe_lint.formula import Atom, Formula, conj
from moe_lint.model import Confidence, Finding, Related
from moe_lint.profile import Flag
from moe_lint.rules._cases import ASK, ROUTED, SETTLE, Written, block, layer_case
from moe_lint.rules._extracted import Reduction, additions, is_shared, reductions
from moe_lint.rules._layers import launch
from moe_lint.rules._terms import counts_once, on_one_rank
from moe_lint.rules.base import Context, Rule
from moe_lint.sites import without_topology

_LAYER = ASK + "x = self.mlp(x, should_allreduce_fusion, use_reduce_scatter)" + SETTLE


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _forward(behind: str, before: str = "") -> str:
    body = f"""
shared = self.shared_experts(x)
x = self.experts(x)
{before}
{ROUTED.strip()}
{behind.strip()}
return x
"""
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    return f"def forward(self, x, should_allreduce_fusion=False, use_reduce_scatter=False):\n{lines}\n"


def _calling(forward: str, *methods: str) -> Written:
    """A block whose `forward` runs some lines behind its experts, with methods of its own."""
    lines = f"shared = self.shared_experts(x)\nx = self.experts(x)\n{forward.strip()}\nreturn x"
    body = "\n".join(f"    {line}" for line in lines.splitlines())
    return block(f"def forward(self, x, should_allreduce_fusion=False, use_reduce_scatter=False):\n{body}\n", *methods)


_REDUCED = """
def reduced(self, x, fuse, use_reduce_scatter):
    if fuse or use_reduce_scatter:
        return x
    return tensor_model_parallel_all_reduce(x)
"""
_REDUCE = "x = self.reduced(x, should_allreduce_fusion, use_reduce_scatter)\n"


class AddedBehindADeferredSum(Rule):
    """The shared experts' output is added behind a reduction that may be left to somebody downstream.

    A shared expert that is replicated (`tp_size=1`) is whole on every rank, so it must be added once the routed experts
    have been summed. Behind a guarded reduction that is so only when the reduction has run. Where it is left to the
    next layer or to a reduce-scatter, the term joins a partial sum, and whoever sums later counts it once for every
    rank.

    Instead of

        if self.tp_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):
            final = tensor_model_parallel_all_reduce(final)
        if self._shared_expert_tp1:
            final = final + shared_out

    do not let such a block defer its sum, or add the term only on the rank (or only in the state) in which it counts
    once:

        skip = should_skip_post_experts_all_reduce(is_tp_path=True) and not self._shared_expert_tp1

    Reported at the addition. A term that is added before the reduction, or only where the reduction runs, is not
    reported, nor one divided by the number of ranks or added on the first rank alone, nor a block that no layer ever
    asks to leave its sum. The reduction, or the addition, may stand in a method or function that is called for it.
    There is no fix.
    """

    code = "MOE308"
    name = "added-behind-a-deferred-sum"
    confidence = Confidence.MEDIUM
    VALID = (
        layer_case("added-before", block(_forward("", "x = x + shared")), layer=_LAYER),
        layer_case(
            "added-where-it-ran",
            block(
                _forward(
                    """
if not should_allreduce_fusion and not use_reduce_scatter:
    x = x + shared
"""
                )
            ),
            layer=_LAYER,
        ),
        layer_case(
            "divided-by-the-number-of-ranks",
            block(_forward("if should_allreduce_fusion:\n    x = x + shared / self.tp_size")),
            layer=_LAYER,
        ),
        layer_case(
            "on-the-first-rank-alone",
            block(_forward("if should_allreduce_fusion and self.tp_rank == 0:\n    x += shared")),
            layer=_LAYER,
        ),
        layer_case(
            "on-the-first-rank-alone-by-a-predicate",
            "def counts_here():\n    return get_tensor_model_parallel_rank() == 0",
            block(_forward("if not should_allreduce_fusion or counts_here():\n    x += shared")),
            layer=_LAYER.replace("use_reduce_scatter)", "False)"),
        ),
        layer_case(
            "divided-before",
            block(_forward("", "x = x + shared / self.tp_size")),
            layer=_LAYER,
        ),
        layer_case(
            "on-the-first-rank-before",
            block(_forward("", "if self.tp_rank == 0:\n    x += shared")),
            layer=_LAYER,
        ),
        layer_case("before-a-method", _calling("x = x + shared\n" + _REDUCE, _REDUCED), layer=_LAYER),
        layer_case(
            "by-a-method-on-the-first-rank-alone",
            _calling(
                f"{ROUTED.strip()}\nx = self.joined(x, shared)",
                "def joined(self, x, whole):\n    if self.tp_rank == 0:\n        x = x + whole\n    return x\n",
            ),
            layer=_LAYER,
        ),
        layer_case(
            "another-tensor-has-the-sum",
            _calling(
                f"{ROUTED.strip()}\nself.seen = self.joined(x, shared)",
                "def joined(self, routed, whole):\n    return routed + whole\n",
            ),
            layer=_LAYER,
        ),
        layer_case(
            "added-where-the-helper-says",
            _calling(
                _REDUCE + "if not should_skip_post_experts_all_reduce(\n    is_tp_path=True, "
                "use_reduce_scatter=use_reduce_scatter, should_allreduce_fusion=should_allreduce_fusion\n):\n"
                "    x = x + shared",
                _REDUCED,
            ),
            layer=_LAYER,
        ),
        layer_case(
            "never-deferred",
            block(
                """
                def forward(self, x):
                    shared = self.shared_experts(x)
                    x = self.experts(x)
                    if self.tp_size > 1:
                        x = tensor_model_parallel_all_reduce(x)
                    return x + shared
                """
            ),
            layer="x = self.mlp(x)\nx, residual = self.layer_communicator.postprocess_layer(x, residual, batch)",
        ),
    )
    INVALID = (
        layer_case("behind-a-method", _calling(_REDUCE + "x = x + shared  # <- MOE308", _REDUCED), layer=_LAYER),
        layer_case(
            "behind-a-function",
            "def reduced(x, fuse, scatter):\n    if not fuse and not scatter:\n"
            "        x = tensor_model_parallel_all_reduce(x)\n    return x",
            _calling(_REDUCE.replace("self.", "") + "x = x + shared  # <- MOE308"),
            layer=_LAYER,
        ),
        layer_case(
            "by-a-method",
            _calling(
                f"{ROUTED.strip()}\nx = self.joined(x, shared)  # <- MOE308",
                "def joined(self, routed, whole):\n    return routed + whole\n",
            ),
            layer=_LAYER,
        ),
        layer_case(
            "both-in-a-method",
            _calling(
                "return self.finished(x, shared, should_allreduce_fusion, use_reduce_scatter)",
                "def finished(self, x, whole, should_allreduce_fusion, use_reduce_scatter):\n"
                f"{_indented(ROUTED.strip())}\n    x = x + whole  # <- MOE308\n    return x\n",
            ),
            layer=_LAYER,
        ),
        layer_case("added-behind", block(_forward("x = x + shared  # <- MOE308")), layer=_LAYER),
        layer_case(
            "under-another-condition",
            block(_forward("if self.shared_is_whole:\n    x += shared  # <- MOE308")),
            layer=_LAYER,
        ),
        layer_case(
            "scaled-by-something-else",
            block(_forward("x = x + shared / self.scale  # <- MOE308")),
            layer=_LAYER,
        ),
        layer_case(
            "by-a-predicate-that-asks-for-another-rank",
            "def counts_here():\n    return get_tensor_model_parallel_rank() > 0",
            block(_forward("if not should_allreduce_fusion or counts_here():\n    x += shared  # <- MOE308")),
            layer=_LAYER.replace("use_reduce_scatter)", "False)"),
        ),
        layer_case(
            "on-every-rank-but-the-first",
            block(_forward("if not self.tp_rank == 0:\n    x += shared  # <- MOE308")),
            layer=_LAYER,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        told: set[tuple[str, int]] = set()
        profile = context.index.profile
        for site in context.sites:
            if not site.post_experts or not site.absorber:
                continue
            decide = context.callers.flags_at.get((site.path, site.raw.span), frozenset())
            flags = [flag for flag in profile.flags if flag.name in decide]
            for found in reductions(site, context) if flags else ():
                for addition, flag in _late_terms(found, flags, context):
                    if (found.frame.path, addition.span.line) in told:
                        continue
                    told.add((found.frame.path, addition.span.line))
                    shown = launch(context, conj((Atom(flag.name), without_topology(addition.condition, profile))))
                    class_name = found.frame.class_name
                    yield Finding(
                        self.code,
                        self.name,
                        found.frame.path,
                        addition.span,
                        self.severity,
                        self.confidence,
                        f"`{addition.term}` counts once for every rank where `{flag.name}` leaves the reduction on "
                        f"line {found.span.line} to others{shown}",
                        found.frame.function.name.removeprefix(f"{class_name}."),
                        class_name,
                        related=(
                            Related(site.path, site.raw.span.line, "this reduction may be left to somebody else"),
                        ),
                        remedy=f"leave no sum to others where `{addition.term}` is added, or add it on one rank only",
                    )


def _late_terms(found: Reduction, flags: Iterable[Flag], context: Context) -> Iterator[tuple[Addition, Flag]]:
    """The shared experts' terms that join a site's tensor behind it, with a flag under which it was not reduced."""
    profile = context.index.profile
    for addition in additions(found.frame, context) if found.target is not None else ():
        if addition.span < found.span or addition.target != found.target:
            continue
        if not is_shared(addition.term, found.frame.function, context):
            continue
        if counts_once(addition, profile) or _summed_between(found, addition, context):
            continue
        added = without_topology(addition.condition, profile)
        for flag in flags:
            if _leaves(found.runs, flag, added, context):
                yield addition, flag
                break


def _leaves(runs: Formula, flag: Flag, added: Formula, context: Context) -> bool:
    """Whether there is a state in which the flag is set, the reduction does not run for it, and the term is added."""
    callers, policy = context.callers, context.policy
    set_ = Atom(flag.name)
    if callers.possible(conj((policy.expanded(policy.with_helper(runs)), set_))):
        return False  # it runs in spite of the flag: that is another rule's finding
    # it must be the flag that keeps the reduction from running, on a path that otherwise comes to it
    otherwise = conj((added, policy.with_helper(runs)))
    added = policy.expanded(policy.with_helper(added))
    if on_one_rank(conj((added, set_))):
        return False  # a predicate of the tree sees to that
    return callers.possible(conj((added, set_)), unknown=False) and callers.possible(otherwise)


def _summed_between(found: Reduction, addition: Addition, context: Context) -> bool:
    """Whether another reduction of the tensor follows the first and comes before the term, or behind it."""
    callers, function = context.callers, found.frame.function
    for other in context.sites:
        same = other.path == function.path and other.raw.function == function.name
        if same and other.raw.target == addition.target and other.raw.span > found.span:
            reached = conj((addition.condition, *(part.formula for part in other.raw.guard)))
            if callers.possible(reached):
                return True
    for edge in callers.edges(found.frame):
        handed = any(passed.text == addition.target for passed in edge.call.arguments)
        if edge.call.span > found.span and handed and callers.sums(edge):
            if callers.possible(conj((addition.condition, edge.target.holds))):
                return True
    return False
