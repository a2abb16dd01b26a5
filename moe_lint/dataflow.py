"""Whether a tensor is the experts' output, across functions, classes and files."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from moe_lint.facts import NOTHING, CallFact, CallResult, Experts, Origin, Origins, Param, element_of, is_run
from moe_lint.formula import TRUE, Formula, TooManyAtoms, conj, satisfiable
from moe_lint.index import ProjectIndex, Ref
from moe_lint.profile import matches


class Where(Struct, frozen=True):
    """The function in which origins are to be read, and what is known to hold there."""

    path: str
    class_name: str | None
    function: str
    holds: Formula = TRUE


class _Sources(Struct, frozen=True):
    experts: bool = False
    params: frozenset[str] = frozenset()
    #: a parameter is handed back as it is, so that its elements are those of the result
    whole: bool = False

    def __or__(self, other: _Sources) -> _Sources:
        return _Sources(self.experts or other.experts, self.params | other.params, self.whole or other.whole)


_NONE = _Sources()
_EXPERTS = _Sources(experts=True)

#: How many calls up from a reduction its operand is followed.
_CALLERS = 3


class Dataflow:
    """Answers "is this operand the experts' output?" over a ``ProjectIndex``."""

    def __init__(self, index: ProjectIndex) -> None:
        self.index = index
        self.profile = index.profile
        self._returns: dict[tuple[Ref, int | None], _Sources] = {}
        self._passes: dict[tuple[Ref, str], bool] = {}

    def is_post_experts(self, origins: Origins, where: Where) -> bool:
        """Whether a value with these origins holds the output of experts, here or by what some caller passes."""
        return self._from_experts(origins, where, 0)

    def _from_experts(self, origins: Origins, where: Where, depth: int) -> bool:
        sources = self._sources(origins, where)
        if sources.experts:
            return True
        if depth >= _CALLERS or (
            where.class_name is not None and self.index.is_absorber(Ref(where.path, where.class_name))
        ):
            return False  # an absorber settles the sums that it is handed: they are not this site's to judge
        function = Ref(where.path, where.function)
        return any(self._passed(function, name, depth) for name in sorted(sources.params))

    def _passed(self, function: Ref, param: str, depth: int) -> bool:
        """Whether some caller passes the experts' output for a parameter."""
        key = (function, param)
        if key not in self._passes:
            self._passes[key] = False  # a recursive call passes on what it was passed
            self._passes[key] = self._find_passed(function, param, depth)
        return self._passes[key]

    def _find_passed(self, function: Ref, param: str, depth: int) -> bool:
        facts = self.index.function(function)
        if facts is None or param not in facts.params:
            return False
        params = [p for p in facts.params if p not in ("self", "cls")]
        for path, call in self.index.calls_of(function):
            owners = call.callee.split(".")[:-1]
            if self._asks_experts(owners):
                return True  # the experts themselves are asked to reduce
            if param not in params or any(self.profile.is_barrier(owner) for owner in owners):
                continue
            where = Where(path, call.class_name, call.function)
            if self._from_experts(argument_origins(call, params, param), where, depth + 1):
                return True
        return False

    def _asks_experts(self, owners: list[str]) -> bool:
        return any(self.profile.is_expert_attribute(owner) for owner in owners)

    def _sources(self, origins: Origins, where: Where) -> _Sources:
        found = _NONE
        for origin in sorted(origins, key=_cheapest_first):
            if isinstance(origin, Experts):
                found |= self._named(origin)
            elif isinstance(origin, Param):
                found |= _Sources(params=frozenset({origin.name}))
            elif isinstance(origin, CallResult):
                found |= self._call_sources(origin, where)
            if found.experts:
                return found
        return found

    def _named(self, origin: Experts) -> _Sources:
        return _EXPERTS

    def _call_sources(self, call: CallResult, where: Where) -> _Sources:
        own_method = (
            call.callee.startswith("self.")
            and call.callee.count(".") == 1
            and where.class_name is not None
            and self.index.method(Ref(where.path, where.class_name), call.callee[5:]) is not None
        )
        if self._is_something_else(call, where):
            return _NONE
        if self._is_source(call, where, own_method):
            return _EXPERTS
        inner = self._local_function(call.callee, where)
        targets = (
            [inner]
            if inner is not None
            else [
                t.function
                for t in self.index.targets(where.path, where.class_name, call.callee)
                if t.condition is None or _compatible(where.holds, t.condition)
            ]
        )
        if not targets:
            return _EXPERTS if self._inside_experts(call.callee, where) else self._sources(call.inputs, where)
        found = _NONE
        for target in targets:
            returned = self._returned(target, call.element)
            if returned.experts:
                return _EXPERTS
            if returned.params:
                inputs = self.handed(call, Ref(where.path, where.function), target, returned.params)
                found |= self._sources(element_of(inputs, call.element) if returned.whole else inputs, where)
        return found

    def _local_function(self, callee: str, where: Where) -> Ref | None:
        """The function of this name that is defined in the one where it is called, or in one around that."""
        facts = self.index.facts(where.path) if "." not in callee else None
        outer = where.function if facts is not None else ""
        while outer and facts is not None and outer in facts.functions:
            if f"{outer}.{callee}" in facts.functions:
                return Ref(where.path, f"{outer}.{callee}")
            outer = outer.rpartition(".")[0]
        return None

    def handed(self, call: CallResult, caller: Ref, target: Ref, params: Iterable[str]) -> Origins:
        """What a call hands over for some parameters; all that it hands over where these cannot be told apart."""
        body, facts = self.index.function(caller), self.index.function(target)
        calls = [one for one in body.calls if one.callee == call.callee] if body is not None else []
        if facts is None or len({one.span for one in calls}) != 1:
            return call.inputs
        order = [name for name in facts.params if name not in ("self", "cls")]
        handed: set[Origin] = set()
        for passed in (_passed_for(one, order, name) for one in calls for name in params):
            if passed is None or not passed <= call.inputs:
                return call.inputs  # in a loop, what is passed may be the result of the call itself
            handed |= passed
        return frozenset(handed)

    def _is_something_else(self, call: CallResult, where: Where) -> bool:
        """Whether a call returns the shared experts' output beside the experts', and this is it."""
        return self.is_shared(call) and self.is_run(call, where)

    def is_shared(self, call: CallResult) -> bool:
        """Whether it is the shared experts' part, if what is called is a run of the experts."""
        return call.element is not None and call.element == self.profile.shared_element

    def _is_source(self, call: CallResult, where: Where, own_method: bool) -> bool:
        if call.named_experts and not own_method:
            return True
        return self._built_as_experts(call.callee, where) or self._runs_part_of_experts(call.callee, where)

    def is_run(self, call: CallResult, where: Where) -> bool:
        """Whether a call runs an expert layer."""
        return call.named_experts or self._built_as_experts(call.callee, where)

    def _inside_experts(self, callee: str, where: Where) -> bool:
        """A call of an own part inside an expert layer (`self.quant_method.apply(…)` in a `FusedMoE`)."""
        owners = callee.split(".")[1:]
        if not callee.startswith("self.") or where.class_name is None:
            return False
        if any(self.profile.is_barrier(name) or matches(name, self.profile.expert_exclude) for name in owners):
            return False
        return any(
            self.profile.is_expert_constructor(owner.name.rsplit(".", 1)[-1])
            for owner in self.index.mro(Ref(where.path, where.class_name))
        )

    def _runs_part_of_experts(self, callee: str, where: Where) -> bool:
        """The same, where the part's own code can be read but ends in a kernel that nobody can."""
        return callee.count(".") > 1 and is_run(callee.rsplit(".", 1)[-1]) and self._inside_experts(callee, where)

    def _built_as_experts(self, callee: str, where: Where) -> bool:
        """Whether ``self.x`` was built by a constructor of expert layers."""
        parts = callee.split(".")
        if len(parts) != 2 or parts[0] != "self" or where.class_name is None:
            return False
        owner = Ref(where.path, where.class_name)
        if self.index.method(owner, parts[1]) is not None:
            return False
        return any(
            self.profile.is_expert_constructor(name.rsplit(".", 1)[-1])
            for _, fact in self.index.attributes(owner, parts[1])
            for name in fact.callees
            if _compatible(where.holds, fact.condition)
        )

    def _returned(self, function: Ref, element: int | None) -> _Sources:
        """What (element ``element`` of) a function's result is made from; parameters are left to the caller."""
        key = (function, element)
        if key not in self._returns:
            self._returns[key] = _NONE  # recursion adds nothing
            facts = self.index.function(function)
            found = _NONE
            if facts is not None:
                where = Where(function.path, facts.class_name, function.name)
                for elements in facts.returns:
                    for origins in elements_at(elements, element):
                        whole = len(elements) == 1 and any(isinstance(o, Param) for o in origins)
                        found |= self._sources(origins, where) | _Sources(whole=whole)
            self._returns[key] = found
        return self._returns[key]


