"""The command line. Every command imports what it needs when it runs, so that `relent list` loads no torch."""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from typing import Any

import click

from relent import __version__
from relent.errors import RelentError

COMMANDS = {
    "list": "inform",
    "show": "inform",
    "doctor": "inform",
    "fetch": "data",
    "prepare": "data",
    "train": "train",
    "evaluate": "train",
    "forecast": "forecast",
    "verify": "verify",
    "scorecard": "verify",
    "check-method": "contract",
    "compare": "compare",
    "claims": "compare",
    "figures": "compare",
    "page": "compare",
    "overview": "compare",
    "track": "compare",
    "summary": "compare",
    "docs": "docs",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called or asked for help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"relent.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_") + "_command")
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="relent")
def cli() -> None:
    """Train, distil, align and verify models under KL-divergence and cross-entropy objectives.

    `relent list` shows the methods, `relent show METHOD` one of them, `relent doctor` what this machine has. The other
    commands are the steps that the workflow's rules call; `snakemake` runs them all in the right order.
    """


def run() -> None:
    """The `relent` command: `main`, then an end without taking torch's modules apart, which costs a second a job.

    Everything that a job writes is closed and renamed by then. MLflow, which writes at exit, ends in the ordinary way.
    """
    main()
    if "torch" in sys.modules and "mlflow" not in sys.modules:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; an error that is the user's to mend is one line on standard error, exit status 1."""
    try:
        return cli(args=arguments, standalone_mode=False)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit("relent: stopped")
    except RelentError as error:
        sys.exit(f"relent: {error}")
