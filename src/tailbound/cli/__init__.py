"""The `tailbound` command: one thin function a command. Exit codes: 0 good, 1 a promise failed, 2 bad input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tailbound.cli import bench, verify
from tailbound.cli.options import Download, Dtype, Json, Model, Reference, Seed, Text, Threads, settle
from tailbound.lab import terminal
from tailbound.lab.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Certified sparse attention: few keys, and a proof with every answer.",
)
app.add_typer(bench.app, name="bench")
app.command()(verify.verify)


@app.callback()
def _top() -> None:
    """Certified sparse attention."""


@app.command()
def demo(
    model: Model = "smollm2",
    text: Text = None,
    context: Annotated[int, typer.Option(help="Tokens of the document.")] = 4096,
    tokens: Annotated[int, typer.Option(help="Tokens to write.")] = 32,
    epsilon: Annotated[float, typer.Option(help="Budget of total variation for each row, in [0, 1).")] = 0.01,
    dtype: Dtype = "float32",
    download: Download = False,
    seed: Seed = 0,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Let a real model write on after a long document with certified attention, judged at every step."""
    from tailbound.lab import demo as job
    from tailbound.lab import show
    from tailbound.report.progress import Bars

    settle(seed, threads)
    result = job.run(job.Options(model, text, context, tokens, epsilon, dtype, download), Bars())
    terminal.show(result.as_json() if as_json else None, *show.demo(result))
    if result.violations:
        raise typer.Exit(1)


@app.command()
def doctor(seed: Seed = 0, threads: Threads = 0, as_json: Json = False) -> None:
    """Say what this machine can run, and how to get what is missing."""
    from tailbound.lab import machine, show

    settle(seed, threads)
    found = machine.inspect()
    terminal.show(found.as_json() if as_json else None, show.doctor(found))


@app.command()
def capture(
    output: Annotated[Path, typer.Option(help="File to write, in the safetensors format.")],
    model: Model = "smollm2",
    text: Text = None,
    context: Annotated[int, typer.Option(help="Tokens of the text.")] = 8192,
    queries: Annotated[int, typer.Option(help="How many of the last positions to keep the queries of.")] = 64,
    dtype: Annotated[
        str,
        typer.Option(help="float32, bfloat16 or float16. The model runs in float32; what is captured is cast to this."),
    ] = "bfloat16",
    download: Download = False,
    seed: Seed = 0,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Write the queries, keys and values of a real model on a text to a file, layer by layer."""
    from tailbound.lab import captures as job
    from tailbound.lab import show
    from tailbound.report.progress import Bars

    settle(seed, threads)
    found = job.capture(job.Options(output, model, text, context, queries, dtype, download), Bars())
    terminal.show(found.as_json() if as_json else None, show.capture(found))


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Option(help="Text to go on after. Default: stdin.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="The same from a file.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Answer each line of stdin; a prompt goes before the first.")
    ] = False,
    model: Model = "smollm2",
    epsilon: Annotated[str, typer.Option(help="Budget: a number in [0, 1), or a JSON file.")] = "0.01",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write at most, each time.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    dtype: Dtype = "float32",
    against_dense: Annotated[bool, typer.Option("--against-dense", help="Write it densely too; compare.")] = False,
    download: Download = False,
    seed: Seed = 0,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Complete a text, or chat, with certified attention."""
    from tailbound.lab import generate as job
    from tailbound.lab import prompts, show
    from tailbound.report.progress import Bars

    settle(seed, threads)
    texts = prompts.turns(prompt, prompt_file, sys.stdin) if chat else prompts.one(prompt, prompt_file, sys.stdin)
    options = job.Options(model, epsilon, max_new_tokens, temperature, dtype, chat, download, seed)
    result = job.run(options, texts, Bars(), stream=not as_json, against_dense=against_dense)
    if not as_json:
        print()
    terminal.show(result.as_json() if as_json else None, show.generate(result))
    if result.broken:
        raise typer.Exit(1)


@app.command()
def audit(
    out: Annotated[
        Path, typer.Option(help="Folder for report.html, plots/, audit.json, audit.parquet and budget.json.")
    ] = Path("audit"),
    model: Model = "smollm2",
    text: Reference = None,
    texts: Annotated[
        Path | None,
        typer.Option(help="Many texts instead: a folder (.txt, .md), or a pattern of files in quotes."),
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Read --texts on a Ray cluster: its address, auto, or local to start one.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens of each half of the text. Default: 2048, or fewer if made for fewer.")
    ] = None,
    queries: Annotated[int, typer.Option(help="Positions looked at; of a decoder the last ones.")] = 64,
    target: Annotated[
        str | None,
        typer.Option(
            help="What the advised budget must meet: next-token-tv, agreement, kl or (encoders) hidden-distance, as in "
            "agreement=0.99; or none. Default: next-token-tv=0.01, hidden-distance=0.05."
        ),
    ] = None,
    dtype: Dtype = "float32",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the audit in the folder.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the audit in the folder.")] = False,
    redraw: Annotated[
        bool, typer.Option("--redraw", help="Only make report.html and plots/ again, from audit.json.")
    ] = False,
    download: Download = False,
    seed: Seed = 0,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Measure which heads of a model are sparse, and advise a budget that meets a target on text it has not seen."""
    from tailbound.lab.audit import job, report, show
    from tailbound.report.progress import Bars

    if redraw:
        terminal.warn(report.missing(out))
        written = [str(path) for path in report.redraw(out)]
        terminal.show({"written": written} if as_json else None, "written: " + ", ".join(written))
        return
    settle(seed, threads)
    asked = (model, text, context, queries, target, dtype, download, seed, resume, fresh, texts, ray, threads)
    options = job.Options(out, *asked)
    try:
        result, stopped = job.run(options, Bars()), False
    except job.InterruptedAuditError as interruption:
        result, stopped = interruption.result, True
    terminal.show(result.as_json() if as_json else None, *show.audit(result))
    terminal.warn(report.missing(out))
    if stopped:
        raise typer.Exit(130)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Folder of an audit.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Folder of another.")],
    as_json: Json = False,
) -> None:
    """Say what differs between two audits: of two models, two texts, two settings."""
    from tailbound.lab.audit import comparison, report, show_comparison

    found = comparison.compare(report.load(first), report.load(second))
    terminal.show(found if as_json else None, *show_comparison.compare(found))


@app.command()
def reproduce(
    part: Annotated[str, typer.Argument(help="gaussian, bert, decoder or all.")] = "all",
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder, hub name or package. Default: bert-base-uncased if it is here, else minilm; smollm2."
        ),
    ] = None,
    text: Reference = None,
    context: Annotated[list[int] | None, typer.Option(help="Tokens of the decoder; repeatable. Default: 2048.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for rows, figures, plots and the report.")] = Path("reproduction"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin again; default: go on where a run stopped.")] = False,
    download: Download = False,
    seed: Seed = 0,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Run the paper's experiments again, and the ones it leaves out; write a report with its figures beside ours."""
    from tailbound.lab.reproduce import job, show
    from tailbound.report.progress import Bars

    settle(seed, threads)
    parts = job.PARTS if part == "all" else (part,)
    contexts = tuple(dict.fromkeys(context or (2048,)))
    options = job.Options(parts, out, model, text, contexts, download, seed, fresh)
    result = job.run(options, Bars())
    terminal.show(result.as_json() if as_json else None, *show.reproduce(result))
    if result.violations:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; what the user can put right is one line on stderr and exit code 2."""
    try:
        app()
    except InputError as error:
        print(f"tailbound: {error}", file=sys.stderr)
        sys.exit(2)
