from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from inspect import cleandoc
from textwrap import indent

from moe_lint.formula import Atom
from moe_lint.index import Ref
from moe_lint.model import Confidence, Finding, Related, Severity, Span
from moe_lint.rules._central import defined, engine
from moe_lint.rules._declined import normed
from moe_lint.rules._layers import launch
from moe_lint.rules.base import Case, Context, Rule
from moe_lint.source import parse_part

#: How many calls down from the function that sums instead of a block the norm is looked for.
_DEPTH = 2

_KERNEL = """\
def fused_sum_and_norm(x, residual, weight):
    if world_size() <= 1:
        return None, None
    if not x.is_contiguous():
        return None, None
    return kernel(x, residual, weight)
"""
_COMMUNICATOR = """\
class LayerCommunicator:
    def should_fuse_mlp_allreduce_with_next_layer(self, batch):
        return settings.fusion and not self.is_last_layer
"""
_TRY = """
fused = fused_sum_and_norm(x, residual, self.weight)
if fused[0] is not None:
    return fused
"""


def _norm(name: str, body: str, *, kernel: str = _KERNEL, behind: str = "") -> Case:
    """A norm that has a kernel sum."""
    imports = "from engine.distributed import tensor_model_parallel_all_reduce, world_size\n"
    head = "class RMSNorm:\n    def forward_with_allreduce_fusion(self, x, residual):\n"
    method = f"{head}{indent(cleandoc(body), '        ')}\n"
    return engine(name, layers=_COMMUNICATOR, layers__norm=f"{imports}\n\n{kernel}\n\n{method}\n\n{cleandoc(behind)}\n")


_DELEGATED = """
def by_a_function(norm, x, residual):
    if world_size() > 1:
        fused = fused_sum_and_norm(x, residual, norm.weight)
        if fused[0] is not None:
            return fused
    return norm.forward(x, residual)  # <- MOE408
"""


