from __future__ import annotations

from collections.abc import Iterable

from moe_lint.model import Finding, Severity
from moe_lint.rules._cases import case, experts
from moe_lint.rules.base import Context, Rule


class SuppressionWithoutReason(Rule):
    """A suppression comment gives no reason.

    `# moe-lint: ignore[MOE001]` tells the next reader that somebody disagreed with a report about wrong numbers, and
    not why. Write the reason after the bracket: `# moe-lint: ignore[MOE001] the caller reduces, see #1234`.
    """

    code = "MOE902"
    name = "suppression-without-reason"
    severity = Severity.WARNING
    VALID = (
        case(
            "reason",
            experts(
                """
                if self.tp_size > 1 and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)  # moe-lint: ignore[MOE001] the caller reduces
                """,
            ),
        ),
        case(
            "no-directive",
            experts(
                """
                if self.tp_size > 1 and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)
                """,
            ),
        ),
    )
    INVALID = (
        case(
            "no-reason",
            experts(
                """
                if self.tp_size > 1 and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)  # moe-lint: ignore[MOE001]  # <- MOE902
                """,
            ),
        ),
        case(
            "no-reason-on-the-line-above",
            experts(
                """
                # moe-lint: ignore[hand-written-guard]  # <- MOE902
                if self.tp_size > 1 and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)
                """,
            ),
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        return ()  # `suppress.apply_directives` reports it: it needs the other rules' findings
