"""Which findings a change touches: those whose verdict rests on a definition that has changed.

A verdict rests on the class (or function) around the site, its bases and the module-level lines of its file, on the
layers that build the block, on the places that the finding names, on the predicates in its guard, and on the helper
with everything that it calls. So a changed helper touches all its users.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

from moe_lint.analysis import Tree
from moe_lint.changes import Changes
from moe_lint.formula import atom_set
from moe_lint.helper import find_function
from moe_lint.index import Ref
from moe_lint.model import Finding
from moe_lint.policy import Policy
from moe_lint.sites import owner_of
from moe_lint.source import SourceError, parse

_NAME = re.compile(r"[A-Za-z_]\w*")


class Touch:
    """Answers for the findings of one tree. The findings' paths are absolute."""

    def __init__(self, tree: Tree, changes: Changes) -> None:
        self._index = tree.index
        self._changes = changes
        self._sites = {(site.path, site.raw.span.line): site for site in tree.sites}
        self._outlines: dict[str, list[_Definition] | None] = {}
        self._everything = changes.everything or self._policy_changed(tree.policy)

    def touches(self, finding: Finding) -> bool:
        """Whether the finding's verdict rests on something that has changed."""
        path, span = finding.path, finding.span
        if self._changes.overlap(path, span.line, span.end_line):
            return True
        if finding.rule.startswith("MOE9"):  # it is about a comment, and about the finding that this silences
            return self._changed_around(path, span.line)
        if self._everything or self._changed_around(path, span.line) or self._module_changed(path):
            return True
        if any(self._changed_around(related.path, related.line) for related in finding.related):
            return True
        site = self._sites.get((path, span.line))
        owners = [Ref(path, finding.class_name or finding.function)] if finding.class_name or finding.function else []
        owners += [owner_of(site)] if site is not None else []
        if any(self._layers_changed(owner) for owner in owners):
            return True
        if site is None:
            return False
        atoms = {atom for part in site.raw.guard for atom in atom_set(part.formula)}
        return self._reach_a_change(path, {name for atom in atoms for name in _NAME.findall(atom)}, set())

    def _policy_changed(self, policy: Policy) -> bool:
        """Whether the helper, or something that it calls, is another than before."""
        helper = policy.helper
        if policy.profile.helper in self._changes.removed:
            return True
        if helper is None:
            return False
        seen: set[Ref] = set()
        if helper.path and not helper.proposed:
            return self._reaches_a_change(Ref(helper.path, helper.name), seen)
        names = {name for atom in atom_set(helper.skips) for name in _NAME.findall(atom)}
        refs = [ref for name in names if (ref := find_function(self._index, name)) is not None]
        return bool(names & self._changes.removed) or any(self._reaches_a_change(ref, seen) for ref in refs)

    def _reaches_a_change(self, ref: Ref, seen: set[Ref]) -> bool:
        """Whether a function has changed, or one that its body names, however far."""
        if ref in seen:
            return False
        seen.add(ref)
        definition = self._definition(ref)
        if definition is None:
            return False
        if self._changes.overlap(ref.path, definition.first, definition.last):
            return True
        return definition.function and self._reach_a_change(ref.path, definition.names, seen)

    def _reach_a_change(self, path: str, names: Iterable[str], seen: set[Ref]) -> bool:
        names = frozenset(names)
        if names & self._changes.removed:
            return True
        refs = {ref for name in names if (ref := self._index.resolve(path, name)) is not None}
        return any(self._reaches_a_change(ref, seen) for ref in sorted(refs))

    def _layers_changed(self, owner: Ref) -> bool:
        """Whether a block, one of its bases, or a class that builds it has changed."""
        for ref in (*self._index.mro(owner), *self._index.users(owner)):
            definition = self._definition(ref)
            if definition is not None and self._changes.overlap(ref.path, definition.first, definition.last):
                return True
        return False

    def _changed_around(self, path: str, line: int) -> bool:
        """Whether the outermost definition around a line has changed."""
        if path not in self._changes.files:
            return False
        outline = self._outline(path)
        if outline is None:
            return True
        around = next((d for d in outline if d.first <= line <= d.last), None)
        first, last = (around.first, around.last) if around is not None else (line, line)
        return self._changes.overlap(path, first, last)

    def _module_changed(self, path: str) -> bool:
        """Whether a line of code outside all definitions has changed: an import, a constant."""
        ranges, outline = self._changes.files.get(path), self._outline(path)
        facts = self._index.facts(path)
        if not ranges or outline is None or facts is None:
            return bool(ranges)
        inside = {line for d in outline for line in range(d.first, d.last + 1)}
        return any(
            line not in inside and text.strip() and not text.lstrip().startswith("#")
            for first, last in ranges
            for line, text in enumerate(facts.lines[first - 1 : last], first)
        )

    def _definition(self, ref: Ref) -> _Definition | None:
        top = ref.name.partition(".")[0]
        return next((d for d in self._outline(ref.path) or () if d.name == top), None)

    def _outline(self, path: str) -> list[_Definition] | None:
        """The outermost definitions of a file; None when it cannot be parsed."""
        if path not in self._outlines:
            facts = self._index.facts(path)
            try:
                body = parse(facts.lines.text).body if facts is not None else None
            except SourceError:
                body = None
            self._outlines[path] = None if body is None else [_Definition(node) for node in _definitions(body)]
        return self._outlines[path]


class _Definition:
    """A function or class: its name, its lines (decorators too), and the names that it uses."""

    def __init__(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self._node = node
        self.name = node.name
        self.function = not isinstance(node, ast.ClassDef)
        self.first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        self.last = node.end_lineno or node.lineno

    @property
    def names(self) -> frozenset[str]:
        return frozenset(n.id for n in ast.walk(self._node) if isinstance(n, ast.Name))


def _definitions(body: Iterable[ast.stmt]) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """The outermost definitions, those under an `if` or `try` of the module too."""
    found: list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef] = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.append(node)
        elif isinstance(node, ast.If | ast.Try):
            inner = [*node.body, *node.orelse, *(s for h in getattr(node, "handlers", ()) for s in h.body)]
            found += _definitions(inner)
    return found
