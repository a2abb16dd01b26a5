"""`moe-lint clean`: empty the cache."""

from __future__ import annotations

from pathlib import Path

import click

from moe_lint.cli.caching import cache_folder, open_cache
from moe_lint.cli.shared import EPILOG, fail
from moe_lint.model import counted


@click.command("clean", epilog=EPILOG)
@cache_folder
def command(cache_dir: Path | None) -> None:
    """Remove the judgements that earlier runs kept."""
    cache = open_cache(cache_dir)
    try:
        count = cache.clear()
    except OSError as error:
        fail(f"{cache.folder}: cannot be emptied: {error.strerror or error}")
    click.echo(f"{counted(count, 'judgement')} removed from {cache.folder}")
