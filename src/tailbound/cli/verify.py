"""`tailbound verify`: a soak of the engine, one case again, or the decoding of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tailbound.cli.options import LIST, Download, Seed, Threads, settle
from tailbound.lab import terminal
from tailbound.lab.errors import InputError

SOAK = "Soak"
DECODING = "The decoding of a model"


def verify(
    minutes: Annotated[
        float | None,
        typer.Option(help="How long. Default: 1, without --model.", rich_help_panel=SOAK),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(help="One case again: a file that a violation left, or SEED:NUMBER.", rich_help_panel=SOAK),
    ] = None,
    capture: Annotated[
        Path | None,
        typer.Option(help="A file of `tailbound capture`: a third of the cases come from it.", rich_help_panel=SOAK),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=0, help="How many judge at once; 0 for one a core.", rich_help_panel=SOAK)
    ] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the cases that break a promise.", rich_help_panel=SOAK)] = Path(
        "violations"
    ),
    model: Annotated[
        str | None,
        typer.Option(
            help="smollm2, a GGUF file, a folder, or a hub name. With --minutes: a soak with this model's tensors. "
            "Without: its decoding."
        ),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Text to read; default: Python's standard library, or random tokens.")
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens of the prompt.", rich_help_panel=DECODING)] = 600,
    tokens: Annotated[
        int, typer.Option("--steps", "--tokens", help="Decode steps for each budget.", rich_help_panel=DECODING)
    ] = 16,
    epsilon: Annotated[
        list[str] | None, typer.Option(help=f"Budgets. {LIST} 0,1e-6,0.01,0.05.", rich_help_panel=DECODING)
    ] = None,
    dtypes: Annotated[
        list[str] | None, typer.Option(help=f"Of the model. {LIST} float32,bfloat16.", rich_help_panel=DECODING)
    ] = None,
    download: Download = False,
    seed: Seed = 0,
    threads: Threads = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of tables; of a decoding, one object a line.")
    ] = False,
) -> None:
    """Recompute certificates by an oracle that shares nothing with the engine: random, steered and captured rows.

    Exit code 1 says that a promise was broken, and how to see it again.
    """
    if replay is None and minutes is None and model is not None:
        _decoding(model, text, context, tokens, epsilon, dtypes, download, seed, threads, as_json)
        return
    from tailbound.lab.soak import job, show
    from tailbound.report.progress import Bars

    if replay is not None and (minutes is not None or model is not None or capture is not None):
        raise InputError("--replay asks one case again: give it without --minutes, --model and --capture")
    if model is not None and capture is not None:
        raise InputError("--capture and --model are two sources of tensors: give one")
    settle(seed, threads)
    if replay is not None:
        result = job.replay(replay)
    else:
        wanted = 1.0 if minutes is None else minutes
        result = job.run(job.Options(wanted, seed, capture, model, text, download, out, processes), Bars())
    terminal.show(result.as_json() if as_json else None, *show.soak(result))
    if result.interrupted:
        raise typer.Exit(130)
    if result.tally.violations:
        raise typer.Exit(1)


def _decoding(
    model: str,
    text: Path | None,
    context: int,
    tokens: int,
    epsilon: list[str] | None,
    dtypes: list[str] | None,
    download: bool,
    seed: int,
    threads: int,
    as_json: bool,
) -> None:
    from tailbound.lab import show_verify
    from tailbound.lab import verify as job
    from tailbound.report.progress import Bars

    settle(seed, threads)
    asked = {
        "epsilons": terminal.values("--epsilon", epsilon, float),
        "dtypes": terminal.values("--dtypes", dtypes, str),
    }
    given: dict[str, Any] = {name: values for name, values in asked.items() if values}
    rows = job.run(job.Options(model, text, context, tokens, download=download, seed=seed, **given), Bars())
    if as_json:
        for row in rows:
            print(json.dumps(row.as_json()))
    else:
        terminal.show(None, *show_verify.verify(rows))
    if any(row.broken for row in rows):
        raise typer.Exit(1)
