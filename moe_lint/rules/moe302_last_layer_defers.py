from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from moe_lint.callers import Built, Callers, Layer
from moe_lint.formula import FALSE, Atom, TooManyAtoms, atom_set, conj, satisfiable
from moe_lint.index import Ref
from moe_lint.local_predicates import answered
from moe_lint.model import Finding, Route, Severity
from moe_lint.profile import Flag
from moe_lint.rules._cases import ASK, CALL, COMMUNICATOR, ROUTED, SETTLE, block, experts, layer_case, when_read
from moe_lint.rules._central import at_definition, defined
from moe_lint.rules._layers import deferring, defers, launch
from moe_lint.rules._lone_layers import Lone, holds_for_none, lone_layers
from moe_lint.rules.base import Case, Context, Rule

_MODEL = """
class Model:
    def __init__(self, config):
        self.layers = [DecoderLayer(config, i) for i in range(config.num_hidden_layers)]

    def forward(self, x, batch):
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual, batch)
        if x._sglang_needs_allreduce_fusion:
            x = tensor_model_parallel_all_reduce(x)
        return self.norm(x, residual)
"""
#: The same, for the stages that send only: the last one has nobody to send to.
_SENDING_MODEL = _MODEL.replace(
    "if x._sglang_needs_allreduce_fusion:",
    "if not self.pp_group.is_last_rank and x._sglang_needs_allreduce_fusion:",
)
_BUILDING = """
def make(config, layer_id):
    return LayerCommunicator(config, is_last_layer=layer_id == config.num_hidden_layers - 1)
"""
_STAGES = "        self.layers =", "        self.pp_group = get_pp_group()\n        self.layers ="


_ASKS = "return batch.fuse and not self.is_last_layer"
_FIRST = """if self.is_last_layer:
            return False
        return batch.fuse"""
_BY_A_METHOD = """return batch.fuse and self.follows()

    def follows(self):
        return not self.is_last_layer"""


_COUNTED = "layer_id == config.num_hidden_layers - 1"
_NEVER = "alone or layer_id == config.num_hidden_layers"
_HEAD = """
class Head:
    def __init__(self, config):
        self.start_index = config.num_hidden_layers
        self.eh_proj = Linear(config.hidden_size)
        self.decoder = DecoderLayer(config, 0)

    def forward(self, x, batch):
        x, residual = self.decoder(self.eh_proj(x), None, batch)
        return self.norm(x, residual)
"""
_ONE = "DecoderLayer(config, 0)"


@when_read
def _headed(name: str, head: str, last: str = f"alone or {_COUNTED}", mark: str = "") -> Case:
    """A tree with a next-token head, whose layer's constructor can be told that it is the only one."""
    told = f"LayerCommunicator(config, is_last_layer={last}){mark}"
    path = "engine/models/pretend.py"
    made = layer_case(name, block(experts(ROUTED)), communicator=told, layer=ASK + CALL + SETTLE).files
    model = made[path].replace("config, layer_id):", "config, layer_id, alone=False):")
    building = f"from engine.models.pretend import DecoderLayer\n{head}"
    return Case(name, {**made, path: model, "engine/models/head.py": building})


@when_read
def _promising(name: str, old: str, new: str) -> Case:
    """A tree whose communicator promises otherwise."""
    told = layer_case(name, block(experts(ROUTED)), layer=ASK + CALL + SETTLE)
    return Case(name, {**told.files, "engine/layers/communicator.py": COMMUNICATOR.replace(old, new)})


