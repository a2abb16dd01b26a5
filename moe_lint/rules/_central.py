"""What the rules on central predicates share: findings at a definition, and a pretend engine for their examples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from inspect import cleandoc
from textwrap import indent

from moe_lint.expressions import NotBoolean
from moe_lint.formula import Formula, State, atom_set, evaluate
from moe_lint.index import Ref
from moe_lint.model import Confidence, Finding, Problem, Related, Severity, SkipReason, Span
from moe_lint.rules._cases import COMMUNICATOR, PAIR, UTILS, Piece, experts, later, model
from moe_lint.rules._wording import named
from moe_lint.rules.base import Case, Context, Rule

#: an atom that is nothing but the call of a function
_CALL = re.compile(r"^(\w+)\([^()]*\)$")


def at_definition(
    rule: Rule,
    ref: Ref,
    message: str,
    context: Context,
    *,
    severity: Severity | None = None,
    confidence: Confidence | None = None,
    witness: str | None = None,
    remedy: str | None = None,
    related: tuple[Related, ...] = (),
) -> Finding:
    """A finding at the header of a function."""
    line, text = line_of(ref, context)
    start = len(text) - len(text.lstrip()) + 1
    owner, _, name = ref.name.rpartition(".")
    return Finding(
        rule.code,
        rule.name,
        ref.path,
        Span(line, start, line, len(text.rstrip()) + 1),
        severity or rule.severity,
        confidence or rule.confidence,
        message,
        name,
        owner or None,
        witness=witness,
        related=related,
        remedy=remedy,
    )


def defined(name: str, context: Context) -> Iterator[Ref]:
    """Every function or method of that name in the files at hand."""
    for path in context.index.holding(f"def {name}("):
        facts = context.index.facts(path)
        for qualname in facts.functions if facts is not None else ():
            if qualname.rsplit(".", 1)[-1] == name:
                yield Ref(path, qualname)


def questions(context: Context) -> tuple[str, ...]:
    """The predicates by which layers ask for the flags."""
    return tuple(flag.predicate for flag in context.policy.profile.flags if flag.predicate)


def asked_by_helper(context: Context) -> tuple[str, ...]:
    """The predicates that the helper asks, at first hand or not, down to what a launch option decides."""
    policy = context.policy
    if policy.helper is None or policy.helper.proposed:
        return ()
    names = atom_set(policy.helper.skips) | atom_set(policy.opened(policy.helper.skips))
    meaning = policy.profile.launch.meaning
    return tuple(sorted({m[1] for name in names if (m := _CALL.match(name)) is not None and meaning(name) is None}))


def unread(names: Iterable[str], context: Context) -> Iterator[Problem]:
    """Definitions of these predicates that are no boolean functions: nothing is said about them."""
    for ref in (ref for name in names for ref in defined(name, context)):
        facts = context.index.facts(ref.path)
        try:
            if facts is not None:
                facts.condition(ref.name)
        except NotBoolean as error:
            name = ref.name.rsplit(".", 1)[-1]
            message = f"`{name}` is not a boolean function: {error.what}; its copies and its twin are not compared"
            yield Problem(SkipReason.PREDICATE_NOT_BOOLEAN, ref.path, error.line, message, failed=False)


def line_of(ref: Ref, context: Context) -> tuple[int, str]:
    """The line of a function's header, and its text."""
    facts = context.index.facts(ref.path)
    line = facts.header(ref.name)[0] if facts is not None and ref.name in facts.functions else 1
    return line, facts.lines[line - 1] if facts is not None else ""


def told(state: State, formula: Formula) -> str:
    """A state in which a formula holds, as a reader would say it: what holds, and what must not."""
    values = dict(state.values)
    yes = state.true()
    no = tuple(
        name
        for name in sorted(atom_set(formula) & values.keys())
        if not values[name] and not _holds_with(formula, {**values, name: True})
    )
    parts = [f"{named(yes)} true"] if yes else []
    parts += [f"{named(no)} false"] if no else []
    return " and ".join(parts) or "no condition true"


def _holds_with(formula: Formula, values: dict[str, bool]) -> bool:
    return evaluate(formula, {name: values.get(name, False) for name in atom_set(formula)})


# --- examples

_COMMUNICATOR = '''\
"""Who may take the sum off a block."""

from engine.distributed import dp_reduce_scatter_tensor, dp_scatter, get_tp_group
from engine.layers.moe.utils import should_use_dp_reduce_scatterv


class Steps:
    @staticmethod
    def scatter(x, batch, allow_reduce_scatter=False):
{step}
        return x


class LayerCommunicator:
    def __init__(self, config, allow_reduce_scatter=False):
        self.allow_reduce_scatter = allow_reduce_scatter
        self.step = choose(config)

    def postprocess_layer(self, x, batch):
        return self.step(x=x, batch=batch, allow_reduce_scatter=self.allow_reduce_scatter)

    def should_use_reduce_scatter(self, batch):
{promise}
'''

BLOCK = experts(PAIR)


#: A step that sums as the helper relies on, wherever it scatters.
STEP = """
if should_use_dp_reduce_scatterv():
    get_tp_group().reduce_scatterv(x)
elif allow_reduce_scatter and batch.padding.is_max_len():
    dp_reduce_scatter_tensor(x)
else:
    dp_scatter(x)
"""


@later
def communicator(promise: str, step: str) -> str:
    """A communicator that promises a reduce-scatter by ``promise`` and runs it by ``step``."""
    return _COMMUNICATOR.format(
        promise=indent(cleandoc(promise), " " * 8),
        step=indent(cleandoc(step), " " * 8),
    )


def engine(name: str, utils: Piece = UTILS, layers: Piece = COMMUNICATOR, **more: Piece) -> Case:
    """A tree with one right model; ``more`` are further files below `engine/`, `/` written as `__`."""
    files: dict[str, Piece] = {
        "engine/layers/moe/utils.py": utils,
        "engine/layers/communicator.py": layers,
        "engine/models/pretend.py": model(BLOCK),
        **{f"engine/{path.replace('__', '/')}.py": text for path, text in more.items()},
    }
    return Case(name, lambda: {path: str(text) for path, text in files.items()})
