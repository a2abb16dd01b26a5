"""`moe-lint lsp`: a language server on standard input and output."""

from __future__ import annotations

import gc
from pathlib import Path

import click

from moe_lint.cli.caching import cache_of, cache_options
from moe_lint.cli.shared import fail


@click.command("lsp")
@click.option("--config", metavar="FILE", help="Read this configuration file, and no other.")
@click.option("--stdio", is_flag=True, hidden=True, expose_value=False)  # what many editors add to any server's command
@click.option("--isolated", is_flag=True, help="Read no configuration file.")
@cache_options
def command(config: str | None, isolated: bool, cache_dir: Path | None, no_cache: bool) -> None:
    """Serve an editor over the Language Server Protocol.

    It speaks over standard input and output. Needs the extra `lsp` (pygls).
    """
    try:
        import pygls.lsp.server  # noqa: F401
    except ImportError:
        fail("the language server needs pygls: install moe-lint[lsp]")
    from moe_lint.config import read_settings
    from moe_lint.editor import Editor
    from moe_lint.language_server import serve

    read_settings((), config, isolated, {})  # a bad request is told now, not with every file
    gc.enable()  # a session lasts: what a judgement built goes before the next
    serve(Editor(config, isolated, cache_of(cache_dir, no_cache))).start_io()