class _LayerOutput(Dataflow):
    """The same for the output of another layer than the experts: what is particular to these does not hold."""

    def reaches(self, origins: Origins, where: Where) -> bool:
        """Whether a value with these origins holds that layer's output."""
        return self.is_post_experts(origins, where)

    def _asks_experts(self, owners: list[str]) -> bool:
        return False

    def _is_something_else(self, call: CallResult, where: Where) -> bool:
        return False

    def _inside_experts(self, callee: str, where: Where) -> bool:
        return False


class OutputOf(_LayerOutput):
    """Answers "is this operand the output of ``self.attribute`` of a class?", in the class, below and around it."""

    def __init__(self, index: ProjectIndex, owner: Ref, attribute: str) -> None:
        super().__init__(index)
        self.owner = owner
        self.attribute = attribute
        self._patched: dict[Ref, Ref | None] = {}

    def leaves(self, function: Ref) -> bool:
        """Whether the output is part of what a function returns."""
        return self._returned(function, None).experts

    def _named(self, origin: Experts) -> _Sources:
        return _EXPERTS if origin.via.startswith(f"self.{self.attribute}") else _NONE

    def _is_source(self, call: CallResult, where: Where, own_method: bool) -> bool:
        head, _, rest = call.callee.partition(".")
        name, _, entry = rest.partition(".")
        here = self._class_at(where) if head == "self" and name == self.attribute and "." not in entry else None
        return here is not None and (self.owner in self.index.mro(here) or here in self.index.mro(self.owner))

    def _class_at(self, where: Where) -> Ref | None:
        """The class whose `self` a function knows: its own, or the one that it is patched into."""
        if where.class_name is not None:
            return Ref(where.path, where.class_name)
        function = Ref(where.path, where.function)
        if function not in self._patched:
            self._patched[function] = self.index.patched(function)
        method = self._patched[function]
        return Ref(method.path, method.name.rpartition(".")[0]) if method is not None else None


