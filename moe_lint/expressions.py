"""Python conditions -> formulas.

An expression is first resolved (locals, import aliases and single-assignment attributes are replaced by what they
stand for), then taken apart at ``and``, ``or``, ``not``, ternaries and comparisons of sizes. What remains is an atom,
named by its normalised source text, so that the same question has the same name in every file.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moe_lint.formula import FALSE, TRUE, Atom, Formula, choose, conj, disj, negate
from moe_lint.profile import Profile
from moe_lint.spelling import unparse

#: An expression with more nodes than this is not substituted for a name: the name itself stays the atom.
_SUBSTITUTION_LIMIT = 60

#: Expressions without another inside: about half of all nodes. A search that does not look into them is faster.
LEAVES = (ast.Name, ast.Constant)

_FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.Gt: ast.Lt,
    ast.LtE: ast.GtE,
    ast.GtE: ast.LtE,
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
    ast.Is: ast.Is,
    ast.IsNot: ast.IsNot,
}


class Resolver:
    """Replaces names by what they stand for at one point of a function.

    ``lookup`` maps the text of a name or a ``self.x`` chain to its value, or None. ``canonical`` maps a local alias of
    an imported name to the name, and a dotted access through an imported module to its last part.
    """

    def __init__(
        self,
        lookup: Callable[[str], ast.expr | None],
        aliases: Mapping[str, str],
        modules: frozenset[str],
        profile: Profile,
    ) -> None:
        self._lookup = lookup
        self._aliases = aliases
        self._modules = modules
        self._profile = profile
        self._active: set[str] = set()

    def resolve(self, node: ast.expr) -> ast.expr:
        """A copy of ``node`` with names resolved; ``node`` itself when nothing changes."""
        if isinstance(node, ast.Name):
            return self._name(node)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Constant | ast.Lambda | ast.JoinedStr):
            return node
        if isinstance(node, ast.NamedExpr):
            return self.resolve(node.value)
        if isinstance(node, ast.Call) and not node.args and not node.keywords:
            return self._own_question(node) or self._children(node)
        return self._children(node)

    def _own_question(self, node: ast.Call) -> ast.expr | None:
        """What ``self.x()`` answers, when the class says so in one expression."""
        text = f"{dotted(node.func)}()"
        if not text.startswith("self.") or text in self._active or text[5:-2] in self._profile.helpers:
            return None
        value = self._lookup(text)
        if value is None:
            return None
        self._active.add(text)
        resolved = self.resolve(value)
        self._active.discard(text)
        return resolved

    def _name(self, node: ast.Name) -> ast.expr:
        if node.id in self._profile.flag_names:
            return node
        value = self._lookup(node.id)
        if value is not None:
            return value
        alias = self._aliases.get(node.id)
        return node if alias is None or alias == node.id else ast.Name(alias, ast.Load())

    def _attribute(self, node: ast.Attribute) -> ast.expr:
        text = dotted(node)
        if text is not None:
            if self._profile.is_size(text) or node.attr in self._profile.helpers:
                return node
            value = self._lookup(text)
            if value is not None and text not in self._active:
                self._active.add(text)  # `self.a = f(self.b)`, `self.b = g(self.a)` must come to an end
                resolved = self.resolve(value)
                self._active.discard(text)
                return resolved
            prefix = text.rpartition(".")[0]
            if prefix in self._modules:
                return ast.Name(node.attr, ast.Load())
        base = self.resolve(node.value)
        return node if base is node.value else ast.Attribute(base, node.attr, node.ctx)

    def _children(self, node: ast.expr) -> ast.expr:
        changed: dict[str, object] = {}
        for field, value in ast.iter_fields(node):
            if isinstance(value, ast.expr):
                new: object = self.resolve(value)
                if new is not value:
                    changed[field] = new
            elif isinstance(value, list) and value:
                items = [self._item(item) for item in value]
                if any(new is not old for new, old in zip(items, value, strict=True)):
                    changed[field] = items
        if not changed:
            return node
        fields = {**dict(ast.iter_fields(node)), **changed}
        return type(node)(**fields)

    def _item(self, item: object) -> object:
        if isinstance(item, ast.expr):
            return self.resolve(item)
        if isinstance(item, ast.keyword):
            value = self.resolve(item.value)
            return item if value is item.value else ast.keyword(item.arg, value)
        return item


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it, as `ast.walk` without its queue: twice as fast."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        if isinstance(current, LEAVES):
            continue
        for field in current._fields:
            value = getattr(current, field, None)
            if isinstance(value, list):
                stack += [item for item in value if isinstance(item, ast.AST)]
            elif isinstance(value, ast.AST) and not isinstance(value, ast.expr_context):
                stack.append(value)


def dotted(node: ast.expr) -> str | None:
    """``a.b.c`` for a chain of attributes of a name (subscripts are looked through), else None."""
    parts: list[str] = []
    while True:
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        elif isinstance(node, ast.Subscript):
            node = node.value
        elif isinstance(node, ast.Name):
            parts.append(node.id)
            return ".".join(reversed(parts))
        elif (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super" and not node.args
        ):
            parts.append("super()")
            return ".".join(reversed(parts))
        else:
            return None


def is_condition(node: ast.expr) -> bool:
    """Whether an expression may stand for itself in a guard: a condition, or a cheap question or alias in one."""
    return isinstance(node, ast.Name) or (_kind_of_condition(node) and not _exceeds_limit(node))


def _exceeds_limit(node: ast.expr) -> bool:
    """Whether an expression has too many nodes to be substituted; stops counting as soon as it has."""
    end = getattr(node, "end_col_offset", None)
    if end is not None and node.lineno == node.end_lineno and end - node.col_offset <= _SUBSTITUTION_LIMIT // 2:
        return False  # a character makes two nodes at most: a name and its context, an operation and its operator
    count = 0
    stack: list[ast.AST] = [node]
    while stack:
        current = stack.pop()
        count += 2 if isinstance(current, ast.Name) else 1  # a name has a context
        if count > _SUBSTITUTION_LIMIT:
            return True
        if isinstance(current, LEAVES):
            continue
        for field in current._fields:
            value = getattr(current, field, None)
            if isinstance(value, ast.AST):
                stack.append(value)
            elif isinstance(value, list):
                stack += [item for item in value if isinstance(item, ast.AST)]
    return False


def _kind_of_condition(node: ast.expr) -> bool:
    if isinstance(node, ast.BoolOp | ast.Compare):
        return True
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    if isinstance(node, ast.IfExp):
        return _kind_of_condition(node.body) and _kind_of_condition(node.orelse)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool | None)
    if isinstance(node, ast.Call):
        name = (dotted(node.func) or "").rsplit(".", 1)[-1]
        constructs = name.lstrip("_")[:1].isupper()  # `self.experts = Experts()` is an object, no answer to a question
        return not constructs and (bool(name) or isinstance(node.func, ast.Attribute))
    return isinstance(node, ast.Name | ast.Attribute | ast.Subscript) and dotted(node) is not None


class FormulaBuilder:
    """Resolved expressions -> formulas, with flags, sizes and comparisons normalised by the profile."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile

    def build(self, node: ast.expr) -> Formula:
        """When an expression is true. What is not taken apart is an atom of its text."""
        if isinstance(node, ast.BoolOp):
            parts = (self.build(value) for value in node.values)
            return conj(parts) if isinstance(node.op, ast.And) else disj(parts)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return disj((self.build(node.left), self.build(node.right)))  # true if one is, of numbers, too
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return negate(self.build(node.operand))
        if isinstance(node, ast.IfExp):
            return choose(self.build(node.test), self.build(node.body), self.build(node.orelse))
        if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool)):
            return TRUE if node.value else FALSE
        if isinstance(node, ast.Compare):
            return self._compare(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Name | ast.Attribute):
            last = node.id if isinstance(node, ast.Name) else node.attr
            flag = self._profile.flag_names.get(last)
            if flag is not None:
                return Atom(flag)
            if isinstance(node, ast.Attribute) and last in self._profile.helpers:
                return Atom(f"{last}()")  # a property
        return Atom(unparse(node))

    def _call(self, node: ast.Call) -> Formula:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "bool" and len(node.args) == 1 and not node.keywords:
            return self.build(node.args[0])
        if name in ("all", "any") and len(node.args) == 1 and isinstance(node.args[0], ast.Tuple | ast.List):
            parts = (self.build(value) for value in node.args[0].elts)
            return conj(parts) if name == "all" else disj(parts)
        if name == "getattr" and 2 <= len(node.args) <= 3:
            key = node.args[1]
            if isinstance(key, ast.Constant) and isinstance(key.value, str) and key.value.isidentifier():
                return self.build(ast.Attribute(node.args[0], key.value, ast.Load()))
        if isinstance(node.func, ast.Attribute) and node.func.attr in self._profile.helpers:
            # whoever is asked (`self.experts.skip()`), the question is the same
            return Atom(unparse(ast.Call(ast.Name(node.func.attr, ast.Load()), node.args, node.keywords)))
        return Atom(unparse(node))

    def _compare(self, node: ast.Compare) -> Formula:
        parts: list[Formula] = []
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            parts.append(self._pair(left, operator, right))
            left = right
        return conj(parts)

    def _pair(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> Formula:
        if isinstance(left, ast.Constant) and not isinstance(right, ast.Constant) and type(operator) in _FLIPPED:
            left, operator, right = right, _FLIPPED[type(operator)](), left
        if isinstance(right, ast.Constant):
            value = right.value
            if value is None or isinstance(value, bool):
                return self._identity(left, operator, value)
            if isinstance(value, int):
                return self._integer(left, operator, value)
        if isinstance(operator, ast.In | ast.NotIn) and isinstance(right, ast.Tuple | ast.List | ast.Set):
            found = disj(self._pair(left, ast.Eq(), item) for item in right.elts)
            return found if isinstance(operator, ast.In) else negate(found)
        if isinstance(operator, ast.NotEq | ast.NotIn | ast.IsNot):
            positive = {ast.NotEq: ast.Eq, ast.NotIn: ast.In, ast.IsNot: ast.Is}[type(operator)]()
            return negate(self._pair(left, positive, right))
        first, second = left, right
        if isinstance(operator, ast.Eq) and not isinstance(right, ast.Constant) and unparse(left) > unparse(right):
            first, second = right, left
        return Atom(unparse(ast.Compare(first, [operator], [second])))

    def _identity(self, left: ast.expr, operator: ast.cmpop, value: bool | None) -> Formula:
        if value is None:
            absent = Atom(f"{unparse(left)} is None")
            return negate(absent) if isinstance(operator, ast.IsNot | ast.NotEq) else absent
        same = self.build(left) if value else negate(self.build(left))
        return negate(same) if isinstance(operator, ast.IsNot | ast.NotEq) else same

    def _integer(self, left: ast.expr, operator: ast.cmpop, value: int) -> Formula:
        """Integer comparisons as ``x > n``; a group's size is at least 1, so ``!= 1`` is ``> 1`` there."""
        text = unparse(left)
        if isinstance(operator, ast.Gt | ast.LtE):
            above = value
        elif isinstance(operator, ast.GtE | ast.Lt):
            above = value - 1
        elif isinstance(operator, ast.Eq | ast.NotEq) and value == 1 and self._profile.is_size(text):
            above = 1
        else:
            same = Atom(f"{text} == {value}")
            return negate(same) if isinstance(operator, ast.NotEq) else same
        positive = isinstance(operator, ast.Gt | ast.GtE | ast.NotEq)
        if above < 1 and self._profile.is_size(text):
            return TRUE if positive else FALSE
        greater = Atom(f"{text} > {above}")
        return greater if positive else negate(greater)


#: What `skip |= asked()` and `skip &= asked()` do to truth values.
JOINS: dict[type[ast.operator], type[ast.boolop]] = {ast.BitOr: ast.Or, ast.BitAnd: ast.And}


class NotBoolean(ValueError):
    """A function body that is not a boolean function of its inputs; ``line`` is where it stops being one."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line
        self.what = what


def boolean_body(
    body: list[ast.stmt],
    resolve: Callable[[ast.expr, Mapping[str, ast.expr]], Formula],
    env: Mapping[str, ast.expr] | None = None,
) -> Formula:
    """The formula that a function body returns: ``if``, ``return``, single-assignment locals, docstrings, imports.

    ``resolve`` builds the formula of an expression under the locals assigned so far. Raises ``NotBoolean``.
    """
    local: dict[str, ast.expr] = dict(env or {})
    for position, statement in enumerate(body):
        rest = body[position + 1 :]
        if isinstance(statement, ast.Return):
            return _returned(statement, resolve, local)
        if isinstance(statement, ast.If):
            then = boolean_body([*statement.body, *rest], resolve, local)
            otherwise = boolean_body([*statement.orelse, *rest], resolve, local)
            return choose(resolve(statement.test, local), then, otherwise)
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            single = not isinstance(statement, ast.Assign) or len(statement.targets) == 1
            if not (single and isinstance(target, ast.Name) and statement.value is not None):
                raise NotBoolean(statement.lineno, f"`{_head(statement)}` is not a plain local")
            local[target.id] = inline(statement.value, local)
            continue
        if isinstance(statement, ast.AugAssign) and type(statement.op) in JOINS:
            if not (isinstance(statement.target, ast.Name) and statement.target.id in local):
                raise NotBoolean(statement.lineno, f"`{_head(statement)}` changes what is no local of it")
            both = [local[statement.target.id], inline(statement.value, local)]
            local[statement.target.id] = ast.BoolOp(JOINS[type(statement.op)](), both)
            continue
        harmless = isinstance(statement, ast.Import | ast.ImportFrom | ast.Pass | ast.Assert | ast.Global) or (
            isinstance(statement, ast.Expr)
            and (isinstance(statement.value, ast.Constant) or _is_logging(statement.value))
        )
        if isinstance(statement, ast.Delete):  # of a parameter that is not used
            harmless = all(isinstance(target, ast.Name) for target in statement.targets)
        if not harmless:
            raise NotBoolean(statement.lineno, f"`{_head(statement)}` is neither `if`, `return` nor an assignment")
    return FALSE


def _returned(
    statement: ast.Return,
    resolve: Callable[[ast.expr, Mapping[str, ast.expr]], Formula],
    local: Mapping[str, ast.expr],
) -> Formula:
    value = statement.value
    if value is None:
        return FALSE
    kinds = (
        ast.BoolOp
        | ast.Compare
        | ast.UnaryOp
        | ast.Call
        | ast.Name
        | ast.Attribute
        | ast.IfExp
        | ast.Subscript
        | ast.BinOp
    )
    constant = isinstance(value, ast.Constant) and (value.value is None or isinstance(value.value, bool))
    other = (isinstance(value, ast.UnaryOp) and not isinstance(value.op, ast.Not)) or (
        isinstance(value, ast.BinOp) and not isinstance(value.op, ast.BitOr)
    )
    if other or not (constant or isinstance(value, kinds)):
        raise NotBoolean(statement.lineno, f"`{_head(statement)}` does not return a truth value")
    return resolve(value, local)


def _is_logging(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and (dotted(node.func) or "").split(".")[0] in ("logger", "logging", "warnings")


def inline(node: ast.expr, local: Mapping[str, ast.expr]) -> ast.expr:
    """``node`` with the locals put in."""

    def value(part: ast.expr) -> ast.expr | None:
        return local.get(part.id) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load) else None

    return rewritten(node, value) if local else node


def rewritten(node: ast.expr, replace: Callable[[ast.expr], ast.expr | None]) -> ast.expr:
    """``node`` with parts replaced; itself when none is.

    ``replace`` gives what stands in the place of a part, which is not looked into, or None to look into the part. No
    node is changed: those above a replaced part are made anew, without a position.
    """
    new: ast.expr = _rewritten(node, replace)
    return new


def _rewritten(node: Any, replace: Callable[[ast.expr], ast.expr | None]) -> Any:
    if isinstance(node, ast.expr):
        new = replace(node)
        if new is not None:
            return new
        if isinstance(node, LEAVES):
            return node
    changed: dict[str, object] = {}
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(value, list):
            items = [_rewritten(item, replace) if isinstance(item, ast.AST) else item for item in value]
            if any(one is not other for one, other in zip(items, value, strict=True)):
                changed[name] = items
        elif isinstance(value, ast.AST) and not isinstance(value, ast.expr_context):
            part = _rewritten(value, replace)
            if part is not value:
                changed[name] = part
    return type(node)(**{**dict(ast.iter_fields(node)), **changed}) if changed else node


def _head(statement: ast.stmt) -> str:
    return ast.unparse(statement).splitlines()[0][:80]
