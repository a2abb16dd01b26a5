"""Who sums instead of a block, read from the tree: dispatchers that combine, communicators that scatter.

A communicator answers a question (`should_use_reduce_scatter`) and later acts. Answer and act are two functions; when
they drift apart, a block that believes the answer sums once too often or not at all.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property, lru_cache, partial
from pathlib import PurePath

from msgspec import Struct

from moe_lint.expressions import NotBoolean
from moe_lint.facts import Call
from moe_lint.formula import FALSE, TRUE, Atom, Formula, assign, atom_set, conj, disj, negate, substitute
from moe_lint.helper import find_definition, is_skip_predicate
from moe_lint.index import ProjectIndex, Ref
from moe_lint.local_predicates import answered
from moe_lint.model import Axis
from moe_lint.policy import Policy, bind
from moe_lint.profile import Flag, Profile
from moe_lint.text import Text

#: `self._scatter_fn is Steps._scatter`: the communicator has chosen that step
_CHOSEN = re.compile(r"^(.+) (?:is|==) ([\w.]+)\.(\w+)$")

_KEYWORDS_ONLY = r"self\.\w+\(((?:\s*\w+\s*=\s*[\w.]+\s*,?)+\s*)\)"
_GIVEN = re.compile(r"(\w+)\s*=(?!=)")
_KEYWORD = re.compile(r"(\w+)\s*=\s*([\w.]+)")


class CombineSum(Struct, frozen=True):
    """A sum inside the experts' dispatcher: what comes out of the experts then is whole already."""

    condition: Formula
    path: str
    line: int
    owner: str


class Twin(Struct, frozen=True):
    """A promise and its delivery: ``promised`` tells blocks not to reduce, ``summed`` is when the step sums instead."""

    flag: Flag
    promise: Ref
    step: Ref
    promised: Formula
    summed: Formula
    #: the line of the first sum in the step
    line: int


