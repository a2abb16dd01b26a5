"""Outputs: one file each, a `render(Report) -> str`, loaded when somebody asks for it."""

from __future__ import annotations

from importlib import import_module

from moe_lint.model import Report

#: Format of a check -> its module in this package.
FORMATS = {
    "text": "text",
    "concise": "concise",
    "json": "json_report",
    "sarif": "sarif",
    "github": "github",
    "gitlab": "gitlab",
    "junit": "junit",
    "html": "html",
}
#: Format of the matrix -> module and function.
MATRIX_FORMATS = {
    "text": ("table", "render"),
    "json": ("json_report", "render_matrix"),
    "html": ("html", "render"),
}


def render(report: Report, output: str) -> str:
    """The report in a format of `FORMATS`, without a newline at its end."""
    return _call(FORMATS[output], "render", report)


def render_matrix(report: Report, output: str) -> str:
    """The drift matrix in a format of `MATRIX_FORMATS`, without a newline at its end."""
    return _call(*MATRIX_FORMATS[output], report)


def _call(module: str, function: str, report: Report) -> str:
    text = getattr(import_module(f"{__name__}.{module}"), function)(report)
    assert isinstance(text, str)
    return text.removesuffix("\n")
