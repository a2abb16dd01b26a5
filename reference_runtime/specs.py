"""What discovery cannot see in a model file. Most models need no line here.

Keyed by the name of the block's class, not by file or release: forks rename files, rarely classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Spec:
    """Help for one block class.

    Attributes:
        config: configuration values that differ from the common ones.
        attention_reduces: the decoder's attention sums its own output over the attention-TP group.
        ignore: the class is no block of its own (abstract, or a part of one).
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    attention_reduces: bool = False
    ignore: bool = False


SPECS: dict[str, Spec] = {
    "Llama4MoE": Spec(config={"num_experts_per_tok": 1}),  # one expert per token, scaled on its input
}
_DEFAULT = Spec()


def spec_of(block: str) -> Spec:
    """The help for a block class; an empty one for most."""
    return SPECS.get(block, _DEFAULT)
