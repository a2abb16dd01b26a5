"""Layers that a model builds one of, a next-token head: whether what tells the last layer knows that one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from msgspec import Struct

from moe_lint.callers import Built, Callers, Layer
from moe_lint.expressions import dotted
from moe_lint.facts import FileFacts
from moe_lint.index import Ref
from moe_lint.profile import Flag
from moe_lint.rules.base import Context

_COUNT = re.compile(r"\bnum_(?:\w+_)?layers$")
#: A class that says where its own layer comes: `f"layers.{config.num_hidden_layers}"`, `start_index = config.num_…`.
_BEHIND_ALL = (
    r"(?:\blayers\.[\"']?\s*[{{+][^\n]{{0,20}}|\b\w*(?:start|first|base)\w*\s*=\s*)"
    r"(?:self\.)?(?:\w+\.)*{count}\b(?!\s*-)"
)


class Lone(Struct, frozen=True):
    """A model, the one layer that it builds, the index that this is given, and what counts the other layers."""

    model: Ref
    built: Built
    index: int
    count: str


def lone_layers(context: Context, layer: Layer, flag: Flag) -> Iterator[Lone]:
    """The models whose only layer is of this class and does not take itself for the last one.

    Sure where the class says itself that its layer comes behind all that are counted: then the layer's index is that
    number, and it is not the last of them.
    """
    callers = context.callers
    told = [text for built in layer.absorbers if (text := _told(callers, built, flag)) is not None]
    if len(told) != len(layer.absorbers):
        return
    for model in sorted(context.index.users(layer.owner)):
        built = _only_one(callers, model, layer, flag)
        found = {_index(callers, layer, model, built, text) for text in told} if built is not None else set()
        if built is None or len(found) != 1:
            continue
        for answer in found - {None}:
            if answer is not None and not _settles(context, model):
                yield Lone(model, built, *answer)


def _told(callers: Callers, absorber: Built, flag: Flag) -> str | None:
    """With what a communicator is told whether its layer is the last one."""
    constructor = callers.index.method(absorber.owner, "__init__")
    if constructor is None or any(passed.hides for passed in absorber.call.arguments):
        return None
    bound = callers.bind(absorber.call, constructor, skip_first=True)
    return next((b.passed.text for b in bound if b.parameter == flag.last), None)


def _only_one(callers: Callers, model: Ref, layer: Layer, flag: Flag) -> Built | None:
    """The layer of a class that holds no other: none in a list, none of another class."""
    index = callers.index
    owners = {one.owner for one in callers.layers}
    held = [built for several in callers.built(model).values() for built in several if built.owner in owners]
    own = [built for built in held if built.owner == layer.owner]
    facts = index.facts(model.path)
    if facts is None or not any(facts.holds(model.name, head) for head in index.profile.heads):
        return None
    if len(own) != 1 or len({built.attribute for built in held}) != 1:
        return None
    short = layer.owner.name.rsplit(".", 1)[-1]
    named = facts.finds(model.name, rf"\b{short}\(")
    # who says afterwards which layer is the last: `self.layer_communicator.is_last_layer = True`
    classes = (model, *index.mro(layer.owner))
    later = any(
        (home := index.facts(ref.path)) is not None and home.finds(ref.name, rf"\w\.\w+\.{flag.last}\s*=(?!=)")
        for ref in classes
        if not index.is_absorber(ref)
    )
    return own[0] if len(named) == 1 and not later else None


def _index(callers: Callers, layer: Layer, model: Ref, built: Built, text: str) -> tuple[int, str] | None:
    """The layer's index and what counts the others, if a condition is false for it and true for the last of them."""
    constructor = callers.index.method(layer.owner, "__init__")
    conduct = callers.conduct(constructor) if constructor is not None else None
    facts, home = callers.index.facts(layer.owner.path), callers.index.facts(model.path)
    if constructor is None or conduct is None or facts is None or home is None:
        return None
    if any(passed.hides for passed in built.call.arguments):
        return None
    given = {b.parameter: b.passed.text for b in callers.bind(built.call, constructor, skip_first=True)}
    defaults = facts.header(constructor.name)[2] if constructor.path == layer.owner.path else {}
    found = None
    for part in _alternatives(text):
        name = dotted(part)
        if name is not None:
            parameter = conduct.kept.get(name.removeprefix("self."), name)
            if given.get(parameter, str(defaults.get(parameter))) != "False":
                return None  # it is told in another way
            continue
        sides = _compared(part)
        if sides is None or found is not None:
            return None
        parameter = conduct.kept.get(sides[0].removeprefix("self."), sides[0])
        number = _number(given.get(parameter, ""), home, model)
        count = sides[1].removeprefix("self.")
        last = count.rpartition(".")[2]
        if number is None or home.finds(model.name, rf"\b{last}\s*=(?!=)"):
            return None
        if not home.finds(model.name, _BEHIND_ALL.format(count=last)):
            return None
        found = number, count
    return found