class SharedOutput(_LayerOutput):
    """Answers "does this operand hold the output of shared experts?": a class's own, or those that its experts run."""

    def _named(self, origin: Experts) -> _Sources:
        return _NONE

    def _is_source(self, call: CallResult, where: Where, own_method: bool) -> bool:
        if own_method:
            return False
        head, _, name = call.callee.partition(".")
        if head == "self" and self.profile.is_shared(name):
            return True
        return call.element is not None and call.element == self.profile.shared_element and self.is_run(call, where)


def _cheapest_first(origin: Origin) -> tuple[int, str]:
    """Origins that answer without opening another file come first."""
    if isinstance(origin, CallResult):
        return (1 if origin.named_experts else 3, origin.callee)
    return (2, origin.name) if isinstance(origin, Param) else (0, "")


def argument_origins(call: CallFact, params: list[str], param: str) -> Origins:
    """The origins of what a call passes for a parameter, bound by the callee's parameter order."""
    return _passed_for(call, params, param) or NOTHING


def _passed_for(call: CallFact, params: list[str], param: str) -> Origins | None:
    """The same; None where nothing is seen to be passed for it."""
    position = params.index(param) if param in params else len(call.arguments)
    positional = [a for a in call.arguments if a.keyword is None]
    for argument in call.arguments:
        if argument.keyword == param:
            return argument.origins
    return positional[position].origins if position < len(positional) else None


def elements_at(elements: tuple[Origins, ...], element: int | None) -> tuple[Origins, ...]:
    """The origins of one element of what a function returns, or (None) of each."""
    if element is None:
        return elements
    if len(elements) > 1:
        return elements[element : element + 1]
    return (element_of(elements[0], element),)  # the whole result is handed on: `return self._forward_core(x)`


def _compatible(one: Formula, other: Formula) -> bool:
    """Whether both can hold at once (as far as their atoms tell)."""
    if other == TRUE or one == TRUE:
        return True
    try:
        return satisfiable(conj((one, other)))
    except TooManyAtoms:
        return True
