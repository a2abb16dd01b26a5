"""Groups of ranks: whose size a condition asks, and over which a reduction sums.

`self.tp_size` is a name: which group it is the size of, the class says where it sets it.
"""

from __future__ import annotations

import re

from moe_lint.facts import RawSite
from moe_lint.formula import Atom, Formula, substitute
from moe_lint.index import ProjectIndex, Ref
from moe_lint.profile import Profile
from moe_lint.remembered import remembered

_ASKED = re.compile(r"self\.(\w+)( [<>=!]+ \d+)$")
#: A value that may be one rank although the group has several: `= 1`, `= 1 if ep_size > 1 else tp_size`.
_ONE = re.compile(r"= *(?:1$|1 if\b)|\belse 1$")


def group_of(raw: RawSite, profile: Profile) -> str | None:
    """The size of the group that a reduction sums over: by its name, by the group that it is called on, or its axis."""
    launch = profile.launch
    named = dict(launch.groups).get(raw.group or "") if raw.collective not in profile.collectives else None
    return named or launch.group_of(raw.collective, raw.axis)


def by_getters(formula: Formula, owner: Ref, index: ProjectIndex) -> Formula:
    """A condition of a class in which its attributes that are sizes are what its methods set them to."""

    def value(atom: str) -> Formula | None:
        asked = _ASKED.match(atom)
        size = _set_to(index, owner, asked[1]) if asked is not None else None
        return Atom(f"{size}{asked[2]}") if asked is not None and size is not None else None

    return substitute(formula, value)


def may_be_one(atom: str, owner: Ref, index: ProjectIndex) -> bool:
    """Whether a condition asks the size of a group of an attribute that its class sets to one rank somewhere.

    `if self.ep_size > 1: self.tp_size = 1`: what the group's option says, the attribute does not.
    """
    asked = _ASKED.match(atom)
    return asked is not None and any(_ONE.search(text) for text in _settings(index, owner, asked[1]))


@remembered
def _set_to(index: ProjectIndex, owner: Ref, attribute: str) -> str | None:
    """The size that ``self.attribute`` is set to, wherever it is set; None where that is not one known size."""
    found = _settings(index, owner, attribute)
    size = next(iter(found)).removeprefix("= ") if len(found) == 1 else ""
    return size if re.fullmatch(r"[\w.]+(?:\(\))?(?:\.\w+)*", size) and index.profile.launch.size_of(size) else None


def _settings(index: ProjectIndex, owner: Ref, attribute: str) -> frozenset[str]:
    """The text behind ``self.attribute``, from the `=` on, wherever a class sets it."""
    found = set[str]()
    for ref in index.mro(owner):
        facts = index.facts(ref.path)
        if facts is not None and ref.name in facts.classes:
            setting = rf"\bself\.{attribute}\b(?:: *[\w.]+)? *([-+*/%]*=(?!=)[^\n#]*)"
            found.update(map(str.strip, facts.finds(ref.name, setting)))
    return frozenset(found)
