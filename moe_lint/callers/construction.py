"""Who builds whom: what each attribute of a class may be, through constructors, bases and factories."""

from __future__ import annotations

from collections.abc import Iterator

from moe_lint.callers.data import Bound, Built, Instance
from moe_lint.facts import Call, Conduct
from moe_lint.formula import FALSE, TRUE, Formula, TooManyAtoms, conj, negate, satisfiable
from moe_lint.index import ProjectIndex, Ref
from moe_lint.profile import matches
from moe_lint.remembered import remembered

_STORES_OR_CALLS = r"self\.\w+\s*(?:=(?!=)|[:(])"


class Constructions:
    """Answers "what may `self.attribute` be" over a ``ProjectIndex``, and binds arguments to parameters."""

    def __init__(self, index: ProjectIndex) -> None:
        self.index = index
        self._built: dict[Ref, dict[str, tuple[Built, ...]]] = {}
        self._instances: dict[tuple[Built, Instance], Instance] = {}

    def conduct(self, function: Ref) -> Conduct | None:
        facts = self.index.facts(function.path)
        return facts.conduct(function.name) if facts is not None and function.name in facts.functions else None

    def built(self, owner: Ref) -> dict[str, tuple[Built, ...]]:
        """Attribute -> what `self.attribute` may be, as far as the constructors that run say."""
        if owner not in self._built:
            self._built[owner] = {}
            found: dict[str, tuple[Built, ...]] = {}
            for group in self._constructors(owner):
                own: dict[str, list[Built]] = {}
                for built in group:
                    own.setdefault(built.attribute, []).append(built)
                for name, several in own.items():
                    if name not in found:
                        found[name] = tuple(several)
                    elif not _covers(found[name]):
                        found[name] += tuple(several)
            self._built[owner] = found
        return self._built[owner]

    @remembered
    def built_names(self, owner: Ref) -> frozenset[str]:
        """Every attribute that a class's constructors set to the result of a call, resolved or not."""
        names: set[str] = set()
        for ref in self.index.mro(owner):
            function = Ref(ref.path, f"{ref.name}.__init__")
            conduct = self.conduct(function)
            if conduct is not None:
                names.update(call.stored for call in conduct.calls if call.stored is not None)
        return frozenset(names)

    def _constructors(self, owner: Ref) -> Iterator[list[Built]]:
        """What each constructor that runs for a class builds, the most derived one first."""
        function = self.index.method(owner, "__init__")
        seen: set[Ref] = set()
        while function is not None and function not in seen:
            seen.add(function)
            conduct = self.conduct(function)
            if conduct is None:
                return
            home = Ref(function.path, function.name.rsplit(".", 1)[0])
            yield list(self._builds(owner, function, conduct, seen))
            function = self._next_constructor(owner, home, conduct)

    def _next_constructor(self, owner: Ref, home: Ref, conduct: Conduct) -> Ref | None:
        mro = self.index.mro(owner)
        for call in conduct.calls:
            head, _, rest = call.callee.rpartition(".")
            if rest != "__init__":
                continue
            if head == "super()":
                return self.index.method(owner, "__init__", skip=mro.index(home) + 1) if home in mro else None
            base = self.index.resolve(home.path, head)
            if base in mro and base is not None and base != home:
                return self.index.method(base, "__init__")
        return None

    def _builds(self, owner: Ref, function: Ref, conduct: Conduct, seen: set[Ref]) -> Iterator[Built]:
        for call in conduct.calls:
            if call.condition == FALSE:
                continue
            if call.stored is not None and call.stored != "return":
                yield from self._made(owner, function.path, call.stored, call, call.condition, 0)
            elif call.callee.startswith("self.") and call.callee.count(".") == 1 and call.stored is None:
                helper = self.index.method(owner, call.callee[5:])
                inner = self._built_by(helper) if helper is not None and helper not in seen else None
                if helper is not None and inner is not None:
                    seen.add(helper)
                    yield from self._builds(owner, helper, inner, seen)

    def _built_by(self, helper: Ref) -> Conduct | None:
        """What a method that a constructor calls does; None where its text stores nothing and calls no other method."""
        facts = self.index.facts(helper.path)
        if facts is None or helper.name not in facts.functions:
            return None
        return facts.conduct(helper.name) if facts.matches(helper.name, _STORES_OR_CALLS) else None

    def _made(
        self, owner: Ref, path: str, attribute: str, call: Call, condition: Formula, depth: int
    ) -> Iterator[Built]:
        """The classes behind a constructor call; factories, of objects or of classes, are looked through."""
        if call.callee.endswith("()"):
            yield from self._chosen(path, attribute, call, condition)
            return
        if matches(call.callee.rsplit(".", 1)[-1], self.index.profile.absorber_constructors):
            target = self.index.resolve(path, call.callee) or Ref(path, call.callee)
            yield Built(path, attribute, call, target, condition)
            return
        factory = (
            self.index.method(owner, call.callee[5:])
            if call.callee.startswith("self.") and call.callee.count(".") == 1
            else self.index.resolve(path, call.callee)
        )
        facts = self.index.facts(factory.path) if factory is not None else None
        if factory is None or facts is None:
            return
        if factory.name in facts.classes:
            yield Built(path, attribute, call, factory, condition)
        elif depth < 3:
            for inner in facts.conduct(factory.name).calls:
                if inner.stored == "return":
                    for made in self._made(owner, factory.path, attribute, inner, conj((condition,)), depth + 1):
                        # the place that matters is the one that asks the factory, with the arguments given there
                        absorbs = matches(made.owner.name, self.index.profile.absorber_constructors)
                        yield Built(path, attribute, call, made.owner, condition) if absorbs else made

    def _chosen(self, path: str, attribute: str, call: Call, condition: Formula) -> Iterator[Built]:
        """The absorbers whose class a function may return, where what it returns is called: `chosen(config)(…)`.

        Absorbers only: experts are chosen in this way, too, and are not looked into.
        """
        choice = self.index.resolve(path, call.callee.removesuffix("()"))
        facts = self.index.facts(choice.path) if choice is not None else None
        names = facts.first_returned(choice.name) if choice and facts and choice.name in facts.functions else ()
        for name in sorted(name for name in names if name is not None):
            owner = self.index.resolve(choice.path, name) if choice is not None else None
            if owner is not None and self.index.is_absorber(owner):
                yield Built(path, attribute, call, owner, condition)

    # --- arguments

    def bind(self, call: Call, target: Ref, *, skip_first: bool) -> tuple[Bound, ...]:
        """A call's arguments, bound by the callee's parameter order."""
        facts = self.index.facts(target.path)
        if facts is None or target.name not in facts.functions:
            return tuple(Bound(None, passed) for passed in call.arguments)
        _, params, _ = facts.header(target.name)
        keyword_only = facts.keyword_only(target.name)
        order = [p for p in params if p not in keyword_only]
        if skip_first and order and not self._is_static(target):
            order = order[1:]
        bound: list[Bound] = []
        position, hidden = 0, False
        for passed in call.arguments:
            if passed.hides:
                hidden = True
                bound.append(Bound(None, passed))
            elif passed.keyword is not None:
                known = passed.keyword in params
                bound.append(Bound(passed.keyword if known else None, passed))
            else:
                bound.append(Bound(order[position] if position < len(order) and not hidden else None, passed))
                position += 1
        return tuple(bound)

    def _is_static(self, target: Ref) -> bool:
        facts = self.index.facts(target.path)
        if facts is None or facts.header(target.name)[1][:1] == ("self",):
            return False
        first, _ = facts.extent(target.name)
        return any(line.strip() == "@staticmethod" for line in facts.lines[max(first - 4, 0) : first - 1])

    def instance(self, built: Built, maker: Instance) -> Instance:
        """The object that ``maker`` builds there, with the constants that its constructor is given or defaults to."""
        key = (built, maker)
        if key not in self._instances:
            self._instances[key] = self._find_instance(built, maker)
        return self._instances[key]

    def _find_instance(self, built: Built, maker: Instance) -> Instance:
        function = self.index.method(built.owner, "__init__")
        conduct = self.conduct(function) if function is not None else None
        facts = self.index.facts(function.path) if function is not None else None
        if function is None or conduct is None or facts is None:
            return Instance(built.owner)
        bound = self.bind(built.call, function, skip_first=True)
        arguments = {b.parameter: b.passed for b in bound if b.parameter is not None}
        hidden = any(b.passed.hides for b in bound)
        constants = {"True": TRUE, "False": FALSE}
        handed = {**dict(maker.given), **constants}
        given: dict[str, Formula] = {}
        for name, default in facts.header(function.name)[2].items():
            if default is not None and name not in arguments and not hidden:
                given[name] = TRUE if default else FALSE
        for name, passed in arguments.items():
            if passed.text in handed:
                given[name] = handed[passed.text]
        known = {**given, **constants}
        fixed = {f"self.{name}": known[kept] for name, kept in conduct.kept.items() if kept in known}
        return Instance(built.owner, tuple(sorted(given.items())), tuple(sorted(fixed.items())))


def _covers(several: tuple[Built, ...]) -> bool:
    """Whether one of the classes is built whatever holds: what a base built before is replaced."""
    try:
        return not satisfiable(conj(negate(built.condition) for built in several))
    except TooManyAtoms:
        return False
