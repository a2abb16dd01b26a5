"""What has been found out about a file so far, without its text and without syntax nodes, so that it can be kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from functools import lru_cache

from msgspec import Struct, field
from msgspec.msgpack import Decoder, encode
from msgspec.structs import replace

from moe_lint.facts.conduct import Conduct, Reading
from moe_lint.facts.data import ClassFacts, FunctionFacts, Paths
from moe_lint.facts.groups import GroupChoice
from moe_lint.facts.leaving import Leaving
from moe_lint.facts.outline import Block, Method
from moe_lint.formula import Formula
from moe_lint.model import Span


class Part(Struct, frozen=True, tag=True, array_like=True):
    """A class or function that is parsed alone; a class perhaps without its methods (which are then parsed alone)."""

    block: Block
    without: tuple[Method, ...] = ()


class Definition(Struct, array_like=True):
    """Where a function stands: its lines, its class, the function it is nested in, and what to parse for its node."""

    name: str
    line: int
    last: int
    class_name: str | None
    parent: str | None
    #: None: the file's top level, or all of it
    part: Method | Part | None
    is_property: bool
    #: it was parsed, so what it defines is known
    known: bool = True


class Signature(Struct, frozen=True, array_like=True):
    """A function without its body."""

    line: int
    params: tuple[str, ...]
    #: parameters that have a default -> the default when it is a truth value, else None
    defaults: Mapping[str, bool | None]
    keyword_only: frozenset[str]


class Unclear(Struct, frozen=True, tag=True, array_like=True):
    """Why a function is no boolean function of what it asks, and the line where it stops being one."""

    line: int
    what: str


class FileState(Struct, array_like=True):
    """The answers of a `FileFacts` so far. Names are qualified, lines count from 1."""

    blocks: list[Block] = field(default_factory=list)
    #: the blocks that nobody has asked for
    unread: dict[str, list[Block]] = field(default_factory=dict)
    #: local name -> (module as written, with leading dots; imported name, or None for a module)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    #: local name -> the name that was imported
    aliases: dict[str, str] = field(default_factory=dict)
    modules: frozenset[str] = frozenset()
    definitions: dict[str, Definition] = field(default_factory=dict)
    classes: dict[str, ClassFacts] = field(default_factory=dict)
    #: class -> its first and last line
    extents: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: class -> its own methods, in order; a name may occur twice (an overload, a setter)
    methods: dict[str, list[Definition]] = field(default_factory=dict)
    #: attribute -> the lines that may assign it; None: nobody has asked
    assigning: dict[str, list[int]] | None = None
    #: (line, text in parentheses) of every class that has such a text; None: nobody has asked
    headers: list[tuple[int, str]] | None = None
    #: every method that was left out when its class was parsed, those that a later one of the name replaces too
    apart: list[Definition] = field(default_factory=list)
    #: the lines of those that define nothing themselves, as their text tells
    plain: set[int] = field(default_factory=set)
    signatures: dict[str, Signature] = field(default_factory=dict)
    functions: dict[str, FunctionFacts] = field(default_factory=dict)
    conditions: dict[str, Formula | Unclear] = field(default_factory=dict)
    conducts: dict[str, Conduct] = field(default_factory=dict)
    paths: dict[str, Paths] = field(default_factory=dict)
    #: (class or function, word) -> whether its text holds the word
    held: dict[tuple[str, str], bool] = field(default_factory=dict)
    #: (class or function, pattern) -> whether the pattern occurs in its text
    matched: dict[tuple[str, str], bool] = field(default_factory=dict)
    #: (class, function, or "" for the file; pattern) -> what the pattern finds in its text
    found: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    #: (class, method) -> how often the class calls it on itself; None: it names it in another way, too
    own_calls: dict[tuple[str, str], int | None] = field(default_factory=dict)
    #: name -> the qualified names of the classes and functions of that name that are not at the top level
    inner: dict[str, list[str]] = field(default_factory=dict)
    #: line outside of classes and functions -> the name that its statement assigns
    assigned: dict[int, str | None] = field(default_factory=dict)
    #: (function, call in it, condition in it) -> whether the condition decides about the call alone
    alone: dict[tuple[str, Span, Span], bool] = field(default_factory=dict)
    #: (function, call in it) -> what must hold for the call to be reached
    reached: dict[tuple[str, Span], Formula] = field(default_factory=dict)
    #: (function, calls of layers, calls that hand on what they return) -> where that may be settled before
    places: dict[tuple[str, tuple[Span, ...], tuple[Span, ...]], Leaving | None] = field(default_factory=dict)
    #: (function, call in it) -> the one name that its result is given
    results: dict[tuple[str, Span], str | None] = field(default_factory=dict)
    #: function -> the names of what it returns first
    returned: dict[str, frozenset[str | None]] = field(default_factory=dict)
    #: function -> the choices between the sizes of two groups, and all that it calls
    choices: dict[str, tuple[tuple[GroupChoice, ...], tuple[str, ...]]] = field(default_factory=dict)
    #: module-level function -> (class, method) of what it is put in place of
    patched: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    #: (function, local or parameter) -> whether the function assigns it
    stored: dict[tuple[str, str], bool] = field(default_factory=dict)
    #: (class, attribute) -> whether the class hands on what the attribute holds
    handed: dict[tuple[str, str], bool] = field(default_factory=dict)
    #: reductions whose guard libcst reads as it is read here
    confirmed: set[Span] = field(default_factory=set)
    #: everything was looked at for errors
    whole: bool = False

    @property
    def answers(self) -> int:
        """How many there are: they only become more."""
        headers: tuple[Sized, ...] = (self.definitions, self.classes, self.plain, self.signatures)
        bodies: tuple[Sized, ...] = (self.functions, self.conditions, self.conducts, self.paths, self.confirmed)
        parts: tuple[Sized, ...] = (self.alone, self.reached, self.places, self.returned, self.choices, self.handed)
        more: tuple[Sized, ...] = (self.patched, self.stored, self.inner, self.assigned, self.results)
        texts: tuple[Sized, ...] = (self.held, self.matched, self.found, self.own_calls)
        once = self.whole + (self.assigning is not None) + (self.headers is not None)
        return sum(map(len, (*headers, *bodies, *parts, *more, *texts))) + once - len(self.unread)


class _Kept(Struct, array_like=True):
    """A state as it is kept: what stands in several places of it is kept once."""

    #: without what follows
    state: FileState
    #: each definition; elsewhere it is meant by its number here
    listed: list[Definition]
    definitions: dict[str, int]
    methods: dict[str, list[int]]
    apart: list[int]
    unread: list[str]
    #: the modules that are no key of the imports, and the keys that are no module
    dotted: frozenset[str]
    inner: frozenset[str]


def encoded(state: FileState) -> memoryview:
    """The state as bytes. Truth values that nobody has asked for are left to be worked out anew."""
    places = (state.definitions.values(), *state.methods.values(), state.apart)
    listed = list({id(definition): definition for place in places for definition in place}.values())
    number = {id(definition): position for position, definition in enumerate(listed)}
    imported = state.imports.keys()
    kept = _Kept(
        replace(state, definitions={}, methods={}, apart=[], unread={}, modules=frozenset()),
        listed,
        {name: number[id(definition)] for name, definition in state.definitions.items()},
        {name: [number[id(definition)] for definition in own] for name, own in state.methods.items()},
        [number[id(definition)] for definition in state.apart],
        list(state.unread),
        state.modules - imported,
        frozenset(imported - state.modules),
    )
    return memoryview(encode(kept, enc_hook=lambda reading: None))


def decoded(data: memoryview, path: str, tell: Callable[[str, int], Formula]) -> FileState:
    """The state of the file at ``path`` from its bytes. ``tell`` works out a truth value: function, its number there.

    Raises ``msgspec.MsgspecError``.
    """

    kept = _decoder().decode(data)
    state, listed = kept.state, kept.listed
    state.definitions = {name: listed[number] for name, number in kept.definitions.items()}
    state.methods = {name: [listed[number] for number in own] for name, own in kept.methods.items()}
    state.apart = [listed[number] for number in kept.apart]
    state.unread = {name: [] for name in kept.unread}
    for block in state.blocks:
        if block.name in state.unread:
            state.unread[block.name].append(block)
    state.modules = frozenset(state.imports.keys() - kept.inner | kept.dotted)
    for function, conduct in state.conducts.items():
        reading = Reading(path, function, tell)
        for call in conduct.calls:
            for passed in call.arguments:
                if passed.truth is not None:
                    passed.truth.reading = reading
            for passed in call.published:
                if passed.truth is not None:
                    passed.truth.reading = reading
    return state


@lru_cache(maxsize=1)
def _decoder() -> Decoder[_Kept]:
    return Decoder(_Kept)