class FallbackWithoutSum(Rule):
    """A kernel that sums and norms in one may decline, and what runs instead of it only norms.

    Blocks leave out their sum because the next norm is fused with the all-reduce. The kernel that does both does not
    take everything: a tensor that is not contiguous, a workspace that could not be set up, a library that is missing.
    It then returns nothing, and the plain norm runs: on a tensor that still owes the sum. Each rank goes on with its
    own partial sum, and nothing crashes.

    Instead of

        fused = fused_sum_and_norm(x, residual, weight)
        if fused[0] is not None:
            return fused
        return self.forward(x, residual)

    sum before the plain norm:

        x = tensor_model_parallel_all_reduce(x)
        return self.forward(x, residual)

    Looked at are the functions that the profile lists as those that sum instead of a block, and kernels of the tree
    that decline for more than one reason (the first is that there is one rank only). Not reported where a sum runs on
    one of the ways behind a kernel that has declined. Reported at the norm. There is no fix: over which group the
    kernel sums is not always told.
    """

    code = "MOE408"
    name = "fallback-without-sum"
    severity = Severity.WARNING
    confidence = Confidence.MEDIUM
    VALID = (
        _norm("summed-first", f"{_TRY}x = tensor_model_parallel_all_reduce(x)\nreturn self.forward(x, residual)"),
        _norm(
            "summed-where-it-runs",
            """
            if world_size() > 1:
                fused = fused_sum_and_norm(x, residual, self.weight)
                if fused[0] is not None:
                    return fused
                x = tensor_model_parallel_all_reduce(x)
            return self.forward(x, residual)
            """,
        ),
        _norm(
            "summed-if-a-setting-says-so",
            f"{_TRY}if settings.fusion:\n    x = tensor_model_parallel_all_reduce(x)\nreturn self.forward(x, residual)",
        ),
        _norm("settled-by-something-else", f"{_TRY}x = settle(x)\nreturn self.forward(x, residual)"),
        _norm(
            "declines-for-one-rank-only",
            f"{_TRY}return self.forward(x, residual)",
            kernel=_KERNEL.replace("    if not x.is_contiguous():\n        return None, None\n", ""),
        ),
        _norm(
            "never-asked-whether-it-declined",
            "fused = fused_sum_and_norm(x, residual, self.weight)\nreturn fused or self.forward(x, residual)",
        ),
    )
    INVALID = (
        _norm("only-normed", f"{_TRY}return self.forward(x, residual)  # <- MOE408"),
        _norm(
            "summed-for-another-kernel",
            """
            if settings.other:
                fused = other_kernel(x, residual, self.weight)
                if fused is not None:
                    return fused
            else:
                fused = fused_sum_and_norm(x, residual, self.weight)
                if fused[0] is not None:
                    return fused
            if settings.other and settings.fusion:
                x = tensor_model_parallel_all_reduce(x)
                return self.forward(x, residual)
            return self.forward(x, residual)  # <- MOE408
            """,
        ),
        _norm("by-a-function", "return by_a_function(self, x, residual)", behind=_DELEGATED),
        _norm(
            "normed-and-returned-later",
            f"{_TRY}x, residual = self.norm(x, residual)  # <- MOE408\nreturn x, residual",
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        for function in dict.fromkeys(_summing(context)):
            yield from self._lost(function, context)

    def _lost(self, function: Ref, context: Context) -> Iterator[Finding]:
        facts, tree = context.index.facts(function.path), _parsed(function, context)
        if facts is None or tree is None:
            return
        first = facts.header(function.name)[0] - tree.lineno
        owner, _, name = function.name.rpartition(".")
        for tensor in facts.header(function.name)[1]:
            ways = normed(tree, tensor, context.index.profile)
            for kernel in sorted({one for way in ways for one in way.declined}):
                behind = [way for way in ways if kernel in way.declined]
                target = _declining(kernel, function, context)
                if target is None or any(way.summed for way in behind):
                    continue
                call = behind[0].call
                span = Span(
                    first + call.lineno,
                    call.col_offset + 1,
                    first + (call.end_lineno or call.lineno),
                    (call.end_col_offset or call.col_offset) + 1,
                )
                line = context.index.facts(target.path)
                yield Finding(
                    self.code,
                    self.name,
                    function.path,
                    span,
                    self.severity,
                    self.confidence,
                    f"where `{kernel}` declines, this norm takes what owes the sum, and nobody has summed it: each "
                    f"rank goes on with its own partial sum{_shown(context)}",
                    name,
                    owner or None,
                    related=(Related(target.path, line.header(target.name)[0], "it declines by returning None"),)
                    if line is not None
                    else (),
                    remedy=f"sum `{tensor}` first, over the ranks that the kernel sums over",
                )


def _shown(context: Context) -> str:
    """A launch in which a block leaves its sum to the norm, where the tree spells the flag that says so."""
    flags = [flag for flag in context.index.profile.flags if flag.sums]
    return launch(context, Atom(flags[0].name)) if len(flags) == 1 else ""


def _summing(context: Context) -> Iterator[Ref]:
    """The functions that sum instead of a block, and those that they hand the tensor on to."""
    level = [ref for name in context.index.profile.summing for ref in defined(name, context)]
    for _ in range(_DEPTH):
        yield from level
        below = []
        for ref in level:
            conduct = context.callers.conduct(ref)
            owner = ref.name.rpartition(".")[0] or None
            for call in conduct.calls if conduct is not None else ():
                if call.stored == "return":
                    below += [target.function for target in context.index.targets(ref.path, owner, call.callee)]
        level = below


def _parsed(function: Ref, context: Context) -> ast.FunctionDef | None:
    facts = context.index.facts(function.path)
    if facts is None or function.name not in facts.functions:
        return None
    text = facts.function_text(function.name)
    tree = parse_part(text) or parse_part(f"if True:\n{text}")  # a method keeps its columns
    return next((n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)), None) if tree is not None else None


def _declining(kernel: str, function: Ref, context: Context) -> Ref | None:
    """The kernel, where it is a function of the tree that returns None for more than one reason."""
    owner = function.name.rpartition(".")[0] or None
    targets = context.index.targets(function.path, owner, kernel)
    facts = context.index.facts(targets[0].function.path) if len(targets) == 1 else None
    if facts is None:
        return None
    reasons = facts.finds(targets[0].function.name, r"^\s+return None\b")
    return targets[0].function if len(reasons) > 1 else None