class LastLayerDefers(Rule):
    """Layers defer their sum to the next one, and the communicator is not told which layer is the last.

    A deferred sum is carried out by the layer that follows. The last layer has none: what follows is the final norm,
    which sums nothing. The communicator knows not to defer there only if it is built with `is_last_layer`; the default
    says that no layer is the last. Then the last layer's sum is lost: each rank keeps its own partial sum, and the
    logits are wrong for every token.

    Instead of

        self.layer_communicator = LayerCommunicator(..., allow_reduce_scatter=True)

    say which layer is the last:

        self.layer_communicator = LayerCommunicator(
            ..., allow_reduce_scatter=True, is_last_layer=layer_id == config.num_hidden_layers - 1
        )

    Layers count from 0: the index of the last one is not the number of layers. A next-token head that reuses a layer of
    the model builds one layer alone, and no count of the model's layers makes that the last: its constructor has to be
    told. That is a warning, since drafts that are wrong are rejected later.

    A model that settles the marked tensor itself behind its layers is not reported. Reported at the constructor call,
    or at the communicator's promise where that is told which layer is the last and never asks.
    There is no fix: what makes a layer the last one (the number of layers, a next-token head) is the model's to say.
    """

    code = "MOE302"
    name = "last-layer-defers"
    VALID = (
        layer_case("told", block(experts(ROUTED)), layer=ASK + CALL + SETTLE),
        layer_case(
            "told-by-counting-from-one",
            block(experts(ROUTED)),
            communicator="LayerCommunicator(config, is_last_layer=layer_id + 1 == config.num_hidden_layers)",
            layer=ASK + CALL + SETTLE,
        ),
        layer_case(
            "told-by-a-function-that-builds-it",
            block(experts(ROUTED)),
            _BUILDING,
            communicator="make(config, layer_id)",
            layer=ASK + CALL + SETTLE,
        ),
        _headed("alone-and-told", _HEAD.replace(_ONE, "DecoderLayer(config, 0, alone=True)")),
        _headed(
            "alone-and-counted", _HEAD.replace("self.start_index =", "config.num_hidden_layers = 1\n        self.n =")
        ),
        _headed("alone-where-one-may-be-all", _HEAD.replace("self.start_index", "self.depth")),
        _headed("one-of-several", _HEAD.replace(_ONE, "[DecoderLayer(config, i) for i in range(config.heads)]")),
        _headed(
            "alone-and-told-later",
            _HEAD.replace(_ONE, f"{_ONE}\n        self.decoder.layer_communicator.is_last_layer = True"),
        ),
        _promising(
            "asked-before", _ASKS, "if self.is_last_layer:\n            return False\n        return batch.fuse"
        ),
        _promising("asked-by-a-method", _ASKS, _BY_A_METHOD),
        layer_case(
            "never-deferred",
            block(experts(ROUTED)),
            communicator="LayerCommunicator(config, allow_reduce_scatter=True)",
            layer="""
            use_reduce_scatter = self.layer_communicator.should_use_reduce_scatter(batch)
            x = self.mlp(x, use_reduce_scatter=use_reduce_scatter)
            x, residual = self.layer_communicator.postprocess_layer(x, residual, batch)
            """,
        ),
        layer_case(
            "settled-by-the-model",
            block(experts(ROUTED)),
            _MODEL,
            communicator="LayerCommunicator(config, allow_reduce_scatter=True)",
            layer=ASK + CALL + SETTLE,
        ),
        layer_case(
            "settled-on-the-last-stage",
            block(experts(ROUTED)),
            _SENDING_MODEL.replace("not self", "self").replace(*_STAGES),
            communicator="LayerCommunicator(config, allow_reduce_scatter=True)",
            layer=ASK + CALL + SETTLE,
        ),
    )
    INVALID = (
        layer_case(
            "not-told-by-a-function-that-builds-it",
            block(experts(ROUTED)),
            _BUILDING.replace("layer_id == config.num_hidden_layers - 1", "is_last_layer").replace(
                "layer_id)", "is_last_layer=False)"
            ),
            communicator="make(config)  # <- MOE302",
            layer=ASK + CALL + SETTLE,
        ),
        layer_case(
            "not-told",
            block(experts(ROUTED)),
            communicator="LayerCommunicator(config, allow_reduce_scatter=True)  # <- MOE302",
            layer=ASK + CALL + SETTLE,
        ),
        layer_case(
            "told-for-an-index-that-no-layer-has",
            block(experts(ROUTED)),
            communicator="LayerCommunicator(config, is_last_layer=layer_id == config.num_hidden_layers)  # <- MOE302",
            layer=ASK + CALL + SETTLE,
        ),
        _promising(
            "never-asked",
            f"(self, batch):\n        {_ASKS}",
            "(self, batch):  # <- MOE302\n        return batch.fuse",
        ),
        _headed("alone-and-not-told", _HEAD.replace(_ONE, f"{_ONE}  # <- MOE302")),
        _headed(
            "alone-with-the-number-of-all",
            _HEAD.replace(_ONE, "DecoderLayer(config, index)  # <- MOE302").replace(
                "self.eh_proj =", "index = 45\n        self.eh_proj ="
            ),
            _COUNTED,
        ),
        _headed("told-for-an-index-that-no-layer-has-or-alone", "", _NEVER, "  # <- MOE302"),
        layer_case(
            "told-that-it-never-is",
            block(experts(ROUTED)),
            communicator="LayerCommunicator(config, is_last_layer=False)  # <- MOE302",
            layer=ASK + CALL + SETTLE,
        ),
        *(
            layer_case(
                name,
                block(experts(ROUTED)),
                model,
                communicator="LayerCommunicator(config, allow_reduce_scatter=True)  # <- MOE302",
                layer=ASK + CALL + SETTLE,
            )
            for name, model in (
                ("settled-before-sending-only", _SENDING_MODEL),
                ("settled-before-sending-only-by-a-group-at-hand", _SENDING_MODEL.replace(*_STAGES)),
            )
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        callers = context.callers
        told: set[tuple[str, int]] = set()
        for flag in context.index.profile.flags:
            layers = [one for one in callers.layers if flag.last and defers(callers, one, flag)]
            for layer in layers:
                for lone in lone_layers(context, layer, flag):
                    yield self._alone(lone, layer, flag, context)
            layers = [one for one in layers if not _settled(context, one)]
            for promise, kept in _unasking(flag, context) if layers else ():
                yield at_definition(
                    self,
                    promise,
                    f"`{flag.predicate}` never asks `self.{kept}`: the last layer defers its sum as well, and no layer "
                    f"follows to sum. Each rank keeps its own partial sum{launch(context, Atom(flag.name))}",
                    context,
                    remedy=f"answer no where `self.{kept}` holds",
                )
            for layer in layers:
                for built, how in _untold(callers, layer, flag):
                    if (built.path, built.call.span.line) in told:
                        continue
                    told.add((built.path, built.call.span.line))
                    yield Finding(
                        self.code,
                        self.name,
                        built.path,
                        built.call.span,
                        self.severity,
                        self.confidence,
                        f"`{built.owner.name}` is built {how}, and `{layer.owner.name}` defers its sum to the "
                        "next layer: the last layer defers as well, and no layer follows to sum. Each rank keeps its "
                        f"own partial sum{launch(context, Atom(flag.name))}",
                        "__init__",
                        layer.owner.name if layer.owner.path == built.path else None,
                        related=tuple(deferring(callers, layer)),
                        remedy=f"pass `{flag.last}=…` (the layer's index is that of the last one) to the constructor",
                    )

    def _alone(self, lone: Lone, layer: Layer, flag: Flag, context: Context) -> Finding:
        return Finding(
            self.code,
            self.name,
            lone.built.path,
            lone.built.call.span,
            Severity.WARNING,
            self.confidence,
            f"`{lone.model.name}` builds `{layer.owner.name}` alone, as layer {lone.index}: it takes itself for the "
            f"last one only where `{lone.count}` is {lone.index + 1}. Elsewhere it defers its sum, and no layer "
            f"follows to sum: each rank keeps its own partial sum{launch(context, Atom(flag.name))}",
            "__init__",
            lone.model.name,
            related=tuple(deferring(context.callers, layer)),
            remedy=f"let the layer's constructor be told that it is the only one, and pass that on as `{flag.last}`",
        )


def _unasking(flag: Flag, context: Context) -> Iterator[tuple[Ref, str]]:
    """The promises of a communicator that is told which layer is the last and does not ask, and where it keeps that."""
    index = context.index
    for promise in defined(flag.predicate, context) if flag.predicate else ():
        owner = Ref(promise.path, promise.name.rpartition(".")[0])
        constructor, promised = index.method(owner, "__init__"), index.condition(promise)
        home = index.facts(constructor.path) if constructor is not None else None
        if constructor is None or promised is None or home is None:
            continue
        kept = home.finds(constructor.name, rf"self\.(\w+) = {flag.last}$")
        asked = atom_set(answered(promised, owner.name, promise.path, index))
        # what is asked of the base, or of a method that cannot be read, may know it
        if len(kept) == 1 and asked and not any(f"self.{kept[0]}" in name or "super()" in name for name in asked):
            if not any(re.match(r"self\.\w+\(", name) for name in asked):
                yield promise, kept[0]


def _untold(callers: Callers, layer: Layer, flag: Flag) -> Iterator[tuple[Built, str]]:
    """The communicators that are not told which layer is the last, though they could be, and how they are built."""
    for built in layer.absorbers:
        arguments = built.call.arguments
        if any(passed.hides for passed in arguments):
            continue
        constructor = callers.index.method(built.owner, "__init__")
        conduct = callers.conduct(constructor) if constructor is not None else None
        if constructor is None or conduct is None or flag.last not in conduct.params:
            continue
        if _factory_tells(callers, built, layer, flag.last):
            continue
        given = {b.parameter: b.passed for b in callers.bind(built.call, constructor, skip_first=True)}
        if flag.last not in given or given[flag.last].literal is False:
            yield built, f"without `{flag.last}`"
        elif holds_for_none(callers, layer, given[flag.last].text):
            yield built, f"with `{flag.last}={given[flag.last].text}`, which holds for no layer: they count from 0"


def _factory_tells(callers: Callers, built: Built, layer: Layer, last: str) -> bool:
    """Whether a function of the tree builds the communicator, and knows by itself which layer is the last."""
    own = callers.index.method(layer.owner, built.call.callee.removeprefix("self."))
    factory = own if built.call.callee.startswith("self.") else callers.index.resolve(built.path, built.call.callee)
    facts = callers.index.facts(factory.path) if factory is not None else None
    if factory is None or facts is None or factory.name not in facts.functions:
        return False
    return last not in facts.header(factory.name)[1] and last in facts.function_text(factory.name)


def _settled(context: Context, layer: Layer) -> bool:
    """Whether a class that runs the layers sums what the last one owes."""
    around = set(context.index.users(layer.owner))
    around |= {base for user in around for base in context.index.mro(user)}
    for site in context.sites:
        if site.route is Route.DEFERRED and Ref(site.path, site.raw.class_name or "") in around:
            try:
                last = conj((site.guard, *(Atom(a) for a in context.index.profile.last_stage)))
                if last != FALSE and satisfiable(last):
                    return True
            except TooManyAtoms:
                return True
    return False