def holds_for_none(callers: Callers, layer: Layer, text: str) -> bool:
    """Whether a condition is that a layer's index is the number of layers: `layer_id == config.num_hidden_layers`.

    Or that, or what a layer's constructor is told, and is not by default: `is_nextn or layer_id == …`.
    """
    constructor = callers.index.method(layer.owner, "__init__")
    conduct = callers.conduct(constructor) if constructor is not None else None
    facts = callers.index.facts(constructor.path) if constructor is not None else None
    counted = False
    for part in _alternatives(text):
        name = dotted(part)
        if name is None:
            sides = (part.left, *part.comparators) if isinstance(part, ast.Compare) else ()
            names = [dotted(side) for side in sides]
            equal = isinstance(part, ast.Compare) and len(part.ops) == 1 and isinstance(part.ops[0], ast.Eq)
            counted = equal and None not in names and any(_COUNT.search(one or "") for one in names)
            if not counted:
                return False
        elif constructor is None or conduct is None or facts is None:
            return False
        else:
            parameter = conduct.kept.get(name.removeprefix("self."), name)
            if facts.header(constructor.name)[2].get(parameter) is not False:
                return False
    return counted


def _alternatives(text: str) -> list[ast.expr]:
    node = ast.parse(text, mode="eval").body
    return node.values if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or) else [node]


def _compared(node: ast.expr) -> tuple[str, str] | None:
    """(index, count) of `layer_id == config.num_hidden_layers - 1`, however it is turned."""
    if not isinstance(node, ast.Compare) or len(node.ops) != 1 or not isinstance(node.ops[0], ast.Eq):
        return None
    for one, other in ((node.left, node.comparators[0]), (node.comparators[0], node.left)):
        moved = _moved(other, ast.Sub), _moved(one, ast.Add)
        pair = (dotted(one), moved[0]) if moved[0] is not None else (moved[1], dotted(other))
        index, count = pair
        if index is not None and count is not None and _COUNT.search(count) and not _COUNT.search(index):
            return index, count
    return None


def _moved(node: ast.expr, by: type[ast.operator]) -> str | None:
    """`x` of `x - 1` or `x + 1`."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, by):
        return None
    one = node.right.value if isinstance(node.right, ast.Constant) else None
    return dotted(node.left) if one == 1 else None


def _number(text: str, home: FileFacts, model: Ref) -> int | None:
    """A literal index, or that of a name which the constructor sets to one."""
    if text.isdigit():
        return int(text)
    if not text.isidentifier():
        return None
    found = home.finds(f"{model.name}.__init__", rf"^\s*{text}\s*=(?!=)\s*(.*?)\s*(?:#.*)?$")
    return int(found[0]) if len(found) == 1 and found[0].isdigit() else None


def _settles(context: Context, model: Ref) -> bool:
    """Whether a class sums what its layer may leave."""
    around = {model, *context.index.mro(model)}
    return any(Ref(site.path, site.raw.class_name or "") in around for site in context.sites)
