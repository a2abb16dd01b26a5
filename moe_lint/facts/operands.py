"""What the tensors in an expression were made from."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from msgspec import Struct, field

from moe_lint.expressions import dotted
from moe_lint.facts.data import NOTHING, CallResult, Experts, Origin, Origins, element_of
from moe_lint.facts.syntax import is_run
from moe_lint.profile import Profile

#: Attributes of a tensor that are not the tensor's values.
_NOT_DATA = frozenset({"shape", "dtype", "device", "ndim", "is_cuda", "requires_grad", "layout"})
#: Calls on tensors whose result does not hold the tensor's values.
_NO_VALUES = frozenset(
    {
        "size",
        "dim",
        "numel",
        "empty_like",
        "zeros_like",
        "ones_like",
        "isinstance",
        "hasattr",
        "len",
        "type",
        "data_ptr",
        "is_contiguous",
        "new_empty",
        "new_zeros",
        "element_size",
        "stride",
    }
)
#: How deep the history of a tensor is kept; beyond it only its sources are.
_DEPTH = 24


class Flow(Struct):
    """What is known at one point of a function: values of names, and what each tensor was made from."""

    env: dict[str, ast.expr] = field(default_factory=dict)
    #: local -> the expression that was assigned to it, as written
    carriers: dict[str, ast.expr] = field(default_factory=dict)
    taint: dict[str, Origins] = field(default_factory=dict)

    def copy(self) -> Flow:
        return Flow(dict(self.env), dict(self.carriers), dict(self.taint))


class Operands:
    """Names and expressions at one point of a function -> origins. The flow belongs to whoever walks the function."""

    def __init__(self, profile: Profile, aliases: Mapping[str, str], taint: Mapping[str, Origins]) -> None:
        self.profile = profile
        self.aliases = aliases
        self.flow = Flow({}, {}, dict(taint))

    def callee(self, node: ast.Call) -> str | None:
        """The dotted name that is called, with local aliases of modules and functions resolved."""
        text = dotted(node.func)
        if text is None:
            return node.func.attr if isinstance(node.func, ast.Attribute) else None
        head, _, rest = text.partition(".")
        value = self.flow.env.get(head)
        if isinstance(value, ast.Call) and (dotted(value.func) or "").endswith("partial") and value.args:
            value = value.args[0]  # `reduce = functools.partial(all_reduce, group=g)`
        known = dotted(value) if value is not None else None
        if known is not None:
            return f"{known}.{rest}" if rest else known
        alias = self.aliases.get(head)
        return text if alias is None else f"{alias}.{rest}" if rest else alias

    def callees(self, node: ast.Call) -> tuple[str, ...]:
        """All that may be called: a local that an `if` above binds to one of several functions stands for each."""
        value = self.flow.env.get(node.func.id) if isinstance(node.func, ast.Name) else None
        if isinstance(value, ast.IfExp):
            return tuple(dict.fromkeys(text for leaf in _leaves(value) if (text := dotted(leaf)) is not None))
        callee = self.callee(node)
        return () if callee is None else (callee,)

    def in_place(self, node: ast.Call, last: str) -> None:
        """`shared.add_(routed)`, `torch.add(…, out=x)`: calls that change what a name holds."""
        changed = [keyword.value for keyword in node.keywords if keyword.arg == "out"]
        in_place = last.endswith("_") and not last.endswith("__")
        if not changed and not in_place:
            return
        given = _union(self.origins(a) for a in node.args)
        for value in changed:
            key = dotted(value)
            if key is not None:
                self.flow.taint[key] = self.origins(value) | given
        if in_place and isinstance(node.func, ast.Attribute):
            key = dotted(node.func.value)
            if key is not None and key != "self" and given:
                self.flow.taint[key] = self.flow.taint.get(key, NOTHING) | given

    def origins(self, node: ast.expr | None, element: int | None = None) -> Origins:
        """What the tensors in the value of an expression (or in its element) were made from."""
        if node is None or isinstance(node, ast.Constant | ast.Compare | ast.JoinedStr):
            return NOTHING
        if isinstance(node, ast.Name):
            return element_of(self.flow.taint.get(node.id, NOTHING), element)
        if isinstance(node, ast.Attribute):
            if node.attr in _NOT_DATA:
                return NOTHING
            key = dotted(node)
            if key is not None and key in self.flow.taint:
                return element_of(self.flow.taint[key], element)
            return self.origins(node.value)
        if isinstance(node, ast.Call):
            return self._call_origins(node, element)
        if isinstance(node, ast.Tuple | ast.List):
            if element is not None and element < len(node.elts):
                return self.origins(node.elts[element])
            return _union(self.origins(item) for item in node.elts)
        if isinstance(node, ast.Subscript):
            index = node.slice
            if isinstance(index, ast.Constant) and isinstance(index.value, int) and isinstance(node.value, ast.Call):
                return self.origins(node.value, index.value)
            return self.origins(node.value)
        if isinstance(node, ast.IfExp):
            return self.origins(node.body, element) | self.origins(node.orelse, element)
        if isinstance(node, ast.Starred | ast.Await | ast.NamedExpr):
            return self.origins(node.value, element)
        if isinstance(node, ast.Lambda):  # handed over to be run, if it wants no more: its value comes back
            return NOTHING if node.args.args else self.origins(node.body, element)
        return _union(self.origins(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))

    def _call_origins(self, node: ast.Call, element: int | None) -> Origins:
        inputs = _union(self.origins(a) for a in (*node.args, *(k.value for k in node.keywords)))
        callee = self.callee(node)
        own = callee is not None and callee.startswith("super()")
        receiver = self.origins(node.func.value) if isinstance(node.func, ast.Attribute) and not own else NOTHING
        if callee is None:
            return inputs | receiver
        if isinstance(node.func, ast.Name):  # what a local holds, or a caller hands over, is run
            inputs |= self.flow.taint.get(node.func.id, NOTHING)
        last = callee.rsplit(".", 1)[-1]
        if callee in ("cast", "typing.cast") and len(node.args) == 2:
            return self.origins(node.args[1], element)
        if last in _NO_VALUES or self.profile.is_barrier(last):
            return NOTHING
        through_attribute = "." in callee
        experts = self.profile.is_expert_function(last) or (
            through_attribute and not callee.startswith("torch.") and self._names_experts(callee)
        )
        if receiver and not experts:  # a method of a tensor: `x.view(…)`, `x.mul_(y)`
            return inputs | receiver
        if last in self.profile.collectives or last in self.profile.wrappers:
            return inputs
        if callee.startswith(("torch.", "F.")) and not experts:
            return inputs
        several = self.callees(node)
        return frozenset(CallResult(c, element, _bounded(inputs), experts) for c in several or (callee,))

    def _names_experts(self, callee: str) -> bool:
        """`self.experts(…)`, `layer.mlp.experts.forward(…)`: the call runs the experts."""
        *owners, last = callee.split(".")
        if self.profile.is_expert_attribute(last):
            return True
        return is_run(last) and any(self.profile.is_expert_attribute(owner) for owner in owners)

    def elements(self, value: ast.expr) -> tuple[Origins, ...]:
        if isinstance(value, ast.Tuple):
            return tuple(self.origins(item) for item in value.elts)
        return (self.origins(value),)


def _leaves(node: ast.expr) -> Iterator[ast.expr]:
    """The values of a chain of ternaries."""
    if isinstance(node, ast.IfExp):
        yield from _leaves(node.body)
        yield from _leaves(node.orelse)
    else:
        yield node


def _bounded(origins: Origins) -> Origins:
    def depth(origin: Origin) -> int:
        steps, level = 0, [origin]
        while level:
            level = [i for o in level if isinstance(o, CallResult) for i in o.inputs]
            steps += 1
            if steps > _DEPTH:
                break
        return steps

    if all(depth(o) <= _DEPTH for o in origins):
        return origins
    flat: set[Origin] = set()
    stack = list(origins)
    while stack:
        origin = stack.pop()
        if isinstance(origin, CallResult):
            stack.extend(origin.inputs)
            if origin.named_experts:
                flat.add(Experts(origin.callee))
        else:
            flat.add(origin)
    return frozenset(flat)


def _union(parts: Iterator[Origins]) -> Origins:
    return frozenset().union(*parts)