class Absorbers:
    """The absorbers of a tree, read when somebody asks for them."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.index = policy.index
        self._layers: dict[Ref, tuple[Ref, ...]] = {}
        self._publishes: dict[str, frozenset[str]] = {}

    @cached_property
    def combines(self) -> tuple[CombineSum, ...]:
        axes: tuple[Axis, ...] = ("TP", "EP") if self.policy.helper is not None else ()
        reasons = [reason.formula for axis in axes for reason in self.policy.reasons(axis)]
        return tuple(combine_sums(self.index, atom_set(disj(reasons))))

    @cached_property
    def twins(self) -> tuple[Twin, ...]:
        return tuple(_twins(self.policy))

    @cached_property
    def asked(self) -> bool:
        """Whether blocks are told by flags who sums, rather than by a contract with the layer around them."""
        policy = self.policy
        if not policy.profile.flags:
            return True  # an engine without such flags: the helper knows by itself
        questions = [f"def {flag.predicate}(" for flag in policy.profile.flags if flag.predicate]
        told = policy.helper is not None and (policy.helper.proposed or bool(policy.helper.flags))
        return told or any(map(self.index.holding, questions))

    @cached_property
    def homes(self) -> dict[str, str]:
        """Function that makes an absorber -> its file, or the folder of the package that defines and exports it."""
        names = [name for name in self.policy.profile.absorber_constructors if "*" not in name]
        found = {name: find_definition(self.index, name) for name in names}
        return {name: self._home(name, ref.path) for name, ref in found.items() if ref is not None}

    def _home(self, name: str, path: str) -> str:
        folder = PurePath(path).parent
        package = str(folder / "__init__.py")
        facts = self.index.facts(package) if package in self.index.known_paths else None
        return f"{folder}/" if facts is not None and name in facts.imports else path

    def is_home(self, path: str) -> bool:
        """Whether a file belongs to a package that defines absorbers."""
        return path.startswith(tuple(self.homes.values()))

    def published(self, block: Ref) -> frozenset[str]:
        """The flags that the boundaries around a block publish by themselves: each is their word that they sum.

        Told from the text: of the layers, which boundaries they make; of the boundaries' packages, what these publish.
        """
        texts = self._texts(block)
        return frozenset(
            flag
            for name, home in self.homes.items()
            if any(text.holds(f"{name}(") for text in texts)
            for flag in self._published(home)
        )

    def _published(self, home: str) -> frozenset[str]:
        if home not in self._publishes:
            self._publishes[home] = self._find_published(home)
        return self._publishes[home]

    def _find_published(self, home: str) -> frozenset[str]:
        profile = self.policy.profile
        publish = "|".join(re.escape(name) for name in profile.publishers) or "(?!)"
        near = (text for path, text in self.index.texts.items() if path.startswith(home))
        texts = [text for text in near if any(text.holds(f".{name}(") for name in profile.publishers)]
        calls = [call for text in texts for call in text.finds(rf"\.(?:{publish})\(([^()]*)\)")]
        given = {name for call in calls for name in _GIVEN.findall(call)}
        return frozenset(flag for name, flag in profile.flag_names.items() if name in given)

    def layers(self, block: Ref) -> tuple[Ref, ...]:
        """The classes around a block up to those that build an absorber."""
        if block not in self._layers:
            seen, frontier = {block}, [block]
            while frontier:
                current = frontier.pop()
                if self.index.constructs_absorber(current):
                    continue
                around = self.index.users(current) | frozenset(self.index.subclasses(current))
                frontier += sorted(around - seen)
                seen |= around
            self._layers[block] = tuple(sorted(seen))
        return self._layers[block]

    def can_be_set(self, flag: Flag, block: Ref) -> bool:
        """Whether a layer around a block asks the flag's question, or permits the step that sums without being asked.

        Told from the text of their files: a `True` for the permission, or a call of the question.
        """
        if not flag.predicate or flag.name in self.published(block):
            return True
        words = [f"{flag.predicate}("]
        for twin in self.twins:
            if twin.flag == flag:
                words += [f"{name[5:]}=True" for name in atom_set(twin.summed) if name.startswith("self.")]
        texts = self._texts(block)
        return any(text.holds(word) for text in texts for word in words)

    def kept(self, block: Ref) -> Formula:
        """What the layers around a block make sure of: a flag is set wherever every communicator promises its sum.

        A permission counts as given where all of their files give it.
        """
        texts, parts = self._texts(block), []
        for flag in self.policy.profile.flags:
            promises = []
            for promised in (twin.promised for twin in self.twins if twin.flag == flag):
                for name in sorted(n for n in atom_set(promised) if n.startswith("self.") and n[5:].isidentifier()):
                    keyword = rf"{name[5:]}(?<!\w{name[5:]})=(\w+)"
                    given = {value for text in texts for value in text.finds(keyword)}
                    promised = assign(promised, name, TRUE) if given == {"True"} else promised
                promises.append(promised)
            if promises:
                parts.append(disj((negate(conj(promises)), Atom(flag.name))))
        return conj(parts)

    def _texts(self, block: Ref) -> list[Text]:
        """The files of the layers around a block, without those of the absorbers themselves."""
        layers = self.layers(block)
        paths = {ref.path for layer in layers for ref in self.index.mro(layer) if not self.index.is_absorber(ref)}
        return [self.index.texts[path] for path in sorted(paths) if path in self.index.texts]


@lru_cache(maxsize=2)
def absorbers_of(policy: Policy) -> Absorbers:
    """The absorbers of the tree that a policy judges."""
    return Absorbers(policy)


def combine_sums(index: ProjectIndex, reasons: Collection[str] = ()) -> Iterator[CombineSum]:
    """The sums in the tree's dispatchers whose condition only asks global questions, so that others can ask it, too.

    ``reasons`` are what the helper asks: skip predicates whatever they are called.
    """
    profile = index.profile
    for path in sorted({path for name in profile.combines for path in index.holding(f"def {name}(")}):
        if not any(index.texts[path].holds(name.strip("*")) for name in profile.scatters):
            continue
        facts = index.facts(path)
        for name in facts.functions if facts is not None else ():
            owner, _, method = name.rpartition(".")
            if facts is None or method not in profile.combines or not owner:
                continue
            for scatter in facts.function(name).scatters:
                if _is_global(scatter.condition, profile, reasons):
                    yield CombineSum(scatter.condition, path, scatter.span.line, owner)


def _is_global(condition: Formula, profile: Profile, reasons: Collection[str]) -> bool:
    names, getter = atom_set(condition), profile.backend_getter
    return bool(names) and all(
        is_skip_predicate(name, profile)
        or (name in reasons and name.removesuffix("()").isidentifier() and name.endswith("()"))
        or bool(getter and name.startswith(f"{getter}."))
        for name in names
    )


def _twins(policy: Policy) -> Iterator[Twin]:
    """Every promise in the tree that names the step which keeps it."""
    index = policy.index
    for flag in policy.profile.flags:
        for path in index.holding(f"def {flag.predicate}(") if flag.predicate else ():
            facts = index.facts(path)
            for name in facts.functions if facts is not None else ():
                owner, _, method = name.rpartition(".")
                if facts is None or method != flag.predicate or not owner:
                    continue
                try:
                    promised = answered(facts.condition(name), owner, path, index)
                except NotBoolean:
                    continue
                yield from _twins_of(flag, Ref(path, name), promised, policy)


def _twins_of(flag: Flag, promise: Ref, promised: Formula, policy: Policy) -> Iterator[Twin]:
    index = policy.index
    chosen = {name: match for name in sorted(atom_set(promised)) if (match := _CHOSEN.match(name)) is not None}
    for name, match in chosen.items():
        owner = index.resolve(promise.path, match[2])
        step = index.method(owner, match[3]) if owner is not None else None
        body = index.function(step) if step is not None else None
        scatters = list(_scatters(step, index)) if step is not None else []
        if step is None or body is None or not scatters:
            continue
        here = promised
        for other, its in chosen.items():
            if its[1] == match[1]:
                here = assign(here, other, TRUE if other == name else FALSE)
        arguments = _arguments(promise, body.params, index)
        bound = partial(_bound, arguments=arguments)
        conditions = disj(condition for condition, _ in scatters)
        if any(name in body.params and name not in arguments for name in atom_set(conditions)):
            continue  # what the communicator passes for that parameter is not seen
        summed = substitute(conditions, bound)
        yield Twin(flag, promise, step, here, summed, scatters[0][1])


def _scatters(step: Ref, index: ProjectIndex) -> Iterator[tuple[Formula, int]]:
    """(condition, line) of each call of a step that sums and scatters: by itself, or in a function that it calls."""
    body, facts = index.function(step), index.facts(step.path)
    owner = step.name.rpartition(".")[0] or None
    if body is None or facts is None:
        return
    if body.scatters:
        yield from ((scatter.condition, scatter.span.line) for scatter in body.scatters)
        return
    for call in facts.conduct(step.name).calls:
        targets = index.targets(step.path, owner, call.callee)
        inner = index.function(targets[0].function) if len(targets) == 1 else None
        if inner is None or not inner.scatters or any(passed.hides for passed in call.arguments):
            continue
        values = _given(call, inner.params, inner.defaults)
        conditions = [bind(scatter.condition, values, index.profile) for scatter in inner.scatters]
        left = {name for condition in conditions for name in atom_set(condition)} & set(inner.params) - {*body.params}
        if not left:
            yield disj(conj((call.condition, condition)) for condition in conditions), call.span.line


def _given(call: Call, params: tuple[str, ...], defaults: Mapping[str, bool | None]) -> dict[str, Formula]:
    """Parameter of a function -> what a call passes for it."""
    order = [name for name in params if name not in ("self", "cls")]
    values = {name: TRUE if default else FALSE for name, default in defaults.items() if default is not None}
    values |= {n: Atom(p.text) for n, p in zip(order, (p for p in call.arguments if p.keyword is None), strict=False)}
    return values | {passed.keyword: Atom(passed.text) for passed in call.arguments if passed.keyword is not None}


def _arguments(promise: Ref, params: tuple[str, ...], index: ProjectIndex) -> dict[str, str]:
    """Parameter of a step -> what the communicator passes for it when it runs the chosen one by keywords."""
    found: dict[str, str] = {}
    for owner in index.mro(Ref(promise.path, promise.name.rpartition(".")[0])):
        facts = index.facts(owner.path)
        if facts is None or owner.name not in facts.classes:
            continue
        for call in facts.finds(owner.name, _KEYWORDS_ONLY):
            given = dict(_KEYWORD.findall(call))
            if given and given.keys() <= set(params):
                found = {**given, **found}
    return found


def _bound(atom: str, arguments: dict[str, str]) -> Formula | None:
    """The atom with the communicator's arguments in place of the step's parameters."""

    class Binder(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            given = arguments.get(node.id)
            return node if given is None else ast.parse(given, mode="eval").body

    text = ast.unparse(Binder().visit(ast.parse(atom, mode="eval").body))
    return None if text == atom else Atom(text)
