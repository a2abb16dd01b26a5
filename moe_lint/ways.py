"""The ways through a block: where its experts' output leaves it, and which reductions it went through before.

Followed are the block's own methods, and the functions of the tree that it hands the output to. A call that cannot be
followed ends a way: what it does with the output is not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from msgspec import Struct
from msgspec.structs import replace

from moe_lint.dataflow import Dataflow, Where, elements_at
from moe_lint.facts import CallResult, Exit, Experts, Origins, Param, Summed, element_of
from moe_lint.formula import (
    FALSE,
    TRUE,
    Atom,
    Formula,
    TooManyAtoms,
    assign,
    atom_set,
    conj,
    disj,
    exists,
    forall,
    negate,
    nests_too_deeply,
    replace_atoms,
)
from moe_lint.index import ProjectIndex, Ref
from moe_lint.launch import Configuration
from moe_lint.local_predicates import meaning
from moe_lint.model import Axis, Route, Span
from moe_lint.policy import Policy, bind
from moe_lint.profile import Profile, matches
from moe_lint.ranks import by_getters, group_of, may_be_one
from moe_lint.remembered import remembered
from moe_lint.sites import Site, is_ownership, is_skip_atom, owner_of

#: How many calls down from a block's `forward` its ways are followed.
_DEPTH = 5
#: Of more conditions that no option sets none is told.
_FREE = 4
#: A condition on the batch alone: `x is None`, `x.shape[0] > 1`.
_OF_THE_BATCH = re.compile(r" is None$|\.shape\b|\.size\(|\.numel\(")
#: Of a batch without tokens nothing can be lost.
_SOME_TOKENS = re.compile(r"(?:\.shape\[0\]|\.numel\(\)|\.size\(0\)) (?:> 0|!= 0)$")
_NO_TOKENS = re.compile(r"(?:\.shape\[0\]|\.numel\(\)|\.size\(0\)) == 0$")
#: What an option of the launch decides, of whatever name: `server_args.x`, `settings["x"]`, `self.experts.x`.
_OF_THE_LAUNCH = re.compile(r"args\b|config\b|settings\b|a2a|all2all|^self\.\w+\.")
#: What a function of the engine answers, compared with something: `get_mesh() is None`, `ranks(mesh, AXIS) > 1`. An
#: option that is not known.
_ANSWER = re.compile(r"(?<![\w.])(?!isinstance\(|len\(|getattr\()\w+\(.*\).* (?:is|in|[<>=!]=?) ")
_OWN = re.compile(r"self\.\w+$")
_NAME = re.compile(r"[A-Za-z_]\w*$")
_WORD = re.compile(r"\w+")


class Way(Struct, frozen=True):
    """A `return` on which a block hands on its experts' output, and when it does so without a sum over an axis.

    Of the functions that hand it on to each other it is that of the outermost which makes such sums on other ways.
    ``sums`` are the reductions over that axis that the output may have gone through, ``beside`` the others that the
    same function makes: what they return is not what leaves.
    """

    function: Ref
    exit: Span
    condition: Formula
    sums: tuple[Site, ...]
    beside: tuple[Site, ...]
    #: the function of the `return` makes sums over the axis, or calls what does nothing else: on other ways
    owns: bool


class _Left(Struct, frozen=True):
    """A value that leaves a function: its experts' output (None), or what it was given for a parameter.

    ``element`` is the part of that which is asked for, where it is handed on as it is.
    """

    param: str | None
    way: Way
    element: int | None = None


class _Asked(Struct, frozen=True):
    """What is looked for: the output of a block's experts, or of its layer ``attribute``, not summed over an axis."""

    owner: Ref
    axis: Axis
    attribute: str


