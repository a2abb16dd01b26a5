"""What a name means in a tree: modules, definitions, classes with their bases; and where a word occurs.

A file is parsed when a question leads to it, so a run reads the files on a reduction's path and no others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from itertools import takewhile

from msgspec import Struct

from moe_lint.expressions import NotBoolean
from moe_lint.facts import AttributeFact, FileFacts, FunctionFacts
from moe_lint.formula import Formula
from moe_lint.profile import Profile
from moe_lint.remembered import remembered
from moe_lint.text import Statement, Text


class Ref(Struct, frozen=True, order=True):
    """A function or class: the file that defines it, and its qualified name there."""

    path: str
    name: str


class Names:
    """Answers questions about names in a tree.

    ``texts`` are the files that may matter (already read); ``paths`` are all Python files of the tree; ``load`` parses
    one file, returning None when it cannot be parsed (the caller has recorded why).
    """

    def __init__(
        self,
        texts: Mapping[str, Text],
        paths: Iterable[str],
        load: Callable[[str], FileFacts | None],
        profile: Profile,
    ) -> None:
        self.texts = texts
        self.profile = profile
        self._paths = list(paths)
        self._load = load
        self._facts: dict[str, FileFacts | None] = {}
        self._names: dict[tuple[str, str], Ref | None] = {}
        self._mro: dict[Ref, list[Ref]] = {}
        self._naming: dict[Statement, dict[str, list[str]]] = {}

    @cached_property
    def known_paths(self) -> frozenset[str]:
        return frozenset(self._paths)

    @property
    def relevant(self) -> frozenset[str]:
        """The files whose content the answers so far can depend on."""
        return frozenset((*self.texts, *self._facts))

    def facts(self, path: str) -> FileFacts | None:
        if path not in self._facts:
            self._facts[path] = self._load(path)
        return self._facts[path]

    def function(self, ref: Ref) -> FunctionFacts | None:
        facts = self.facts(ref.path)
        return facts.function(ref.name) if facts is not None and ref.name in facts.functions else None

    def condition(self, ref: Ref) -> Formula | None:
        """The truth value that a function returns; None where it is no boolean function, or is not known."""
        facts = self.facts(ref.path)
        try:
            return facts.condition(ref.name) if facts is not None and ref.name in facts.functions else None
        except NotBoolean:
            return None

    # --- names

    @cached_property
    def _by_tail(self) -> dict[str, list[tuple[str, str]]]:
        """Last component of a module's name -> (path without its ending, path) of the files that could be it."""
        found: dict[str, list[tuple[str, str]]] = {}
        for path in self._paths:
            stem = path.removesuffix(".py").removesuffix(f"{os.sep}__init__")
            found.setdefault(stem[stem.rfind(os.sep) + 1 :], []).append((stem, path))
        return found

    def module_path(self, module: str, importer: str) -> str | None:
        """The file that `import module` means in ``importer``; leading dots are relative to it.

        Of several packages of that name (a vendored copy), the one nearest to the importer counts.
        """
        level = len(module) - len(module.lstrip("."))
        wanted = [part for part in module.split(".") if part]
        if level:
            wanted = [*importer.split(os.sep)[:-level], *wanted]
        if not wanted:
            return None
        found = self._files_at(os.sep.join(wanted))
        return found[0] if len(found) == 1 else max(found, key=partial(_shared, importer), default=None)

    @remembered
    def _files_at(self, tail: str) -> list[str]:
        """The files whose paths end like this, without their ending."""
        named = self._by_tail.get(tail[tail.rfind(os.sep) + 1 :], ())
        return [path for stem, path in named if stem == tail or stem.endswith(f"{os.sep}{tail}")]

    def resolve(self, path: str, name: str) -> Ref | None:
        """The class or function that a (dotted) name means in a file, through imports and re-exports."""
        key = (path, name)
        if key not in self._names:
            self._names[key] = None  # an import cycle resolves to nothing
            self._names[key] = self._resolve(path, name)
        return self._names[key]

    def _resolve(self, path: str, name: str) -> Ref | None:
        facts = self.facts(path)
        if facts is None:
            return None
        if name in facts.classes or name in facts.functions:
            return Ref(path, name)
        head, _, rest = name.partition(".")
        imported = facts.imports.get(head)
        if imported is None:  # callees are named by what was imported, whatever the file calls it
            local = next((name for name, original in facts.aliases.items() if original == head), None)
            imported = facts.imports.get(local) if local is not None else None
        if imported is None:
            # a name that is local to a function, or a class nested in one
            found = facts.nested(name) if not rest else []
            return Ref(path, found[0]) if len(found) == 1 else None
        module, original = imported
        if original is not None:
            target = self.module_path(module, path)
            if target is not None and target != path:
                found_ref = self.resolve(target, f"{original}.{rest}" if rest else original)
                if found_ref is not None:
                    return found_ref
            if not rest:
                return None
            separator = "" if module.endswith(".") else "."
            target = self.module_path(f"{module}{separator}{original}", path)
            return self.resolve(target, rest) if target is not None and target != path else None
        parts = name.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            prefix = ".".join(parts[:cut])
            dotted_module = prefix.replace(head, module, 1)
            target = self.module_path(dotted_module, path)
            if target is not None and target != path:
                return self.resolve(target, ".".join(parts[cut:]))
        return None

    # --- classes

    def mro(self, ref: Ref) -> list[Ref]:
        """The class and its bases in the tree, depth first, each once."""
        if ref not in self._mro:
            self._mro[ref] = [ref]
            order: dict[Ref, None] = {ref: None}
            facts = self.facts(ref.path)
            if facts is not None and ref.name in facts.classes:
                for base in facts.classes[ref.name].bases:
                    found = self.resolve(ref.path, base)
                    if found is not None and found != ref:
                        order.update(dict.fromkeys(self.mro(found)))
            self._mro[ref] = list(order)
        return self._mro[ref]

    @remembered
    def method(self, owner: Ref, name: str, skip: int = 0) -> Ref | None:
        """The function that ``owner.name`` is, along the bases (from base ``skip`` on)."""
        for ref in self.mro(owner)[skip:]:
            facts = self.facts(ref.path)
            if facts is not None and ref.name in facts.classes and name in facts.classes[ref.name].methods:
                return Ref(ref.path, f"{ref.name}.{name}")
        return None

    def method_names(self, owner: Ref) -> list[str]:
        """The names of a class's methods and of its bases', each once."""
        names: dict[str, None] = {}
        for ref in self.mro(owner):
            facts = self.facts(ref.path)
            if facts is not None and ref.name in facts.classes:
                names.update(dict.fromkeys(sorted(facts.classes[ref.name].methods)))
        return list(names)

    @remembered
    def attributes(self, owner: Ref, name: str) -> list[tuple[str, AttributeFact]]:
        """(file, fact) of every assignment to ``self.name`` in the class and its bases."""
        found: list[tuple[str, AttributeFact]] = []
        for ref in self.mro(owner):
            facts = self.facts(ref.path)
            if facts is not None and ref.name in facts.classes:
                found += [(ref.path, fact) for fact in facts.attribute(ref.name, name)]
        return found

    def subclasses(self, ref: Ref) -> list[Ref]:
        """Classes that name ``ref`` as a base, in the files at hand."""
        short = ref.name.rsplit(".", 1)[-1]
        found: list[Ref] = []
        for path in self._files_naming("class", short):
            facts = self.facts(path)
            if facts is None:
                continue
            for name in facts.classes_deriving(short):
                bases = [base for base in facts.classes[name].bases if base.rsplit(".", 1)[-1] == short]
                if Ref(path, name) != ref and any(self.resolve(path, base) == ref for base in bases):
                    found.append(Ref(path, name))
        return sorted(found)

    # --- words

    @remembered
    def mentions(self, word: str) -> list[tuple[str, int]]:
        """(path, line) of every occurrence of an identifier, in the files at hand."""
        return [(path, line) for path in self.holding(word) for line in self.lines_of(path, word, whole=True)]

    @remembered
    def holding(self, word: str) -> list[str]:
        """The files at hand that hold a text, by path."""
        return sorted(path for path, text in self.texts.items() if text.holds(word))

    def _files_naming(self, statement: Statement, word: str) -> tuple[str, ...]:
        """The files at hand with a statement of one kind that holds a word (at least): told without parsing them."""
        if statement not in self._naming:
            naming: dict[str, list[str]] = {}
            for path, text in self.texts.items():
                for found in text.words_in(statement):
                    naming.setdefault(found, []).append(path)
            self._naming[statement] = naming
        return tuple(self._naming[statement].get(word, ()))

    def lines_of(self, path: str, word: str, whole: bool = False) -> list[int]:
        """The lines of a file at hand that hold a word, as a whole identifier if asked for."""
        return self.texts[path].lines_of(word, whole)

    def lines_that(self, path: str, question: str, answer: Callable[[], Iterable[int]]) -> list[int]:
        """The lines of a file at hand that answer a question about its text: see `Text.lines_that`."""
        return self.texts[path].lines_that(question, answer)

    def line(self, path: str, number: int) -> str:
        """One line of a file at hand."""
        return self.texts[path].lines[number - 1]


def _shared(one: str, other: str) -> int:
    """How many folders from the top two paths have in common."""
    pairs = zip(one.split(os.sep), other.split(os.sep), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
