from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from textwrap import dedent

from msgspec import Struct

from moe_lint.callers import Callers, Frame, Instance, Layer
from moe_lint.facts import Call, Conduct, FileFacts
from moe_lint.formula import FALSE, TRUE, And, Atom, Formula, Not, atom_set, conj, negate, replace_atoms, substitute
from moe_lint.index import Ref
from moe_lint.model import Finding, FixPlan, Severity, Span
from moe_lint.profile import Flag, Profile, matches
from moe_lint.rules._cases import ASK, ROUTED, SETTLE, block, experts, layer_case
from moe_lint.rules._layers import call_finding, deferring, defers, launch
from moe_lint.rules._settling import plan_settle
from moe_lint.rules.base import Context, Rule
from moe_lint.sites import Site

_LAYER = ASK + "x = self.mlp(x, should_allreduce_fusion, use_reduce_scatter)" + SETTLE
_SETTLED = """
if getattr(x, "_sglang_needs_allreduce_fusion", False):
    x = tensor_model_parallel_all_reduce(x)
"""
_MODEL = """
class Model:
    def __init__(self, config):
        self.layers = [DecoderLayer(config, i) for i in range(config.num_hidden_layers)]

    def forward(self, x, batch):
        residual = None
        captured = []
        for layer in self.layers:
            x, residual = layer(x, residual, batch)
        if not self.pp_group.is_last_rank:
{}
            return PPProxyTensors({{"hidden_states": x, "residual": residual}}){}
        return self.norm(x, residual)
"""
_CAPTURING = """
class Model:
    def __init__(self, config):
        self.layers = [DecoderLayer(config, i) for i in range(config.num_hidden_layers)]

    def forward(self, x, batch):
        residual = None
        aux_hidden_states = []
        for layer in self.layers:
{}
            aux_hidden_states.append(x + residual){}
            x, residual = layer(x, residual, batch)
        return self.norm(x, residual), aux_hidden_states
"""


#: Layers of several kinds, looked up by a letter of the configuration.
_LOOKED_UP = """
LAYERS = {
    "moe": DecoderLayer,
}


"""
_COMMUNICATOR_CLASS = "Own if config.own else LayerCommunicator"


def _looked_up(layer: str) -> str:
    """The model behind the layers of `layer_model`, building them from a table."""
    return _MODEL.format("            self.sent += 1", "  # <- MOE303").replace("[DecoderLayer(", f"[{layer}(")


def _indented(text: str, by: int) -> str:
    return "\n".join(" " * by + line for line in text.strip().splitlines())


#: `layer(…)`, `self.layers[i](…)`, `layer.forward(…)`
_RUNS_LAYER = re.compile(r"(?:^|\.)(?:layer|layers|block|blocks)(?:\.forward)?$")
_WORD = re.compile(r"\b[A-Za-z_]\w*\b")


def _by_a_method(of: str, text: str, call: str, *methods: str) -> str:
    """A model in which a method does what some lines of `forward` do."""
    head, found, tail = of.partition(text)
    assert found
    return head + call + tail.rstrip() + "\n\n" + "\n\n".join(_indented(method, 4) for method in methods) + "\n"


_SENDS = 'return PPProxyTensors({"hidden_states": x, "residual": residual})'
_SENT = _MODEL.format("            self.sent += 1", "")
_STEP = "            x, residual = layer(x, residual, batch)\n"
_LOOP = "        for layer in self.layers:\n" + _STEP
_RUN = f"def run(self, x, residual, batch):\n{_indented(dedent(_LOOP), 4)}\n"
_CAPTURED = "aux_hidden_states.append(x + residual)"
_SEEN = _CAPTURING.format("            self.seen += 1", "")


