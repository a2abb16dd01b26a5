"""What a rule is: a code, a name, prose, cases, and one pure method over the judged sites."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import ClassVar

from msgspec import Struct

from moe_lint.callers import Callers
from moe_lint.formula import FALSE, TRUE, Relation, assign, atom_set, conj, disj, satisfiable
from moe_lint.index import ProjectIndex
from moe_lint.model import Confidence, Finding, FixPlan, Problem, Related, Severity
from moe_lint.policy import Policy
from moe_lint.sites import Site, deciding_part
from moe_lint.ways import Ways


class Wrapper(Struct, frozen=True):
    """A sanctioned function that does the guarded reduction itself. One that takes flags must be told them."""

    name: str
    path: str
    takes_flags: bool
    #: a method of the class that also answers the helper's question
    method: bool = False


class Context(Struct, frozen=True, dict=True):
    """Everything a rule may look at."""

    index: ProjectIndex
    policy: Policy
    sites: tuple[Site, ...]

    def judged(self) -> Iterable[Site]:
        """The post-experts sites that were compared with the helper."""
        return (site for site in self.sites if site.post_experts and site.comparison is not None)

    def groups(self) -> Iterable[list[Site]]:
        """The judged sites, class by class; of a function outside of one, those in it."""
        found: dict[tuple[str, str], list[Site]] = {}
        for site in self.judged():
            found.setdefault((site.path, site.raw.class_name or site.raw.function), []).append(site)
        return found.values()

    @cached_property
    def callers(self) -> Callers:
        """Who calls whom, from the layers down."""
        return Callers(self.index, self.policy, self.sites)

    @cached_property
    def ways(self) -> Ways:
        """The ways through the blocks, and what is summed on them."""
        return Ways(self.index, self.policy, self.sites)

    @cached_property
    def wrappers(self) -> Mapping[str, Wrapper]:
        """Collective -> the tree's wrapper that runs it under exactly the helper's condition, and does nothing else."""
        found: dict[str, Wrapper] = {}
        for name in self.policy.profile.wrappers:
            helper = self.policy.helper
            owner = helper.owner if helper is not None else None
            function = f"{owner}.{name}" if owner is not None else name
            inside = [s for s in self.sites if s.raw.class_name == owner and s.raw.function == function]
            facts = self.index.facts(inside[0].path) if len(inside) == 1 else None
            if facts is None or inside[0].relation is not Relation.EQUAL:
                continue
            _, params, defaults = facts.header(function)
            given = params[1 + (owner is not None) :]
            if all(param in defaults for param in given):
                wrapper = Wrapper(name, inside[0].path, takes_flags=bool(given), method=owner is not None)
                found.setdefault(inside[0].raw.collective, wrapper)
        return found

    @cached_property
    def pair_wrappers(self) -> Mapping[frozenset[str], Wrapper]:
        """The collectives of an EP/TP pair -> the tree's wrapper that runs both, each as the helper says for its axis.

        A further collective inside, for both axes at once, counts for each of them.
        """
        found: dict[frozenset[str], Wrapper] = {}
        for name in self.policy.profile.wrappers:
            inside = [s for s in self.sites if s.raw.class_name is None and s.raw.function == name]
            facts = self.index.facts(inside[0].path) if inside else None
            if facts is None or len(facts.header(name)[1]) != 1 or any(s.comparison is None for s in inside):
                continue
            last = {site.axis: site for site in inside}
            if {*last} != {"EP", "TP"} or len({site.path for site in inside}) > 1:
                continue
            both = [site for site in inside if site not in last.values()]
            if all(self._as_helper([one, *both]) for one in last.values()):
                pair = frozenset(site.raw.collective for site in last.values())
                found.setdefault(pair, Wrapper(name, inside[0].path, takes_flags=False))
        return found

    def _as_helper(self, sites: Sequence[Site]) -> bool:
        """Whether just one of the reductions runs where the helper does not skip, whatever else they depend on."""
        first, policy = sites[0], self.policy
        guards = [site.guard for site in sites]
        exclusive = all(
            not satisfiable(conj((one, other))) for n, one in enumerate(guards) for other in guards[n + 1 :]
        )
        known = atom_set(policy.skips(first.axis)) | {a for g in guards for a in policy.helper_calls(g)}
        open_cases = [disj(guards)]
        for name in sorted(atom_set(open_cases[0]) - known):
            open_cases = [assign(case, name, value) for case in open_cases for value in (TRUE, FALSE)]
        return exclusive and all(
            policy.judge(case, first.axis, first.known_flags).relation is Relation.EQUAL for case in open_cases
        )


class Case(Struct, frozen=True, dict=True):
    """An example: files of a small tree. A line that ends in ``# <- CODE`` is where the rule must report.

    ``written`` may write them down when they are read: a run has no use for examples.
    """

    name: str
    written: Mapping[str, str] | Callable[[], Mapping[str, str]]

    @cached_property
    def files(self) -> Mapping[str, str]:
        return self.written() if callable(self.written) else self.written


class Rule:
    """A rule. The class docstring is its documentation: what it finds, why that is wrong, an example, the fix."""

    code: ClassVar[str] = ""
    name: ClassVar[str] = ""
    severity: ClassVar[Severity] = Severity.ERROR
    confidence: ClassVar[Confidence] = Confidence.HIGH
    #: it may speak once a guard has been rewritten, of what was wrong before: what kept it silent was the guard
    follows: ClassVar[bool] = False
    VALID: ClassVar[tuple[Case, ...]] = ()
    INVALID: ClassVar[tuple[Case, ...]] = ()

    @property
    def on_by_default(self) -> bool:
        return self.confidence is not Confidence.LOW

    @property
    def documentation(self) -> str:
        return inspect.cleandoc(type(self).__doc__ or "")

    @property
    def summary(self) -> str:
        return self.documentation.partition("\n\n")[0].replace("\n", " ")

    def check(self, context: Context) -> Iterable[Finding]:
        """The findings in a tree. Looks at values only; reads no file."""
        raise NotImplementedError

    def unjudged(self, context: Context) -> Iterable[Problem]:
        """What the rule had to leave out, so that its silence is not taken for approval."""
        return ()

    def finding(
        self,
        site: Site,
        message: str,
        context: Context,
        *,
        severity: Severity | None = None,
        witness: str | None = None,
        remedy: str | None = None,
        fix: FixPlan | str | None = None,
        related: tuple[Related, ...] = (),
    ) -> Finding:
        """A finding at a site, with the helper's definition as a related place; ``fix``: a plan, or why not."""
        helper = context.policy.helper
        guard = deciding_part(site, context.policy.profile)
        place: tuple[Related, ...] = ()
        if helper is not None and not helper.proposed:
            place = (Related(helper.path, helper.line, f"`{helper.name}` decides here"),)
        return Finding(
            self.code,
            self.name,
            site.path,
            site.raw.span,
            severity or self.severity,
            self.confidence,
            message,
            site.raw.function.rsplit(".", 1)[-1] if site.raw.class_name is None else short_name(site),
            site.raw.class_name,
            site.relation.value if site.relation is not None else None,
            witness,
            guard.span if guard is not None else None,
            (*related, *place),
            remedy,
            fix if isinstance(fix, FixPlan) else None,
            subject(site),
            fix if isinstance(fix, str) else None,
        )


def subject(site: Site) -> str:
    """A site without its position: the reduction and every condition above it, in normalised spelling."""
    conditions = (part.text if part.polarity else f"not ({part.text})" for part in site.raw.guard)
    return " | ".join((*conditions, site.raw.collective))


def short_name(site: Site) -> str:
    """The function's name inside its class."""
    return site.raw.function.removeprefix(f"{site.raw.class_name}.")
