"""Whom the layers around a block tell to sum: the block, by an argument of its constructor, or their boundary."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import PurePath

from msgspec import Struct

from moe_lint.callers import Callers, Instance
from moe_lint.formula import FALSE, TRUE, Formula, assign, atom_set
from moe_lint.index import ProjectIndex, Ref
from moe_lint.model import Span
from moe_lint.sites import Site, is_ownership


class Builder(Struct, frozen=True):
    """A class that builds a block: whether it tells the block to sum, and whether a boundary may sum for it.

    ``name`` is that of its file where the class is not seen.

    ``sums`` and ``boundary`` are None where that is not known, and so is ``built``: the file, and the call there.
    """

    name: str
    argument: str
    sums: bool | None
    boundary: bool | None
    built: tuple[str, Span] | None = None
    #: the value of the argument
    value: bool | None = None

    @property
    def open(self) -> str | None:
        """Why it is not plain who sums; None where just one of the two does."""
        if self.sums is None:
            return f"`{self.name}` does not say by a constant whether it builds this block with `{self.argument}`"
        told = f"`{self.name}` builds this block with `{self.argument}={self.value}`"
        if self.boundary is None:
            return f"{told}, and no layer around it was found"
        if self.sums and self.boundary:
            return f"{told} behind a layer boundary, and whether that leaves the sum to the block is not seen"
        if not self.sums and not self.boundary:
            return f"{told} without a layer boundary, and who sums then is not seen"
        return None


def builders(site: Site, callers: Callers) -> list[Builder]:
    """Whoever builds the block of a site that runs only if the block is told to sum. None are known: an empty list."""
    index, owner = callers.index, site.raw.class_name
    names = [n for n in sorted(atom_set(site.guard)) if n.startswith("self.") and is_ownership(n, index.profile)]
    if owner is None or len(names) != 1 or index.profile.is_expert_constructor(owner):
        return []
    block = Ref(site.path, owner)
    found = dict.fromkeys(_builders(block, names[0], site.guard, callers))
    return sorted(found, key=lambda one: (one.name, one.built or ("", Span(0, 0, 0, 0))))


def _builders(block: Ref, attribute: str, guard: Formula, callers: Callers) -> Iterator[Builder]:
    index = callers.index
    for kind in (block, *index.subclasses(block)):
        calls = dict.fromkeys(_calls(kind, index))
        for user in sorted(index.users(kind)):
            boundary = True if index.constructs_absorber(user) else index.has_absorber(user)
            for built in (b for several in callers.built(user).values() for b in several if b.owner == kind):
                value = dict(callers.instance(built, Instance(user)).fixed).get(attribute)
                told = _truth(value)
                sums = assign(guard, attribute, TRUE if told else FALSE) != FALSE if told is not None else None
                place = (built.path, built.call.span)
                yield Builder(user.name, attribute.removeprefix("self."), sums, boundary, place, told)
                calls.pop((built.path, built.call.span.line), None)
        for path, _ in calls:
            yield Builder(PurePath(path).name, attribute.removeprefix("self."), None, None)


def _calls(kind: Ref, index: ProjectIndex) -> Iterator[tuple[str, int]]:
    """The lines that call a class by its name."""
    for path in index.holding(kind.name):
        lines = index.lines_that(path, f"call the class {kind.name}", partial(_calling, kind.name, index, path))
        yield from ((path, line) for line in lines)


def _calling(name: str, index: ProjectIndex, path: str) -> Iterator[int]:
    called = re.compile(rf"(?<!class )\b{re.escape(name)}\(")
    for line in index.lines_of(path, name, whole=True):
        if called.search(index.line(path, line)) is not None:
            yield line


def _truth(value: Formula | None) -> bool | None:
    return {TRUE: True, FALSE: False}.get(value) if value is not None else None