class DeferredSumLeaves(Rule):
    """A model hands on hidden states between two layers although the first may still owe their sum.

    Layers that defer their sum mark the tensor, and the next layer's communicator sums while it adds the residual.
    Two readers come in between and sum nothing. What is sent to the next pipeline stage loses its mark: the stage
    behind adds and norms a partial sum, and every token after it is wrong. What is captured for a draft model
    (auxiliary hidden states) is partial on every rank: the text stays right, the drafts are rejected.

    Instead of

        if not self.pp_group.is_last_rank:
            return PPProxyTensors({"hidden_states": hidden_states, "residual": residual})

    settle the sum first:

        if not self.pp_group.is_last_rank:
            if getattr(hidden_states, "_sglang_needs_allreduce_fusion", False):
                hidden_states = tensor_model_parallel_all_reduce(hidden_states)
                hidden_states._sglang_needs_allreduce_fusion = False
            return PPProxyTensors({"hidden_states": hidden_states, "residual": residual})

    Not reported: a model that reduces marked tensors before it hands them on, one that calls a function which knows
    the marker, and layers that capture for themselves after their communicator has summed. One finding for each
    function and kind; what is captured is a warning, since the text stays right. A method or function that is handed
    the tensor may do it for the model, and a method may run the layers.

    The fix writes the lines above in front of whatever hands the tensor on, once for all of it. It is offered where
    the model has one name for what the layer returns first and marks, and where the layer's blocks leave out a sum over
    all ranks, in one reduction or in an EP/TP pair. It acts on marked tensors only, so it is corrective.
    """

    code = "MOE303"
    name = "deferred-sum-leaves"
    VALID = (
        layer_case(
            "settled-before-it-is-sent",
            block(experts(ROUTED)),
            _MODEL.format(_indented(_SETTLED, 12), ""),
            layer=_LAYER,
        ),
        layer_case(
            "settled-before-it-is-captured",
            block(experts(ROUTED)),
            _CAPTURING.format(_indented(_SETTLED, 12), ""),
            layer=_LAYER,
        ),
        layer_case(
            "settled-before-it-is-captured-of-some-layers",
            block(experts(ROUTED)),
            _CAPTURING.format(_indented(f"if i in self.captured:\n{_indented(_SETTLED, 4)}", 12), "")
            .replace("            aux_hidden", "            if i in self.captured:\n                aux_hidden")
            .replace("for layer in self.layers:", "for i in range(self.end):\n            layer = self.layers[i]"),
            layer=_LAYER,
        ),
        layer_case(
            "settled-by-a-model-that-looks-its-layers-up",
            block(experts(ROUTED)),
            _LOOKED_UP + _MODEL.format(_indented(_SETTLED, 12), "").replace("[DecoderLayer(", "[LAYERS[config.kind]("),
            layer=_LAYER,
        ),
        layer_case(
            "settled-behind-a-communicator-whose-class-a-function-chooses",
            "def chosen(config):\n    return LayerCommunicator",
            block(experts(ROUTED)),
            _MODEL.format(_indented(_SETTLED, 12), ""),
            communicator="chosen(config)(config, is_last_layer=layer_id == config.num_hidden_layers - 1)",
            layer=_LAYER,
        ),
        layer_case(
            "settled-by-the-method-that-sends",
            block(experts(ROUTED)),
            _by_a_method(
                _SENT,
                _SENDS,
                "return self.sent_on(x, residual)",
                f"def sent_on(self, x, residual):\n{_indented(_SETTLED, 4)}\n    {_SENDS}",
            ),
            layer=_LAYER,
        ),
        layer_case(
            "settled-before-a-method-captures",
            block(experts(ROUTED)),
            _by_a_method(
                _CAPTURING.format(_indented(_SETTLED, 12), ""),
                _CAPTURED,
                "self.capture(aux_hidden_states, x, residual)",
                "def capture(self, captured, x, residual):\n    captured.append(x + residual)",
            ),
            layer=_LAYER,
        ),
        layer_case(
            "settled-by-the-method-that-runs-the-layers",
            block(experts(ROUTED)),
            _by_a_method(
                _SENT,
                _LOOP,
                "        x, residual = self.run(x, residual, batch)\n",
                f"{_RUN}{_indented(_SETTLED, 4)}\n    return x, residual",
            ),
            layer=_LAYER,
        ),
        layer_case(
            "a-method-counts-tokens",
            block(experts(ROUTED)),
            _by_a_method(
                _MODEL.format(_indented(_SETTLED, 12), ""),
                _STEP,
                _STEP + "            self.count(x)\n",
                "def count(self, x):\n    self.counts.append(x.shape[0])",
            ),
            layer=_LAYER,
        ),
        layer_case(
            "never-deferred",
            block(experts(ROUTED)),
            _MODEL.format("            self.sent += 1", ""),
            layer="""
            use_reduce_scatter = self.layer_communicator.should_use_reduce_scatter(batch)
            x = self.mlp(x, use_reduce_scatter=use_reduce_scatter)
            x, residual = self.layer_communicator.postprocess_layer(x, residual, batch)
            """,
        ),
    )
    INVALID = (
        layer_case(
            "sent",
            block(experts(ROUTED)),
            _MODEL.format("            self.sent += 1", "  # <- MOE303"),
            layer=_LAYER,
        ),
        layer_case(
            "captured",
            block(experts(ROUTED)),
            _CAPTURING.format("            self.seen += 1", "  # <- MOE303"),
            layer=_LAYER,
        ),
        layer_case(
            "sent-by-a-model-that-looks-its-layers-up",
            block(experts(ROUTED)),
            _LOOKED_UP + _looked_up("LAYERS[config.kind]"),
            layer=_LAYER,
        ),
        layer_case(
            "sent-behind-a-communicator-of-a-class-chosen-before",
            "class Own(LayerCommunicator):\n    pass",
            block(experts(ROUTED)),
            _looked_up("DecoderLayer"),
            build=f"self.mlp = Block(config)\nchosen = {_COMMUNICATOR_CLASS}",
            communicator="chosen(config, is_last_layer=layer_id == config.num_hidden_layers - 1)",
            layer=_LAYER,
        ),
        layer_case(
            "sent-behind-a-communicator-whose-class-a-function-chooses",
            "class Own(LayerCommunicator):\n    pass",
            "def chosen(config):\n    if config.own:\n        return Own\n    return LayerCommunicator",
            block(experts(ROUTED)),
            _looked_up("DecoderLayer"),
            communicator="chosen(config)(config, is_last_layer=layer_id == config.num_hidden_layers - 1)",
            layer=_LAYER,
        ),
        layer_case(
            "sent-by-a-method",
            block(experts(ROUTED)),
            _by_a_method(
                _SENT,
                _SENDS,
                "return self.sent_on(x, residual)  # <- MOE303",
                f"def sent_on(self, x, residual):\n    {_SENDS}",
            ),
            layer=_LAYER,
        ),
        layer_case(
            "captured-by-a-method",
            block(experts(ROUTED)),
            _by_a_method(
                _SEEN,
                _CAPTURED,
                "self.capture(aux_hidden_states, x, residual)  # <- MOE303",
                "def capture(self, captured, x, residual):\n    captured.append(x + residual)",
            ),
            layer=_LAYER,
        ),
        layer_case(
            "layers-run-by-a-method",
            block(experts(ROUTED)),
            _by_a_method(
                _MODEL.format("            self.sent += 1", "  # <- MOE303"),
                _LOOP,
                "        x, residual = self.run(x, residual, batch)\n",
                f"{_RUN}    return x, residual",
            ),
            layer=_LAYER,
        ),
        layer_case(
            "each-layer-run-by-a-method",
            block(experts(ROUTED)),
            _by_a_method(
                _MODEL.format("            self.sent += 1", "  # <- MOE303"),
                _STEP,
                "            x, residual = self.run(layer, x, residual, batch)\n",
                "def run(self, layer, x, residual, batch):\n    return layer(x, residual, batch)",
            ),
            layer=_LAYER,
        ),
        layer_case(
            "settled-on-another-path",
            block(experts(ROUTED)),
            _MODEL.format(
                _indented("if self.traces and x._sglang_needs_allreduce_fusion:\n    x = attn_tp_all_reduce(x)", 12),
                "  # <- MOE303",
            ),
            layer=_LAYER,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        callers = context.callers
        told: set[tuple[str, int]] = set()
        for flag in context.index.profile.flags:
            for layer in callers.layers if flag.last else ():
                if not defers(callers, layer, flag):
                    continue
                for frame, passage in _frames(context, layer):
                    for sent, call, leaks in _leaks(context, frame, passage):
                        if (frame.path, call.span.line) in told:
                            continue
                        told.add((frame.path, call.span.line))
                        fix: FixPlan | str = "the layers run in a function of their own"
                        if passage.direct:
                            fix = plan_settle(context, layer, flag.name, frame, passage.runs, leaks)
                        yield self._found(context, layer, flag, frame, (sent, call), fix)

    def _found(
        self, context: Context, layer: Layer, flag: Flag, frame: Frame, leak: tuple[bool, Call], fix: FixPlan | str
    ) -> Finding:
        profile = context.index.profile
        sent, call = leak
        marker = profile.markers[0]
        if sent:
            consequence = (
                "the mark stays behind, the next pipeline stage norms a partial sum, and every token is wrong"
                f"{launch(context, Atom(flag.name), beside=profile.pipeline_option)}"
            )
            pattern = "sends hidden states to the next pipeline stage"
        else:
            consequence = (
                "what is captured is one rank's partial sum, and a draft model that reads it guesses wrong"
                f"{launch(context, Atom(flag.name))}"
            )
            pattern = "captures hidden states between two layers"
        return call_finding(
            self,
            frame,
            call,
            f"`{frame.function.name}` {pattern}, and `{layer.owner.name}` may have left their sum to the next layer: "
            f"{consequence}",
            remedy=f"where `{marker}` is set, reduce the tensor and clear the mark first",
            related=tuple(deferring(context.callers, layer)),
            severity=None if sent else Severity.WARNING,
            fix=fix,
        )


class _Passage(Struct, frozen=True):
    """What one function does with the layers: the calls that run them, and those that hand on what they returned."""

    runs: tuple[Call, ...]
    #: the loops in which they run; none where a function of their own runs them
    loops: frozenset[Span]
    #: whether each run is one of a layer itself
    direct: bool


def _frames(context: Context, layer: Layer) -> Iterator[tuple[Frame, _Passage]]:
    """The functions of the models that run the layers, and what else names what leaves.

    Their `forward`, and a method that runs the loop over the layers for it.
    """
    index = context.index
    around: dict[Ref, None] = {}
    for user in sorted(index.users(layer.owner)):
        around[user] = None
        around.update(dict.fromkeys(index.subclasses(user)))
    seen: set[Ref] = set()
    for owner in around:
        if index.constructs_absorber(owner):
            continue  # a layer among the layers
        function = index.method(owner, "forward")
        queue = [function] if function is not None else []
        while queue:
            function = queue.pop()
            if function in seen:
                continue
            seen.add(function)
            frame = Frame(function, Instance(owner))
            passage = _passage(context, frame)
            yield frame, passage
            queue += [target for call in passage.runs if (target := _target(context, frame, call)) is not None]


def _passage(context: Context, frame: Frame) -> _Passage:
    conduct = context.callers.conduct(frame.function)
    calls = conduct.calls if conduct is not None else ()
    direct = [call for call in calls if call.loop is not None and _RUNS_LAYER.search(call.callee)]
    if direct:
        return _Passage(tuple(direct), frozenset(call.loop for call in direct if call.loop is not None), True)
    runs = [call for call in calls if _runs_layers(context, frame, call)]
    return _Passage(tuple(runs), frozenset(call.loop for call in runs if call.loop is not None), False)


def _runs_layers(context: Context, frame: Frame, call: Call) -> bool:
    """Whether a call is one of a method of the model that runs a layer, or in a loop all of them."""
    target = _target(context, frame, call) if call.callee.startswith("self.") else None
    inner = context.callers.conduct(target) if target is not None else None
    runs = [one for one in inner.calls if _RUNS_LAYER.search(one.callee)] if inner is not None else []
    return any(call.loop is not None or one.loop is not None for one in runs)


def _target(context: Context, frame: Frame, call: Call) -> Ref | None:
    """The one method of the model, or function, that a call runs."""
    if "?" in call.callee or call.callee.count(".") > call.callee.startswith("self."):
        return None
    targets = context.index.targets(frame.path, frame.class_name, call.callee)
    return targets[0].function if len(targets) == 1 else None


def _leaks(context: Context, frame: Frame, passage: _Passage) -> Iterator[tuple[bool, Call, list[Call]]]:
    """The calls that hand on what a layer returned, unsettled.

    Of each kind (sent or not): the one under the fewest conditions, and all of them.
    """
    conduct = context.callers.conduct(frame.function)
    found: dict[bool, list[Call]] = {}
    for call in conduct.calls if conduct is not None and passage.runs else ():
        sent = _leaves(context, frame, call, passage)
        if sent is not None and conduct is not None and not _is_settled(context, frame, call, conduct.calls):
            found.setdefault(sent, []).append(call)
    for sent, calls in found.items():
        yield sent, min(calls, key=lambda call: (_demands(call.condition), call.span)), calls


def _demands(condition: Formula) -> int:
    """How many things must be switched on for a condition to hold."""
    parts = condition.operands if isinstance(condition, And) else (condition,)
    return sum(not isinstance(part, Not) for part in parts)


def _leaves(context: Context, frame: Frame, call: Call, passage: _Passage) -> bool | None:
    """Whether a call sends hidden states to the next stage, or (False) captures them in the loop over the layers.

    None where it does neither. It may do so in a method or function of its own, which is handed the tensor.
    """
    looped = call.loop in passage.loops
    if _sends(context, call, call.condition):
        return True
    if _captures(context, call.callee, {}):
        return False if looped else None
    handed = {word for run in passage.runs for passed in run.arguments for word in _WORD.findall(passed.text)}
    if call in passage.runs or not any(handed.intersection(_WORD.findall(p.text)) for p in call.arguments):
        return None
    target = _target(context, frame, call)
    inner, facts = _knowing_no_mark(context, target)
    if target is None or inner is None or facts is None:
        return None
    callers = context.callers
    bound = callers.bind(call, target, skip_first="." in target.name)
    given = {b.parameter: b.passed.text for b in bound if b.parameter is not None}
    known = dict(callers.values(target, bound))
    for one in inner.calls:
        if not any(given.keys() & set(_WORD.findall(passed.text)) for passed in one.arguments):
            continue
        if _sends(context, one, conj((call.condition, replace_atoms(one.condition, known)))):
            return True
        if looped and _captures(context, one.callee, given):
            return False
    return None


def _knowing_no_mark(context: Context, function: Ref | None) -> tuple[Conduct | None, FileFacts | None]:
    """A function that does not know the mark: one that does may settle what it is given."""
    facts = context.index.facts(function.path) if function is not None else None
    if function is None or facts is None or function.name not in facts.functions:
        return None, None
    if any(facts.holds(function.name, marker) for marker in context.index.profile.markers):
        return None, None
    return context.callers.conduct(function), facts


def _sends(context: Context, call: Call, condition: Formula) -> bool:
    profile = context.index.profile
    if call.callee.rsplit(".", 1)[-1] not in profile.send:
        return False
    return context.callers.possible(conj((condition, *(negate(Atom(name)) for name in profile.last_stage))))


def _captures(context: Context, callee: str, given: Mapping[str, str]) -> bool:
    """Whether a call appends to what is captured: by its name, or by that of what was handed over for it."""
    *owner, last = callee.split(".")
    if last not in ("append", "extend") or not owner:
        return False
    name = given.get(owner[0], owner[0]).split(".")[-1] if len(owner) == 1 else owner[-1]
    return matches(name, context.index.profile.captures)


def _is_settled(context: Context, frame: Frame, call: Call, calls: Iterable[Call]) -> bool:
    callers, profile = context.callers, context.index.profile
    names = {word for a in call.arguments for word in _WORD.findall(a.text)}
    before = [other for other in calls if other.span < call.span]
    return any(_settles_elsewhere(context, frame, other, names) for other in before) or any(
        _settles(callers, site, call, profile) for site in _deferred_sites(context, frame, call)
    )


def _deferred_sites(context: Context, frame: Frame, call: Call) -> list[Site]:
    return [
        site
        for site in context.sites
        if site.path == frame.path and site.raw.function == frame.function.name and site.raw.span < call.span
    ]


def _settles(callers: Callers, site: Site, call: Call, profile: Profile) -> bool:
    """Whether a reduction runs for every marked tensor that reaches the call."""
    if not any(marker in name for name in atom_set(site.guard) for marker in profile.markers):
        return False

    def value(atom: str) -> Formula | None:
        if any(marker in atom for marker in profile.markers):
            return TRUE
        return FALSE if atom.endswith(" is None") else None

    runs = substitute(site.guard, value)
    reached = substitute(call.condition, value)
    return runs != FALSE and not callers.possible(conj((reached, negate(runs))))


def _settles_elsewhere(context: Context, frame: Frame, call: Call, names: set[str]) -> bool:
    """Whether a call before is given the tensor and knows the marker."""
    given = {argument.text for argument in call.arguments}
    if not given & names or context.index.profile.is_barrier(call.callee.rsplit(".", 1)[-1]):
        return False
    targets = context.index.targets(frame.path, frame.class_name, call.callee)
    for target in targets:
        facts = context.index.facts(target.function.path)
        if facts is not None and any(
            facts.holds(target.function.name, marker) for marker in context.index.profile.markers
        ):
            return True
    return False
