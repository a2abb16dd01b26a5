"""Whether a sabotaged file decides as before: by the truth tables of its guards, not by running it."""

from __future__ import annotations

from dataclasses import dataclass

from moe_lint.analysis import Tree, analyse
from moe_lint.formula import FALSE, Formula, TooManyAtoms, atom_set, conj, disj, negate, satisfiable, substitute
from moe_lint.sites import Site
from tests.mutation.operators import Mutant


@dataclass(frozen=True, slots=True)
class Argument:
    """``equal``: the mutant cannot be told from the original; ``why`` says so, or how it can be told."""

    equal: bool
    why: str


def argue(tree: Tree, sites: list[Site], mutant: Mutant) -> Argument:
    """Compare a mutant with its tree.

    Args:
        sites: the places of the mutant.
    """
    site = sites[mutant.site]
    if site.absorber is False:
        return _without_absorber(tree, site, mutant)
    if not mutant.decides:
        return _told([(site, guard_of(site, tree))], tree, "the reduction never runs")
    root = _root(tree)
    changed = analyse(root, tree.index.known_paths, tree.policy.profile, {site.path: mutant.text})
    olds, news = _of_function(tree, site), _of_function(changed, site)
    if len(olds) != len(news):
        return Argument(False, "another number of reductions")
    differences = [
        (old, _either(guard_of(old, tree), guard_of(new, changed))) for old, new in zip(olds, news, strict=True)
    ]
    return _told(differences, tree, "the guards have one truth table")


def _without_absorber(tree: Tree, site: Site, mutant: Mutant) -> Argument:
    """No layer around the block takes sums over: none of the helper's reasons can arise there."""
    helper = tree.policy.helper
    assert helper is not None

    def alone(one: Site) -> Formula:
        guard = conj(part.formula for part in one.raw.guard)
        return substitute(guard, lambda name: FALSE if name.startswith(f"{helper.name}(") else None)

    if not mutant.decides:
        return _told([(site, alone(site))], tree, "the reduction never runs")
    changed = analyse(_root(tree), tree.index.known_paths, tree.policy.profile, {site.path: mutant.text})
    both = zip(_of_function(tree, site), _of_function(changed, site), strict=True)
    found = _told(
        [(old, _either(alone(old), alone(new))) for old, new in both], tree, "the guards have one truth table"
    )
    return Argument(found.equal, f"no layer around the block absorbs, so the helper never skips: {found.why}")


def guard_of(site: Site, tree: Tree) -> Formula:
    """When a site reduces, its group's size included: the helper and all predicates opened."""
    guard = conj(part.formula for part in site.raw.guard)
    return tree.policy.opened(tree.policy.with_helper(guard))


def _told(differences: list[tuple[Site, Formula]], tree: Tree, never: str) -> Argument:
    policy, launch = tree.policy, tree.policy.profile.launch
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
