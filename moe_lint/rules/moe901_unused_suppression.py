from __future__ import annotations

from collections.abc import Iterable

from moe_lint.model import Finding, Severity
from moe_lint.rules._cases import case, experts
from moe_lint.rules.base import Context, Rule


class UnusedSuppression(Rule):
    """A suppression comment silences nothing.

    The finding that it was written for is gone: the guard was fixed, or the code moved. Left behind, the comment will
    silence the next bug on that line. Remove it; `--fix` does. Of several codes, those that silence nothing are taken
    out. A code is reported only when its rule took part in the run.
    """

    code = "MOE901"
    name = "unused-suppression"
    severity = Severity.WARNING
    VALID = (
        case(
            "silences-a-finding",
            experts(
                """
                if self.tp_size > 1 and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)  # moe-lint: ignore[MOE001] the caller reduces
                """,
            ),
        ),
        case(
            "by-name-on-the-line-above",
            experts(
                """
                # moe-lint: ignore[hand-written-guard] the caller reduces
                if self.tp_size > 1 and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)
                """,
            ),
        ),
        case(
            "rule-that-is-off",
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = tensor_model_parallel_all_reduce(x)  # moe-lint: ignore[MOE003] the caller reduces
                """,
            ),
        ),
    )
    INVALID = (
        case(
            "nothing-to-silence",
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = tensor_model_parallel_all_reduce(x)  # moe-lint: ignore[MOE001] the caller reduces  # <- MOE901
                """,
            ),
        ),
        case(
            "another-rule",
            experts(
                """
                if self.tp_size > 1 and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)  # moe-lint: ignore[MOE002] the caller reduces  # <- MOE901
                """,
            ),
        ),
        case(
            "too-far-above",
            experts(
                """
                # moe-lint: ignore[MOE001] the caller reduces  # <- MOE901

                if self.tp_size > 1 and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)
                """,
            ),
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        return ()  # `suppress.apply_directives` reports it: it needs the other rules' findings