class Ways:
    """Answers questions about the ways through the classes of a tree."""

    def __init__(self, index: ProjectIndex, policy: Policy, sites: Iterable[Site]) -> None:
        self.index = index
        self.policy = policy
        self.profile: Profile = index.profile
        self.dataflow = Dataflow(index)
        self.sites = {(site.path, site.raw.span): site for site in sites}
        self._left: dict[tuple[Ref, _Asked, int | None], tuple[_Left, ...]] = {}

    def blocks(self) -> Iterator[tuple[Ref, dict[Axis, Site]]]:
        """Every class that sums its experts' output on some way through `forward`, or is derived from one that does.

        With an axis goes one of the sums over it; with "other" one over a known group of other ranks. None in a tree in
        which nothing says who else could sum.
        """
        if self.policy.helper is None:
            return
        holders: dict[Ref, list[Site]] = {}
        for site in self.sites.values():
            if site.raw.class_name is not None and _is_of_block(site) and self.group(site) is not None:
                holders.setdefault(Ref(site.path, site.raw.class_name), []).append(site)
        for owner in sorted({one for holder in holders for one in (holder, *self.index.subclasses(holder))}):
            family = self.index.mro(owner)
            experts = any(self.profile.is_expert_constructor(ref.name) for ref in family)
            family = [] if experts or self.index.constructs_absorber(owner) else family
            own = [site for ref in family for site in holders.get(ref, ())]
            sums = next((found for ref in family if (found := self._summing(ref, own))), {})
            if sums:
                yield owner, sums

    def _summing(self, owner: Ref, sites: Iterable[Site]) -> dict[Axis, Site]:
        """Of some reductions, one for each axis that the `forward` of a class may run."""
        entry = self.index.method(owner, "forward")
        reached = self._reached(owner, entry, set()) if entry is not None else set()
        found: dict[Axis, Site] = {}
        for site in sites:
            if Ref(site.path, site.raw.function) in reached:
                found.setdefault(site.axis, site)
        return found

    def unsummed(self, owner: Ref, axis: Axis, attribute: str = "") -> Iterator[Way]:
        """The ways out of a block's `forward` on which nobody may have summed its experts' output over an axis.

        ``attribute``: that of another layer of the block, whose output is looked for in place of the experts'.
        """
        entry = self.index.method(owner, "forward")
        asked = _Asked(owner, axis, attribute)
        for left in self._leaving(entry, asked, None, ()) if entry is not None else ():
            if left.param is None:
                yield left.way

    def shown(self, way: Way, axis: Axis, collective: str = "", fewer: str = "") -> Configuration | None:
        """A configuration in which a way leaves without its sum although nobody else makes it; None where none is.

        ``collective`` is the one that would have summed over that axis; ``fewer`` a group over which somebody sums: it
        has fewer ranks then.
        """
        policy, launch = self.policy, self.profile.launch
        skips = disj(reason.formula for reason in policy.reasons(axis)) if policy.helper else FALSE
        lost = policy.opened(conj((policy.with_helper(way.condition), negate(skips))))
        group = launch.group_of(collective, axis)
        if fewer and group is not None:
            lost = conj((lost, Atom(f"{launch.spelled(fewer)} < {launch.spelled(group)}")))
        lost = replace_atoms(lost, {**self._no_backend(lost), **self._several(lost, group)})
        if lost == FALSE:
            return None
        found = policy.configuration(lost, axis, collective)
        others = [name for name in sorted(atom_set(lost)) if launch.meaning(name) is None]
        if found is None and len(others) > _FREE:
            try:
                return policy.configuration(exists(lost, others), axis, collective)
            except TooManyAtoms:
                return None
        return found

    def summed_before(self) -> Iterator[tuple[Site, Site, Configuration]]:
        """Every sum of experts' output of which a term was summed over the same ranks before: (again, before, when)."""
        for site in sorted(filter(_is_own, self.sites.values()), key=lambda site: (site.path, site.raw.span)):
            facts = self.index.facts(site.path)
            name = site.raw.function.removesuffix(".<lambda>")
            if facts is None or name != site.raw.function:
                continue
            for span, origins in facts.paths(name).summed:
                for before, holds in self._sums_in(origins, Ref(site.path, name)) if span == site.raw.span else ():
                    shown = self.again(site, before, holds) if before is not site else None
                    if shown is not None:
                        yield site, before, shown

    def _sums_in(self, origins: Origins, function: Ref) -> Iterator[tuple[Site, Formula]]:
        """The reductions that a value comes from, its own block's methods looked through, with their conditions."""
        yield from self._direct_sums(origins, function.path)
        class_name = function.name.rsplit(".", 1)[0] if "." in function.name else None
        for call in origins:
            if not isinstance(call, CallResult) or class_name is None or not call.callee.startswith("self."):
                continue
            method = self.index.method(Ref(function.path, class_name), call.callee[5:])
            facts = self.index.facts(method.path) if method is not None else None
            if method is None or facts is None:
                continue
            for out in facts.paths(method.name).exits:
                for inner in elements_at(out.elements, call.element):
                    for site, holds in self._direct_sums(inner, method.path):
                        yield site, conj((holds, out.condition))

    def _direct_sums(self, origins: Origins, path: str) -> Iterator[tuple[Site, Formula]]:
        for origin in origins:
            site = self.sites.get((path, origin.span)) if isinstance(origin, Summed) else None
            if site is not None:
                yield site, conj(part.formula for part in site.raw.guard)

    def again(self, site: Site, before: Site, holds: Formula, open: Iterable[str] = ()) -> Configuration | None:
        """A configuration in which both sum over the same ranks, whatever else they ask.

        ``open`` are conditions that may be such that both do.
        """
        if not self.same_ranks(site, before):
            return None
        guard = conj(part.formula for part in site.raw.guard)
        both = exists(conj((holds, guard)), sorted(open))
        facts = self.index.facts(site.path)
        params = facts.header(site.raw.function)[1] if facts is not None else ()
        told = {n for n in atom_set(both) if n in params or self.tells(n, site.path) or self._is_topology(n)}
        asked = sorted(atom_set(both) - told)
        # of a size that the class sets to one somewhere, what else the two ask may say that there it is
        first, second = atom_set(holds), atom_set(guard)
        apart = (first ^ second) - {*asked} if first - second and second - first else frozenset()
        asked += [name for name in sorted(apart) if may_be_one(name, owner_of(site), self.index)]
        try:
            certain = forall(both, asked)
            return self.policy.configuration(self.policy.with_helper(certain), before.axis, before.raw.collective)
        except TooManyAtoms:
            return None

    def _is_topology(self, atom: str) -> bool:
        """Whether a condition asks for several ranks, in an engine of which no options are known."""
        size, _, bound = atom.rpartition(" > ")
        return not self.profile.launch.sizes and bound.isdigit() and self.profile.is_size(size)

    # --- which functions run

    def _reached(self, owner: Ref, function: Ref, seen: set[Ref]) -> set[Ref]:
        """The block's methods that one of them calls, through each other."""
        if function not in seen:
            seen.add(function)
            facts = self.index.facts(function.path)
            calls = facts.function(function.name).calls if facts is not None else ()
            for callee in dict.fromkeys(call.callee for call in calls):
                method = self.index.method(owner, callee[5:]) if callee.startswith("self.") else None
                if method is not None:
                    self._reached(owner, method, seen)
        return seen

    # --- what leaves a function

    def _leaving(self, function: Ref, asked: _Asked, element: int | None, seen: tuple[Ref, ...]) -> tuple[_Left, ...]:
        key = (function, asked, element)
        if key not in self._left:
            facts = self.index.facts(function.path)
            known = facts is not None and function.name in facts.functions
            if not known or function in seen or len(seen) >= _DEPTH:
                return ()
            self._left[key] = tuple(dict.fromkeys(self._find_leaving(function, asked, element, (*seen, function))))
        return self._left[key]

    def _find_leaving(
        self, function: Ref, asked: _Asked, element: int | None, seen: tuple[Ref, ...]
    ) -> Iterator[_Left]:
        facts = self.index.facts(function.path)
        assert facts is not None
        paths = facts.paths(function.name)
        known = [self.sites.get((function.path, span)) for span, _ in paths.summed]
        inside = [site for site in known if site is not None and self._over(site, asked.axis)]
        every = frozenset(origin for out in paths.exits for origins in out.elements for origin in origins)
        owns = bool(inside) or self._sums_called(every, function, asked) != FALSE
        for out in paths.exits:
            for origins in elements_at(out.elements, element):
                if self._may_sum(origins, function, asked, seen):
                    continue  # over which ranks that sums is not known, nor when
                spans = set(_summed(origins))
                sums = tuple(site for site in inside if site.raw.span in spans)
                try:
                    called = self._sums_called(origins, function, asked)
                    condition = self._unsummed(function, asked.owner, out, sums, inside, called)
                except TooManyAtoms:
                    continue
                if condition == FALSE or nests_too_deeply(condition):
                    continue
                beside = tuple(site for site in inside if site not in sums and site.raw.span < out.span)
                way = Way(function, out.span, condition, sums, beside, owns)
                part = element if len(out.elements) == 1 else None
                yield from self._sources(origins, way, asked, seen, part)

    def _may_sum(self, origins: Origins, function: Ref, asked: _Asked, seen: tuple[Ref, ...]) -> bool:
        """Whether a value may have been summed by what is not known: by a call that cannot be followed, for one."""
        for origin in origins:
            if isinstance(origin, Summed):
                if (function.path, origin.span) not in self.sites:
                    return True
            elif isinstance(origin, CallResult) and self._is_given_output(origin, function, asked):
                targets = self._callees(origin.callee, function, asked)
                if not targets and not self._is_of_a_library(origin.callee, function.path):
                    return True
                if any(self._may_sum_inside(target, asked, seen) for target in targets):
                    return True
        return False

    def _is_given_output(self, call: CallResult, function: Ref, asked: _Asked) -> bool:
        """Whether a call is given what the experts (or the layer asked for) returned.

        What they and shared experts are given is a new start.
        """
        where = Where(function.path, asked.owner.name, function.name)
        layer = f"self.{asked.attribute}"
        shared = call.callee.startswith("self.") and matches(call.callee[5:], self.profile.shared)
        if shared or call.callee == layer or self.dataflow.is_run(call, where):
            return False
        routed = not asked.attribute
        return any(
            (routed and isinstance(origin, Experts))
            or (
                isinstance(origin, CallResult)
                and (
                    origin.callee == layer
                    or (routed and self.dataflow.is_run(origin, where))
                    or self._method(origin.callee, asked) is not None
                    or self._is_given_output(origin, function, asked)
                )
            )
            for origin in call.inputs
        )

    def _may_sum_inside(self, function: Ref, asked: _Asked, seen: tuple[Ref, ...]) -> bool:
        facts = self.index.facts(function.path)
        if facts is None or function.name not in facts.functions or function in seen or len(seen) >= _DEPTH:
            return False
        exits = facts.paths(function.name).exits
        return any(self._may_sum(o, function, asked, (*seen, function)) for out in exits for o in out.elements)

    def _is_of_a_library(self, callee: str, path: str) -> bool:
        """Whether a function is imported from outside the tree (`torch.cat`): a sum among these is told by its name."""
        facts = self.index.facts(path)
        module, _ = facts.imports.get(callee.partition(".")[0], ("", None)) if facts is not None else ("", None)
        return bool(module) and self.index.module_path(module, path) is None

    def same_ranks(self, site: Site, before: Site) -> bool:
        """Whether two reductions sum over the same ranks, or one over some of the other's."""
        shared = self._over(before, site.axis) or self._over(site, before.axis)
        return shared and before.axis != "other"

    def _over(self, site: Site, axis: Axis) -> bool:
        """Whether a reduction sums over an axis, or over all ranks."""
        if site.axis == axis or site.raw.collective in self.profile.wrappers:
            return True
        return self._tells_groups_apart and self.group(site) == self.profile.launch.group_of("", "TP")

    def group(self, site: Site) -> str | None:
        """The size of the group that a reduction sums over."""
        return group_of(site.raw, self.profile)

    def leaves_out_an_axis(self, sums: Mapping[Axis, Site]) -> bool:
        """Whether a block's sums are over the ranks that share an expert only: other experts are on other ranks."""
        whole = self.profile.launch.group_of("", "TP")
        groups = [self.group(site) for site in sums.values()]
        wrapped = any(site.raw.collective in self.profile.wrappers for site in sums.values())
        return "EP" not in sums and whole not in groups and not wrapped

    @cached_property
    def _tells_groups_apart(self) -> bool:
        """Whether the tree has a sum over the ranks that share an expert: else the one over all TP ranks is that."""
        profile = self.profile
        whole = profile.launch.group_of("", "TP")
        narrow = [n for n, axis in profile.collectives.items() if axis == "TP"]
        return any(profile.launch.group_of(n, "TP") != whole and self.index.holding(f"def {n}(") for n in narrow)

    def _sums_called(self, origins: Origins, function: Ref, asked: _Asked) -> Formula:
        """When a function has a value summed by a method or function that does nothing but sum what it is given."""
        facts, body = self.index.facts(function.path), self.index.function(function)
        found: list[Formula] = []
        for callee in sorted({origin.callee for origin in origins if isinstance(origin, CallResult)}):
            targets = self._callees(callee, function, asked)
            if facts is not None and body is not None and len(targets) == 1 and self._always_sums(targets[0], asked):
                spans = {call.span for call in body.calls if call.callee == callee}
                found += [facts.call_condition(function.name, span) for span in sorted(spans)]
        return disj(found)

    @cached_property
    def _unguarded(self) -> Mapping[Ref, list[Site]]:
        """Function -> its reductions without a guard."""
        found: dict[Ref, list[Site]] = {}
        for site in self.sites.values():
            if not site.raw.guard:
                found.setdefault(Ref(site.path, site.raw.function), []).append(site)
        return found

    def _always_sums(self, function: Ref, asked: _Asked) -> bool:
        spans = {site.raw.span for site in self._unguarded.get(function, ()) if self._over(site, asked.axis)}
        facts = self.index.facts(function.path) if spans else None
        exits = facts.paths(function.name).exits if facts is not None else ()
        return bool(exits) and all(spans & set(_summed(origins)) for out in exits for origins in out.elements)

    def _unsummed(
        self, function: Ref, owner: Ref, out: Exit, sums: Iterable[Site], inside: Iterable[Site], called: Formula
    ) -> Formula:
        """When a `return` is reached and none of some reductions, of those that the function makes, ran before.

        ``called`` is when what it calls sums. What the caller decides (a parameter, who owns the sum) is as the caller
        leaves it by default, or such that the reductions run; so are switches of the block (`self.fast`), and what is
        not known to be a condition on the batch, on the launch or on the platform. The batch holds tokens, and no a2a
        backend is in use: its combine may have summed.
        """
        facts = self.index.facts(function.path)
        assert facts is not None
        _, params, defaults = facts.header(function.name)
        class_name = owner.name if "." in function.name else None
        reached = by_getters(meaning(out.condition, class_name, function.path, self.index), owner, self.index)
        guards = [called, *(conj(part.formula for part in site.raw.guard) for site in sums)]
        runs = disj(by_getters(guard, owner, self.index) for guard in guards)
        made = disj(conj(part.formula for part in site.raw.guard) for site in inside) if runs == FALSE else runs
        # a flag may have another name here
        own = [name for name in params if name != "self" and name not in self.profile.flag_names]
        left = {name: TRUE if given else FALSE for name in own if (given := defaults.get(name)) is not None}
        reached, runs = bind(reached, left, self.profile), bind(runs, left, self.profile)
        reached = replace_atoms(reached, self._no_backend(reached))
        if reached == FALSE:
            return FALSE
        for name in sorted(atom_set(reached) | atom_set(runs)):
            default = defaults.get(name)
            if name in self.profile.flag_names:
                continue
            if _SOME_TOKENS.search(name) or _NO_TOKENS.search(name):
                value = TRUE if _SOME_TOKENS.search(name) else FALSE
            elif default is not None:
                value = TRUE if default else FALSE
            elif is_ownership(name, self.profile):
                value = TRUE if made == FALSE or assign(made, name, TRUE) != FALSE else FALSE
            else:
                continue
            reached, runs = assign(reached, name, value), assign(runs, name, value)
        unknown = [
            name
            for name in sorted(atom_set(runs))
            if not self.tells(name, function.path) or self._asks_for_one_rank(name, runs)
        ]
        unsummed = conj((reached, negate(exists(runs, unknown))))
        decided = [
            name
            for name in sorted(atom_set(unsummed) - {*params, *self.profile.flag_names})
            if _OWN.match(name) is not None or self._may_choose(name, function.path)
        ]
        unsummed = forall(unsummed, decided)
        for name in own:
            told = [atom for atom in atom_set(unsummed) if atom == name or self._hands_on(atom, name)]
            if told:
                unsummed = conj(
                    replace_atoms(unsummed, {atom: bind(Atom(atom), {name: value}, self.profile) for atom in told})
                    for value in (TRUE, FALSE)
                )
        return unsummed

    def _hands_on(self, atom: str, name: str) -> bool:
        """Whether a condition is a question to the helper that is handed a parameter."""
        return name in _WORD.findall(atom) and bool(self.policy.helper_calls(Atom(atom)))

    def _no_backend(self, formula: Formula) -> dict[str, Formula]:
        """What the questions about the a2a backend in a formula are worth where none is in use."""
        getter = self.profile.backend_getter
        none = f"{getter}.is_none()"
        names = atom_set(formula)
        asked = {name for name in names if getter and name.startswith(f"{getter}.")}
        return {name: TRUE if name == none else FALSE for name in sorted(asked | (names & self._backend_questions))}

    @cached_property
    def _backend_questions(self) -> frozenset[str]:
        """The tree's own questions whether one of some a2a backends is in use."""
        return frozenset(f"{name}()" for name in self.policy.backend_classes())

    def _several(self, formula: Formula, group: str | None) -> dict[str, Formula]:
        """What the questions about the size of a group are worth where there is something to sum over it."""
        launch = self.profile.launch
        told = {name: launch.among_several(name, group) for name in atom_set(formula)} if group is not None else {}
        return {name: TRUE if value else FALSE for name, value in told.items() if value is not None}

    @remembered
    def tells(self, atom: str, path: str) -> bool:
        """Whether a condition of a reduction says something about the batch, the launch, the platform or the layer."""
        policy = self.policy
        return (
            bool(policy.helper_calls(Atom(atom)))
            or is_skip_atom(atom, self.profile)
            or self.profile.launch.meaning(atom) is not None
            or atom in policy.delegates
            or (_OF_THE_BATCH.search(atom) is not None and _ANSWER.match(atom) is None)
            or self._is_constant(atom, path)
        )

    @remembered
    def _may_choose(self, atom: str, path: str) -> bool:
        """Whether an option that is not known may decide a condition: it may be one that has an a2a backend sum."""
        if self.tells(atom, path):
            return False
        found = (_NAME.match(atom), _OF_THE_LAUNCH.search(atom), _ANSWER.match(atom))
        spelled = any(one is not None for one in found)
        return spelled or any(name in atom for name in self.policy.backend_names)

    def _asks_for_one_rank(self, atom: str, runs: Formula) -> bool:
        """Whether reductions run only where a group has a single rank: with more, somebody else has summed."""
        return self.profile.is_size(atom.rpartition(" > ")[0]) and assign(runs, atom, TRUE) == FALSE

    def _is_constant(self, atom: str, path: str) -> bool:
        """Whether an atom is a name that its file assigns once and for all (`_is_cuda`)."""
        facts = self.index.facts(path) if _NAME.match(atom) is not None else None
        return facts is not None and bool(facts.finds("", rf"^{atom} *(?::[^=\n]+)?=(?!=)"))

    # --- where what leaves comes from

    def _sources(
        self, origins: Origins, way: Way, asked: _Asked, seen: tuple[Ref, ...], element: int | None
    ) -> Iterator[_Left]:
        for origin in sorted(origins, key=repr):
            if isinstance(origin, Param):
                yield _Left(origin.name, way, element)
            elif isinstance(origin, CallResult):
                yield from self._called(origin, way, asked, seen)
            elif isinstance(origin, Experts) and not asked.attribute:
                yield _Left(None, way)

    def _called(self, call: CallResult, way: Way, asked: _Asked, seen: tuple[Ref, ...]) -> Iterator[_Left]:
        where = Where(way.function.path, asked.owner.name, way.function.name)
        last = call.callee.rsplit(".", 1)[-1]
        experts = self.dataflow.is_run(call, where) and self._method(call.callee, asked) is None
        routed = experts and not asked.attribute and not self.dataflow.is_shared(call)
        if call.callee == f"self.{asked.attribute}" or (routed and not matches(last, self.profile.combines)):
            yield _Left(None, way)
            return
        if experts and (asked.attribute or self.dataflow.is_shared(call)):
            return  # what is handed to the experts is another quantity
        for target in self._callees(call.callee, way.function, asked):
            for left in self._leaving(target, asked, call.element, seen):
                inner = left.way
                both = conj((way.condition, inner.condition))
                if both == FALSE or nests_too_deeply(both):
                    continue
                place = way if way.owns else inner
                sums, beside = (*inner.sums, *way.sums), (*inner.beside, *way.beside)
                joined = replace(place, condition=both, sums=sums, beside=beside)
                if left.param is None:
                    yield _Left(None, joined)
                else:
                    through = replace(way, condition=both, sums=sums, beside=beside)
                    handed = self.dataflow.handed(call, way.function, target, (left.param,))
                    yield from self._sources(element_of(handed, left.element), through, asked, seen, left.element)

    def _method(self, callee: str, asked: _Asked) -> Ref | None:
        """The block's own method of that name."""
        return self.index.method(asked.owner, callee[5:]) if callee.startswith("self.") else None

    def _callees(self, callee: str, function: Ref, asked: _Asked) -> list[Ref]:
        method = self._method(callee, asked)
        if method is not None:
            return [method]
        facts = self.index.facts(function.path)
        nested = f"{function.name}.{callee}"
        if facts is not None and nested in facts.functions:
            return [Ref(function.path, nested)]
        class_name = function.name.rsplit(".", 1)[0] if "." in function.name else None
        return [target.function for target in self.index.targets(function.path, class_name, callee)]


def _is_own(site: Site) -> bool:
    """Whether a reduction sums what its own block's experts returned over an axis, so that the block hands that on."""
    return site.axis != "other" and _is_of_block(site)


def _is_of_block(site: Site) -> bool:
    elsewhere = site.route in (Route.DEFERRED, Route.KEPT, Route.OWNED) or site.raw.shape == "consumed"
    return site.post_experts and not elsewhere


def _summed(origins: Origins) -> Iterator[Span]:
    """The reductions that a value went through, anywhere on its way."""
    for origin in origins:
        if isinstance(origin, Summed):
            yield origin.span
        elif isinstance(origin, CallResult):
            yield from _summed(origin.inputs)
