"""The models that the sweep of PR #23748 touched, in the releases before and after it: all of them run, strictly."""

from __future__ import annotations

from functools import lru_cache

import pytest

from reference_runtime.launch import verify
from reference_runtime.plan import Settings
from reference_runtime.verdicts import CaseResult, ModelReport, RunReport, Status, Verdict
from tests.corpus.releases import release

OLD, NEW = "0.5.10.post1", "0.5.11"
MODELS = (
    "bailing_moe", "bailing_moe_linear", "deepseek_v2", "exaone_moe", "glm4_moe", "hunyuan_v3", "llada2", "llama4",
    "mimo_v2_flash", "minimax_m2", "qwen2_moe", "qwen3_moe", "sarvam_moe", "sdar_moe", "step3p5",
)  # fmt: skip
#: In one of the releases only.
ONLY = {"mimo_v2_flash": OLD, "hunyuan_v3": NEW}
#: Blocks that add a shared expert, sharded over the TP group, to what the dispatcher of FP4 experts has summed.
SHARDED_SHARED_EXPERT = {"bailing_moe", "bailing_moe_linear", "llada2", "llama4", "qwen2_moe", "sarvam_moe"}
#: Model -> words of the layer-level cases in which its newer release is wrong, by a fault of its own.
WRONG = {
    "bailing_moe_linear": ("fusion",),  # its decoder never marks the deferred sum
    # its decoder sums instead of the block, and asks for the two flags only: where the communicator reduce-scatters
    # unequal parts, both sum; where FP4 experts have summed each rank's own rows, it sums rows of different tokens
    "step3p5": ("sum-len",),
}


@lru_cache(maxsize=4)
def reports(backend: str, models: tuple[str, ...], world_sizes: tuple[int, ...]) -> dict[str, ModelReport]:
    """Module -> its cases in the older release (before) and in the newer one (after), where there are both."""
    settings = Settings(world_sizes=world_sizes, backend=backend)
    both = tuple(name for name in models if name not in ONLY)
    found: list[RunReport] = [verify(release(OLD), release(NEW), both, settings)] if both else []
    alone = sorted(set(models) & set(ONLY))
    found += [verify(release(ONLY[name]), release(ONLY[name]), (name,), settings) for name in alone]
    return {model.model.partition(".")[0]: model for report in found for model in report.models}


def explained(model: str, case: CaseResult) -> bool:
    """Whether it is known why a case is wrong after, too."""
    if "fp4-allgather" in case.case:
        return model in SHARDED_SHARED_EXPERT or case.before.status is Status.MISMATCH
    # with both MoE axes split, the newer release's wrapper of the fused kernel sums over one of them (sglang #32511)
    words = (*WRONG.get(model, ()), "tp4 ep2 fusion")
    return case.level == "layer" and any(word in case.case for word in words)


def assert_all_run(found: dict[str, ModelReport], models: tuple[str, ...]) -> None:
    assert found.keys() == set(models)
    for name, report in found.items():
        assert report.problem == "", name
        assert {case.level for case in report.cases} == {"block", "layer"}
        unmodelled = [f"{c.level} {c.case}: {c.detail}" for c in report.cases if c.verdict is Verdict.UNMODELLED]
        assert (name, unmodelled) == (name, [])
        wrong = [
            f"{c.level} {c.case}: {c.detail}"
            for c in report.cases
            if c.after.status not in (Status.RIGHT, Status.INFEASIBLE) and not explained(name, c)
        ]
        assert (name, wrong) == (name, [])


def test_every_model_of_the_sweep_runs_at_both_levels_and_no_placeholder_is_reached() -> None:
    assert_all_run(reports("threads", MODELS, (2,)), MODELS)


def test_ranks_as_processes_say_the_same_of_a_few() -> None:
    some = ("qwen3_moe", "sdar_moe")
    on_threads = reports("threads", MODELS, (2,))
    assert told(reports("gloo", some, (2,))) == told({name: on_threads[name] for name in some})


def told(found: dict[str, ModelReport]) -> dict[tuple[str, str, str], tuple[object, ...]]:
    return {
        (name, case.level, case.case): (case.verdict, case.before.trace, case.after.trace)
        for name, report in found.items()
        for case in report.cases
    }


@pytest.mark.integration
def test_every_model_runs_on_four_ranks_too() -> None:
    assert_all_run(reports("threads", MODELS, (2, 4)), MODELS)


@pytest.mark.integration
@pytest.mark.parametrize("name", MODELS)
def test_ranks_as_processes_say_the_same_of_every_model(name: str) -> None:
    assert told(reports("gloo", (name,), (2, 4))) == told(reports("threads", (name,), (2, 4)))
