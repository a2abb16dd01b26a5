from __future__ import annotations

from collections.abc import Iterable

from moe_lint.model import Finding, Severity
from moe_lint.rules._cases import case, experts
from moe_lint.rules.base import Context, Rule


class MalformedSuppression(Rule):
    """A comment looks like a directive for moe-lint and is none.

    A directive is `# moe-lint: ignore[CODE, …] reason`, with the code or the name of a rule. A misspelt one silences
    nothing, in silence.
    """

    code = "MOE903"
    name = "malformed-suppression"
    severity = Severity.WARNING
    VALID = (
        case(
            "code",
            experts(
                """
                if self.tp_size > 1 and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)  # moe-lint: ignore[MOE001] the caller reduces
                """,
            ),
        ),
        case(
            "prose",
            experts(
                """
                if self.tp_size > 1 and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)  # see moe-lint: ignore[MOE001 is how to silence it
                """,
            ),
        ),
        case(
            "string",
            experts(
                """
                note = "# moe-lint: ignroe[MOE001]"
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = tensor_model_parallel_all_reduce(x)
                """,
            ),
        ),
    )
    INVALID = (
        case(
            "misspelt-verb",
            experts(
                """
                if self.tp_size > 1 and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)  # moe-lint: ignroe[MOE001] the caller reduces  # <- MOE903
                """,
            ),
        ),
        case(
            "unknown-code",
            experts(
                """
                if self.tp_size > 1 and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)  # moe-lint: ignore[MOE999] the caller reduces  # <- MOE903
                """,
            ),
        ),
        case(
            "no-code",
            experts(
                """
                if self.tp_size > 1 and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)  # moe-lint: ignore[] the caller reduces  # <- MOE903
                """,
            ),
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        return ()  # `suppress.apply_directives` reports it: it needs the other rules' findings
