"""`celery -A APP s3tasks …`: the command line with the settings of that app, for Celery's own command to find (entry point).

It never parses anything itself, and never makes an app's s3 tasks for it.
"""

from __future__ import annotations

from typing import Any

import click

from s3tasks.cli import main
from s3tasks.cli.terminal import Surroundings
from s3tasks.settings import Settings


@click.command(
    "s3tasks",
    short_help="what Redis, Celery and S3 do, and what the ledger knows: doctor, show, forget, list, read, write, delete",
    context_settings={"ignore_unknown_options": True},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def s3tasks(context: click.Context, arguments: tuple[str, ...]) -> None:
    """The commands of s3tasks, with the settings of the app."""
    app = context.obj.app
    context.exit(main(arguments, Surroundings(lambda: settings_of(app), app)))


def settings_of(app: Any) -> Settings:
    """The settings of the s3 tasks that the app has; ValueError where it has none."""
    toolkit = getattr(app.tasks.get("s3tasks.write"), "toolkit", None)
    if toolkit is None:
        raise ValueError(f"the app {app.main!r} has no s3 tasks: name one with -A where S3Tasks(app) is made")
    settings: Settings = toolkit.settings
    return settings
