"""Whether a sabotaged file decides as before: by the truth tables of its guards, not by running it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from moe_lint.analysis import Tree, analyse
from moe_lint.formula import FALSE, Formula, TooManyAtoms, atom_set, conj, disj, negate, satisfiable, substitute
from moe_lint.launch import Space
from moe_lint.sites import Site
from reference_runtime.topology import Topology
from tests.mutation.operators import Mutant


@dataclass(frozen=True, slots=True)
class Argument:
    """``equal``: the mutant cannot be told from the original; ``why`` says so, or how it can be told."""

    equal: bool
    why: str


@dataclass(frozen=True, slots=True)
class Refused:
    """FP4 layouts that the engine cannot run, as the run showed, among those of up to some ranks; and its reason."""

    layouts: tuple[Topology, ...]
    ranks: int
    why: str

    def narrow(self, launch: Space) -> Space:
        """Without the refused configurations, and without those that were not run."""
        refused = [
            f"not (fp4 and tp == {layout.tp} and ep == {layout.ep} and attn_dp == {layout.dp})"
            for layout in self.layouts
        ]
        return msgspec.structs.replace(launch, constraints=(*launch.constraints, f"tp <= {self.ranks}", *refused))


def argue(tree: Tree, sites: list[Site], mutant: Mutant, refused: Refused | None = None) -> Argument:
    """Compare a mutant with its tree.

    Args:
        sites: the places of the mutant.
        refused: what the engine does not run although the options could be typed.
    """
    launch = tree.policy.profile.launch
    found = _argued(tree, sites, mutant, launch)
    if found.equal or refused is None or not _argued(tree, sites, mutant, refused.narrow(launch)).equal:
        return found
    return Argument(True, f"of up to {refused.ranks} ranks only {found.why} shows it, which cannot run: {refused.why}")


def _argued(tree: Tree, sites: list[Site], mutant: Mutant, launch: Space) -> Argument:
    site = sites[mutant.site]
    if site.absorber is False:
        return _without_absorber(tree, site, mutant, launch)
    if not mutant.decides:
        return _told([(site, guard_of(site, tree))], tree, launch, "the reduction never runs")
    root = _root(tree)
    changed = analyse(root, tree.index.known_paths, tree.policy.profile, {site.path: mutant.text})
    olds, news = _of_function(tree, site), _of_function(changed, site)
    if len(olds) != len(news):
        return Argument(False, "another number of reductions")
    differences = [
        (old, _either(guard_of(old, tree), guard_of(new, changed))) for old, new in zip(olds, news, strict=True)
    ]
    return _told(differences, tree, launch, "the guards have one truth table")


def _without_absorber(tree: Tree, site: Site, mutant: Mutant, launch: Space) -> Argument:
    """No layer around the block takes sums over: none of the helper's reasons can arise there."""
    helper = tree.policy.helper
    assert helper is not None

    def alone(one: Site) -> Formula:
        guard = conj(part.formula for part in one.raw.guard)
        return substitute(guard, lambda name: FALSE if name.startswith(f"{helper.name}(") else None)

    if not mutant.decides:
        return _told([(site, alone(site))], tree, launch, "the reduction never runs")
    changed = analyse(_root(tree), tree.index.known_paths, tree.policy.profile, {site.path: mutant.text})
    both = zip(_of_function(tree, site), _of_function(changed, site), strict=True)
    found = _told(
        [(old, _either(alone(old), alone(new))) for old, new in both], tree, launch, "the guards have one truth table"
    )
    return Argument(found.equal, f"no layer around the block absorbs, so the helper never skips: {found.why}")


def guard_of(site: Site, tree: Tree) -> Formula:
    """When a site reduces, its group's size included: the helper and all predicates opened."""
    guard = conj(part.formula for part in site.raw.guard)
    return tree.policy.opened(tree.policy.with_helper(guard))


def _told(differences: list[tuple[Site, Formula]], tree: Tree, launch: Space, never: str) -> Argument:
    policy = tree.policy
    try:
        possible = [(s, d) for s, d in differences if satisfiable(conj((d, policy.feasible(atom_set(d)))))]
        if not possible:
            return Argument(True, never)
        for site, difference in possible:
            group = launch.group_of(site.raw.collective, site.axis)  # a sum over one rank is none
            shown = launch.find(difference, () if group is None else (group,))
            if shown is not None:
                return Argument(False, str(shown))
    except TooManyAtoms as error:
        return Argument(False, str(error))
    return Argument(True, "no launch configuration shows a difference")


def _either(one: Formula, other: Formula) -> Formula:
    return disj((conj((one, negate(other))), conj((negate(one), other))))


def _of_function(tree: Tree, like: Site) -> list[Site]:
    return [s for s in tree.sites if (s.path, s.raw.function) == (like.path, like.raw.function)]


def _root(tree: Tree) -> str:
    return min(tree.index.known_paths, key=len)
