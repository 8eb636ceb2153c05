"""Command line. One file a command; a command's code is imported only when it runs."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from moeplan._version import __version__
from moeplan.errors import MoeplanError

# name -> (module, one-line help). The help stands here so that ``moeplan --help`` imports no command.
_COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("moeplan.cli.init", "Write a commented starter scenario."),
    "check": ("moeplan.cli.check", "Read and resolve a scenario; report every problem at once."),
    "simulate": ("moeplan.cli.simulate", "Turn one scenario into one plan: speed, latency, memory, cost, verdict."),
    "compare": ("moeplan.cli.compare", "The same work on several hardware, prices or models, ranked."),
    "optimize": ("moeplan.cli.optimize", "Search layouts, limits, formats, hardware and offers; the Pareto front."),
    "sweep": ("moeplan.cli.sweep", "Plan a scenario at many values, on local processes or a Dask cluster."),
    "sensitivity": ("moeplan.cli.sensitivity", "Which assumption moves the answer most, and where a verdict flips."),
    "explain": ("moeplan.cli.explain", "The chain behind one number of a plan: formula, inputs, sources."),
    "routing": ("moeplan.cli.routing", "Route tokens only: expert load, imbalance, drops, traffic, placement."),
    "accuracy": ("moeplan.cli.accuracy", "Predict measured runs and report errors and interval coverage."),
    "calibrate": ("moeplan.cli.calibrate", "Fit efficiency parameters to measured runs; writes a new fitted file."),
    "import": ("moeplan.cli.import_", "Read results of other tools' serving benchmarks into a table of runs."),
    "monitor": ("moeplan.cli.monitor", "Compare production with a plan: drift, regressions, what to do."),
    "measure": ("moeplan.cli.measure", "Time kernels on this machine's GPU into tables for calibrate."),
    "catalog": ("moeplan.cli.catalog", "Show what is known: hardware, models, prices, runs, with sources."),
    "schema": ("moeplan.cli.schema", "Print the JSON Schema of scenario files, for editors."),
}


def _attribute(command: str) -> str:
    """Name of a command's function in its module; ``import`` is a word of the language."""
    return f"{command}_" if command == "import" else command


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(_COMMANDS[cmd_name][0]), _attribute(cmd_name))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. That the reader (head, less) goes away is no error; click would end with 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered has no reader either
            return 0

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run click; turn the package's errors into a message and an exit code (2: input, 1: our bug)."""
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except MoeplanError as error:
            click.echo(str(error), err=True)
            sys.exit(error.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("aborted", err=True)
            sys.exit(130)
        except OSError as error:
            # files are read and written where their own errors are told; what is left is mostly a full output
            click.echo(f"{error.filename or 'standard output'}: {error.strerror or error}", err=True)
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="moeplan")
def main() -> None:
    """Plan the hardware, layout and cost of Mixture-of-Experts training and serving before you spend.

    Start with: moeplan simulate scenarios/quickstart.yaml
    """
