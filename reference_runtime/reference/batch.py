"""The metadata of a batch as model code sees it."""

from __future__ import annotations

import dataclasses
import inspect
import types
from typing import TYPE_CHECKING, Any

import torch

from reference_runtime.stubs import Stub

if TYPE_CHECKING:
    from reference_runtime.scenarios import Case
    from reference_runtime.world import RankContext


class Batch:
    """Stands for the engine's `ForwardBatch`: the values a layer needs, and the defaults of the tree's own class.

    What that class computes from them, by properties and methods, it computes here.
    """

    def __init__(self, values: dict[str, Any], declared: type | None = None) -> None:
        self.__dict__.update(values, _declared=declared)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value

    def __getattr__(self, name: str) -> Any:
        found = inspect.getattr_static(self.__dict__["_declared"], name, None) if not name.startswith("__") else None
        if isinstance(found, property) and found.fget is not None:
            return found.fget(self)
        if inspect.isfunction(found):
            return types.MethodType(found, self)
        raise AttributeError(f"ForwardBatch has no {name} here")


def make(context: RankContext, case: Case, rows: int) -> Batch:
    """A decode step of the case's tokens: `rows` of them are this rank's input."""
    values: dict[str, Any] = {}
    info = context.module("model_executor.forward_batch_info")
    declared = getattr(info, "ForwardBatch", None)
    if dataclasses.is_dataclass(declared):
        for field in dataclasses.fields(declared):
            if field.default is not dataclasses.MISSING:
                values[field.name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                values[field.name] = field.default_factory()
            else:
                values[field.name] = Stub(f"ForwardBatch.{field.name}")
    attention = context.module("layers.dp_attention")
    device = context.device
    sizes = case.rows
    values.update(
        forward_mode=info.ForwardMode.DECODE,
        batch_size=rows,
        input_ids=torch.zeros(rows, dtype=torch.int64, device=device),
        positions=torch.arange(rows, device=device),
        seq_lens_sum=rows,
        global_num_tokens_cpu=sizes,
        global_num_tokens_gpu=torch.tensor(sizes, device=device),
        dp_local_start_pos=None,
        dp_local_num_tokens=None,
        dp_padding_mode=_padding_mode(attention, case),
        can_run_tbo=False,
        num_token_non_padded=None,
        num_token_non_padded_cpu=rows,
        is_extend_in_batch=False,
    )
    return Batch(values, declared if isinstance(declared, type) else None)


def _padding_mode(attention: Any, case: Case) -> Any:
    mode = getattr(attention, "DpPaddingMode", None) or getattr(attention, "DPPaddingMode", None)
    if mode is None:
        return None
    return mode.SUM_LEN if case.padding == "sum" else mode.MAX_LEN
