"""FileFacts -> ProjectIndex: who uses a class, which functions a call reaches, who around a block absorbs its sum."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property

from msgspec import Struct

from moe_lint.facts import CallFact, FileFacts
from moe_lint.formula import Formula
from moe_lint.names import Names, Ref
from moe_lint.profile import longest_part, matches
from moe_lint.remembered import remembered

__all__ = ["ProjectIndex", "Ref", "Target"]

_ATTRIBUTE_CALL = r"self(?<!\wself)\.(\w+)\("


class Target(Struct, frozen=True):
    """A function that a call may reach, and the condition under which its module was built that way."""

    function: Ref
    condition: Formula | None = None


class ProjectIndex(Names):
    """Answers questions about a tree: what names mean, and what follows for who builds, calls and absorbs."""

    # --- users

    @cached_property
    def _users(self) -> dict[Ref, frozenset[Ref]]:
        """The users that were found so far."""
        return {}

    def patched(self, function: Ref) -> Ref | None:
        """The method that a module-level function is put in place of."""
        facts = self.facts(function.path)
        if facts is None or function.name not in facts.functions or "." in function.name:
            return None
        for name, method in facts.patched(function.name):
            owner = self.resolve(function.path, name)
            home = self.facts(owner.path) if owner is not None else None
            if owner is not None and home is not None and owner.name in home.classes:
                return Ref(owner.path, f"{owner.name}.{method}")
        return None

    def users(self, ref: Ref) -> frozenset[Ref]:
        """The classes whose bodies name a class or function: whoever builds a block names it."""
        if ref not in self._users:
            self._users[ref] = frozenset()
            self._users[ref] = frozenset(self._find_users(ref))
        return self._users[ref]

    def _find_users(self, ref: Ref) -> Iterator[Ref]:
        """The users, those in files that are parsed already first."""
        short = ref.name.rsplit(".", 1)[-1]
        importing = sorted(self._files_naming("import", short), key=lambda path: path not in self._facts)
        for path in dict.fromkeys((ref.path, *importing)):
            facts = self.facts(path) if path in self.texts else None
            if facts is not None and self.resolve(path, short) in ((ref, None) if path == ref.path else (ref,)):
                yield from self._users_in(path, facts, ref)

    def _users_in(self, path: str, facts: FileFacts, ref: Ref) -> Iterator[Ref]:
        short = ref.name.rsplit(".", 1)[-1]
        for line in self.lines_of(path, short, whole=True):
            owner = facts.class_at(line)
            if owner is None:
                inside = facts.functions_at([line])
                if inside and Ref(path, inside[0]) != ref:
                    yield from sorted(self.users(Ref(path, inside[0])))  # a factory: whoever calls it
                table = facts.assigned_at(line) if not inside and path == ref.path else None
                if table is not None and table != short:
                    yield from sorted(self.users(Ref(path, table)))  # `LAYERS = {"moe": Block, …}`: whoever looks it up
            elif Ref(path, owner) != ref and facts.classes[owner].line != line:
                yield Ref(path, owner)

    # --- calls

    @remembered
    def targets(self, path: str, class_name: str | None, callee: str) -> list[Target]:
        """The functions that a call of ``callee`` may reach. Empty when that cannot be told."""
        return list(self._targets(path, class_name, callee, frozenset()))

    def _targets(
        self, path: str, class_name: str | None, callee: str, seen: frozenset[tuple[str, str | None, str]]
    ) -> Iterator[Target]:
        key = (path, class_name, callee)
        if key in seen:
            return
        seen |= {key}
        head, _, rest = callee.partition(".")
        if head == "super()" and class_name is not None:
            found = self.method(Ref(path, class_name), rest, skip=1)
            if found is not None:
                yield Target(found)
        elif head == "self" and class_name is not None and rest:
            yield from self._self_targets(Ref(path, class_name), rest, seen)
        elif head not in ("self", "super()"):
            found = self.resolve(path, callee)
            if found is not None:
                facts = self.facts(found.path)
                if facts is not None and found.name in facts.functions:
                    yield Target(found)

    def _self_targets(self, owner: Ref, rest: str, seen: frozenset[tuple[str, str | None, str]]) -> Iterator[Target]:
        name, _, method = rest.partition(".")
        if not method:
            found = self.method(owner, name)
            if found is not None:
                yield Target(found)
                return
        if "." in method:
            return
        for path, fact in self.attributes(owner, name):
            if fact.alias is not None and not method:
                for target in self._targets(path, owner.name, fact.alias, seen):
                    yield Target(target.function, fact.condition)
            for callee in fact.callees:
                built = self.resolve(path, callee)
                facts = self.facts(built.path) if built is not None else None
                if built is None or facts is None or built.name not in facts.classes:
                    continue
                for entry in (method,) if method else ("forward", "__call__"):
                    found = self.method(built, entry)
                    if found is not None:
                        yield Target(found, fact.condition)
                        break

    def built_classes(self, owner: Ref, name: str) -> list[Ref]:
        """The classes that ``self.name`` may be an instance of."""
        found: dict[Ref, None] = {}
        for path, fact in self.attributes(owner, name):
            for callee in fact.callees:
                built = self.resolve(path, callee)
                facts = self.facts(built.path) if built is not None else None
                if built is not None and facts is not None and built.name in facts.classes:
                    found[built] = None
        return list(found)

    @remembered
    def calls_of(self, ref: Ref) -> list[tuple[str, CallFact]]:
        """(file, call) of the calls that reach a function, as far as they hand on something of interest."""
        short = ref.name.rsplit(".", 1)[-1]
        search = self._calls_of_module if short in ("forward", "__call__") else self._calls_by_name
        return list(search(ref))

    def _calls_by_name(self, ref: Ref) -> Iterator[tuple[str, CallFact]]:
        short = ref.name.rsplit(".", 1)[-1]
        for path in self.holding(short):
            lines = self._lines_that_may_call(path, ref)
            renamed = self.texts[path].holds(f"{short} as ") and ("." not in ref.name or path == ref.path)
            facts = self.facts(path) if lines or renamed else None
            if facts is None:
                continue
            lines = [line for line in lines if self._may_reach(path, facts, line, ref)]
            for local, original in facts.aliases.items():
                if original == short and renamed:
                    lines += self.lines_of(path, f"{local}(")
            for name in facts.functions_at(lines):
                if Ref(path, name) == ref:
                    continue
                for call in facts.function(name).calls:
                    if call.callee.rsplit(".", 1)[-1] == short and self._reaches(path, call, ref):
                        yield path, call

    def _lines_that_may_call(self, path: str, ref: Ref) -> list[int]:
        """A look at the text, before the file is parsed: is the name called on an object that could have this method?

        A function is called by a name that the file imports, or as an attribute.
        """
        short = ref.name.rsplit(".", 1)[-1]
        if ref.path == path:
            return self.lines_of(path, short, whole=True)  # a local may hold it: `tail = self._reduce`
        lines = self.lines_of(path, f"{short}(")
        if not lines:
            return lines
        if "." not in ref.name:
            imported = path in self._files_naming("import", short)
            return lines if imported else self.lines_of(path, f".{short}(")
        return self.lines_that(path, f"call {short}", lambda: self._lines_with_receivers(path, short, lines))

    def _lines_with_receivers(self, path: str, method: str, lines: Iterable[int]) -> Iterator[int]:
        """The lines among these that call a method on `self`, `super()`, a part of them, or on experts."""
        receivers = re.compile(rf"([\w.)\]]+)\.{method}\(")
        for line in lines:
            found = receivers.findall(self.line(path, line))
            if any(
                o.startswith(("self", "super")) or self.profile.is_expert_attribute(o.rsplit(".", 1)[-1]) for o in found
            ):
                yield line

    def _may_reach(self, path: str, facts: FileFacts, line: int, ref: Ref) -> bool:
        """Whether a line may call this method, by what its class and the attributes of its class are.

        Told before the function around the line is read. What is not called as `self.method(…)`, `super().method(…)`
        or `self.attribute.method(…)` may be anything; a call without arguments hands on nothing.
        """
        owner, _, short = ref.name.rpartition(".")
        if not owner:
            return True
        class_name = facts.class_at(line)
        for receiver, called in self.texts[path].mentions(short).get(line, ()):
            if not receiver or not called or any(self.profile.is_expert_attribute(o) for o in receiver.split(".")):
                return True
            if class_name is None:
                continue  # no method: its `self` is some argument
            if "." in receiver and not self._may_build(Ref(path, class_name), Ref(ref.path, owner)):
                continue
            if any(target.function == ref for target in self.targets(path, class_name, f"{receiver}.{short}")):
                return True
        return False

    def _may_build(self, holder: Ref, owner: Ref) -> bool:
        """Whether the files of a class and its bases name another or one derived from that: whoever builds it does."""
        names = self._family(owner)
        paths = {ref.path for ref in self.mro(holder)}
        return any(path not in self.texts or any(self.texts[path].holds(name) for name in names) for path in paths)

    @remembered
    def _family(self, owner: Ref) -> frozenset[str]:
        """The names of a class and of all that derive from it; "" (in any text) where one is imported under another."""
        found, frontier = {owner}, [owner]
        while frontier:
            derived = set(self.subclasses(frontier.pop())) - found
            found |= derived
            frontier += derived
        names = {ref.name.rpartition(".")[2] for ref in found}
        importing = ((path, name) for name in names for path in self._files_naming("import", name))
        renamed = any(self.texts[path].holds(f"{name} as ") for path, name in importing)
        return frozenset({""} if renamed else names)

    def _reaches(self, path: str, call: CallFact, ref: Ref) -> bool:
        """Whether a call of that name means this function."""
        owners = call.callee.split(".")[:-1]
        if owners and owners[0] in ("self", "super()"):
            if any(self.profile.is_expert_attribute(owner) for owner in owners):
                return True
            if call.class_name is None:
                return False
            return any(t.function == ref for t in self.targets(path, call.class_name, call.callee))
        return self.resolve(path, call.callee) == ref

    def _calls_of_module(self, ref: Ref) -> Iterator[tuple[str, CallFact]]:
        """Calls of ``self.attr(…)`` where ``attr`` was built from the class that ``ref`` is the forward of."""
        owner = Ref(ref.path, ref.name.rsplit(".", 1)[0])
        if matches(owner.name.rsplit(".", 1)[-1], self.profile.other_layers):
            return
        for user in sorted(self.users(owner)):
            facts = self.facts(user.path)
            if facts is None:
                continue
            for name in dict.fromkeys(facts.finds(user.name, _ATTRIBUTE_CALL)):
                if self.profile.is_barrier(name) or owner not in self.built_classes(user, name):
                    continue
                for qualname in facts.functions_in(user.name):
                    if facts.holds(qualname, f"self.{name}("):
                        calls = facts.function(qualname).calls
                        yield from ((user.path, call) for call in calls if call.callee == f"self.{name}")

    def is_absorber(self, ref: Ref) -> bool:
        """Whether a class is an absorber itself (or derives from one)."""
        names = self.profile.absorber_constructors
        return any(matches(owner.name.rsplit(".", 1)[-1], names) for owner in self.mro(ref))

    # --- absorbers

    @cached_property
    def _absorber_pattern(self) -> re.Pattern[str]:
        names = "|".join(
            re.escape(pattern).replace(r"\*", r"\w*").replace(r"\?", r"\w")
            for pattern in self.profile.absorber_constructors
        )
        # built on the spot, or chosen first: `cls = (Own if cp else LayerCommunicator)`, then `cls(…)`; or `return Own`
        return re.compile(
            rf"(?<!\w)(?<!class )(?:{names or '(?!)'})\s*\(|(?:=\s*\(?|\belse|\breturn)\s*(?:{names or '(?!)'})\b(?!\.)"
        )

    @cached_property
    def _absorber_stems(self) -> list[str]:
        """The longest plain part of each pattern: text without any of them need not be searched."""
        return [longest_part(pattern) for pattern in self.profile.absorber_constructors]

    def _names_absorber(self, text: str) -> bool:
        return any(stem in text for stem in self._absorber_stems) and self._absorber_pattern.search(text) is not None

    def absorber_lines(self, path: str) -> list[int]:
        """The lines of a file at hand on which an absorber is built, as far as its text tells."""
        question = f"build {' or '.join(self.profile.absorber_constructors)}"
        return self.lines_that(path, question, lambda: self._building_absorbers(path))

    def _building_absorbers(self, path: str) -> Iterator[int]:
        for line in sorted({line for stem in self._absorber_stems for line in self.lines_of(path, stem)}):
            if self._absorber_pattern.search(self.line(path, line)):
                yield line

    @remembered
    def constructs_absorber(self, ref: Ref) -> bool:
        """Whether the class or one of its bases builds an absorber, on the spot or by a function of its file."""
        line = self.mro(ref)
        return any(self._builds_absorber(owner, line[:position]) for position, owner in enumerate(line))

    def _builds_absorber(self, owner: Ref, derived: Iterable[Ref]) -> bool:
        """Whether a class itself builds one: not in a constructor that a class derived from it has replaced."""
        facts = self.facts(owner.path)
        if facts is None or owner.name not in facts.classes:
            return False
        if not self._may_build_absorber(owner, facts):
            return False
        if not self._is_absorber_named(owner, facts):
            return False
        if "__init__" in facts.classes[owner.name].methods and any(map(self._replaces_constructor, derived)):
            text = facts.class_text(owner.name)
            text = text.replace(facts.function_text(f"{owner.name}.__init__"), "")
            return self._names_absorber(text) or self._calls_maker(owner.path, text)
        return True

    def _is_absorber_named(self, owner: Ref, facts: FileFacts) -> bool:
        """Whether the text of a class builds an absorber, or calls a function of its file that does."""
        patterns = (self._absorber_pattern, *self._makers_in(owner.path))
        return any(facts.matches(owner.name, pattern.pattern) for pattern in patterns)

    def _may_build_absorber(self, owner: Ref, facts: FileFacts) -> bool:
        """A look at what is known of the text, before the text of the class is cut out of it."""
        if owner.path not in self.texts or self._makers_in(owner.path):
            return True
        first, last = facts.class_extent(owner.name)
        return any(first <= n <= last for stem in self._absorber_stems for n in self.lines_of(owner.path, stem))

    def _replaces_constructor(self, ref: Ref) -> bool:
        """Whether a class has a constructor that runs none of its bases'."""
        facts = self.facts(ref.path)
        if facts is None or ref.name not in facts.classes or "__init__" not in facts.classes[ref.name].methods:
            return False
        bases = "|".join(re.escape(base.rsplit(".", 1)[-1]) for base in facts.classes[ref.name].bases)
        upwards = rf"(?:\bsuper\([^()]*\)|\b(?:{bases or '(?!)'}))\.__init__\b"
        return not facts.matches(f"{ref.name}.__init__", upwards)

    def _calls_maker(self, path: str, text: str) -> bool:
        """Whether a text of a file calls a function of that file which builds an absorber, or chooses its class."""
        return any(maker.search(text) is not None for maker in self._makers_in(path))

    @remembered
    def _makers_in(self, path: str) -> tuple[re.Pattern[str], ...]:
        """Calls of the functions of a file that build an absorber."""
        facts, lines = self.facts(path), self.absorber_lines(path) if path in self.texts else []
        outside = [line for line in lines if facts is not None and facts.class_at(line) is None]
        names = facts.functions_at(outside) if facts is not None and outside else []
        return tuple(re.compile(rf"(?<![\w.])(?<!def ){re.escape(name)}\(") for name in names)

    def makers_called(self, path: str) -> list[int]:
        """The lines of a file on which a function of that file is called that builds an absorber."""
        makers = self._makers_in(path)
        question = f"call {' or '.join(maker.pattern for maker in makers)}"
        return self.lines_that(path, question, lambda: self._calling(path, makers)) if makers else []

    def _calling(self, path: str, makers: Iterable[re.Pattern[str]]) -> list[int]:
        text = str(self.texts[path])
        found = [match for maker in makers for match in maker.finditer(text)]
        return sorted(text.count("\n", 0, match.start()) + 1 for match in found)

    def _drops(self, sub: Ref, layer: Ref, parts: Collection[Ref]) -> bool:
        """Whether a subclass of a layer holds none of these parts: its own constructor replaces the one with them."""
        base = self.facts(layer.path)
        if not parts or base is None or not self._replaces_constructor(sub):
            return False
        tests = {*self.lines_of(layer.path, "isinstance(")}
        lines = [
            line
            for part in parts
            for line in self.lines_of(layer.path, part.name.rsplit(".", 1)[-1], whole=True)
            if base.class_at(line) == layer.name and line not in tests
        ]
        builders = [name for line in lines for name in base.functions_at([line]) or [""]]
        return bool(builders) and all(f"{name}.".startswith(f"{layer.name}.__init__.") for name in builders)

    @remembered
    def has_absorber(self, ref: Ref) -> bool | None:
        """Whether some layer around a class (or function) builds an absorber; None when no layer around is known."""
        frontier, seen, layers = [ref], {ref}, False
        held: dict[Ref, set[Ref]] = {}  # layer -> what of the way from the block to it its body names
        while frontier:
            current = frontier.pop()
            if self.constructs_absorber(current):
                return True
            around: set[Ref] = set()
            for user in sorted(self._users[current]) if current in self._users else self._find_users(current):
                if user not in seen and self.constructs_absorber(user):
                    return True  # before the other files that name the class are parsed
                around.add(user)
                held.setdefault(user, set()).add(current)
            self._users[current] = frozenset(around)
            layers = layers or bool(around)
            parts = held.get(current, ())
            around.update(sub for sub in self.subclasses(current) if not self._drops(sub, current, parts))
            frontier += sorted(around - seen)
            seen |= around
        if not layers and self._is_called_beside_absorber(ref):
            return True
        return False if layers else None

    def _is_called_beside_absorber(self, function: Ref) -> bool:
        """Whether a layer that is a function builds (or calls) an absorber: this one, or whoever calls it."""
        frontier, seen = [function], {function}
        while frontier:
            current = frontier.pop()
            facts = self.facts(current.path)
            if facts is None or current.name not in facts.functions:
                continue
            if facts.matches(current.name, self._absorber_pattern.pattern):
                return True
            around = [ref for ref in self._functions_naming(current) if ref not in seen]
            seen.update(around)
            frontier += around
        return False

    def _functions_naming(self, function: Ref) -> Iterator[Ref]:
        """The functions outside of classes that name a function outside of one."""
        for path in dict.fromkeys((function.path, *sorted(self._files_naming("import", function.name)))):
            facts = self.facts(path) if path in self.texts else None
            if facts is not None and self.resolve(path, function.name) == function:
                lines = self.lines_of(path, function.name, whole=True)
                names = facts.functions_at([line for line in lines if facts.class_at(line) is None])
                yield from (Ref(path, name) for name in names if Ref(path, name) != function)
