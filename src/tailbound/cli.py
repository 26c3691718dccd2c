"""The `tailbound` command: one thin function a command. Exit codes: 0 good, 1 a promise failed, 2 bad input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tailbound.lab import terminal
from tailbound.lab.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Certified sparse attention: few keys, and a proof with every answer.",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Seed = Annotated[int, typer.Option(help="Seed for everything random.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's choice.")]
Model = Annotated[str, typer.Option(help="smollm2, a GGUF file, a folder, or a hub name.")]
Text = Annotated[Path | None, typer.Option(help="Text to read; default: Python's standard library.")]
Download = Annotated[bool, typer.Option("--download", help="Allow the network for a hub name.")]
Output = Annotated[Path | None, typer.Option(help="Folder for rows.jsonl, table.md and plot.png.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line, instead of tables.")]
LIST = "Repeatable, or with commas. Default:"


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
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    download: Download = False,
    seed: Seed = 0,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Let a real model write on after a long document with certified attention, judged at every step."""
    from tailbound.lab import demo as job
    from tailbound.lab import show
    from tailbound.report.progress import Bars

    _settle(seed, threads)
    result = job.run(job.Options(model, text, context, tokens, epsilon, dtype, download), Bars())
    terminal.show(result.as_json() if as_json else None, *show.demo(result))
    if result.violations:
        raise typer.Exit(1)


@app.command()
def doctor(seed: Seed = 0, threads: Threads = 0, as_json: Json = False) -> None:
    """Say what this machine can run, and how to get what is missing."""
    from tailbound.lab import machine, show

    _settle(seed, threads)
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

    _settle(seed, threads)
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
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
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

    _settle(seed, threads)
    texts = prompts.turns(prompt, prompt_file, sys.stdin) if chat else prompts.one(prompt, prompt_file, sys.stdin)
    options = job.Options(model, epsilon, max_new_tokens, temperature, dtype, chat, download, seed)
    result = job.run(options, texts, Bars(), stream=not as_json, against_dense=against_dense)
    if not as_json:
        print()
    terminal.show(result.as_json() if as_json else None, show.generate(result))
    if result.broken:
        raise typer.Exit(1)


@app.command()
def verify(
    model: Annotated[str | None, typer.Option(help="smollm2, a GGUF file, a folder, or a hub name.")] = None,
    text: Annotated[
        Path | None, typer.Option(help="Text to read; default: Python's standard library, or random tokens.")
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 600,
    tokens: Annotated[int, typer.Option("--steps", "--tokens", help="Decode steps for each budget.")] = 16,
    epsilon: Annotated[list[str] | None, typer.Option(help=f"Budgets. {LIST} 0,1e-6,0.01,0.05.")] = None,
    dtypes: Annotated[list[str] | None, typer.Option(help=f"Of the model. {LIST} float32,bfloat16.")] = None,
    download: Download = False,
    seed: Seed = 0,
    threads: Threads = 0,
    as_json: JsonLines = False,
) -> None:
    """Recompute every certificate of a model's decoding in float64: how to check a new family of models."""
    from tailbound.lab import show_verify
    from tailbound.lab import verify as job
    from tailbound.report.progress import Bars

    if model is None:
        raise InputError("verify checks a model: name one with --model (smollm2, a GGUF file, a folder, or a hub name)")
    _settle(seed, threads)
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


@app.command()
def audit(
    out: Annotated[
        Path, typer.Option(help="Folder for report.html, plots/, audit.json, audit.parquet and budget.json.")
    ] = Path("audit"),
    model: Model = "smollm2",
    text: Annotated[Path | None, typer.Option(help="Text to read; default: Python's language reference.")] = None,
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
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
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
    _settle(seed, threads)
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
    text: Annotated[Path | None, typer.Option(help="Text to read; default: Python's language reference.")] = None,
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

    _settle(seed, threads)
    parts = job.PARTS if part == "all" else (part,)
    contexts = tuple(dict.fromkeys(context or (2048,)))
    options = job.Options(parts, out, model, text, contexts, download, seed, fresh)
    result = job.run(options, Bars())
    terminal.show(result.as_json() if as_json else None, *show.reproduce(result))
    if result.violations:
        raise typer.Exit(1)


bench = typer.Typer(no_args_is_help=True, help="Ratios of time, with the error in the same row.")
app.add_typer(bench, name="bench")


@bench.callback()
def _bench() -> None:
    """Ratios of time, with the error in the same row."""


@bench.command("decode")
def bench_decode(
    n: Annotated[int, typer.Option("--n", help="Keys.")] = 8192,
    epsilon: Annotated[list[float] | None, typer.Option(help="Budgets; repeatable. Default: 0.01 and 0.05.")] = None,
    sigma: Annotated[float, typer.Option(help="Standard deviation of the Gaussian logits.")] = 3.5,
    heads: Annotated[int, typer.Option(help="Query heads.")] = 32,
    kv_heads: Annotated[int, typer.Option(help="KV heads.")] = 8,
    head_dim: Annotated[int, typer.Option(help="Width of queries, keys and values.")] = 128,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; of --capture, the file's.")] = "bfloat16",
    layers: Annotated[int, typer.Option(help="Layers of a step; 0: K and V exceed 4 last-level caches.")] = 0,
    real: Annotated[bool, typer.Option("--real", help="Run on a capture of a real model instead.")] = False,
    capture: Annotated[
        Path | None, typer.Option(help="The capture of --real; default: of smollm2, made once in the cache folder.")
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens of the capture that --real makes.")] = 8192,
    positions: Annotated[int, typer.Option(help="With --real: how many of the last positions are judged.")] = 64,
    rounds: Annotated[int, typer.Option(help="Rounds in which every contestant runs once.")] = 15,
    output: Output = None,
    seed: Seed = 0,
    threads: Annotated[
        list[str] | None, typer.Option(help="CPU threads; repeatable, or with commas. Default: 1 and all.")
    ] = None,
    as_json: JsonLines = False,
) -> None:
    """Time one decode step of attention over all layers, certified against dense, with the error in the same row."""
    from tailbound.lab import bench as job
    from tailbound.lab import folder, show_bench
    from tailbound.report.progress import Bars

    _settle(seed, 0)
    options = job.Options(
        n=n,
        epsilons=tuple(dict.fromkeys(epsilon or (0.01, 0.05))),
        sigma=sigma,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        layers=layers,
        rounds=rounds,
        threads=terminal.values("--threads", threads, int),
        real=real or capture is not None,
        capture=capture,
        context=context,
        positions=positions,
    )
    if output is not None:
        folder.prepare(output)
    rows = job.decode(options, Bars())
    terminal.give_rows(show_bench, rows, output, as_json)
    if any(row.violations for row in rows):
        raise typer.Exit(1)


@bench.command("generate")
def bench_generate(
    model: Model = "smollm2",
    text: Text = None,
    contexts: Annotated[list[str] | None, typer.Option(help=f"Keys at the last step. {LIST} 512,2048,8000.")] = None,
    dtypes: Annotated[list[str] | None, typer.Option(help=f"Of the model. {LIST} bfloat16,float32.")] = None,
    epsilon: Annotated[list[str] | None, typer.Option(help=f"Budgets. {LIST} 0.01.")] = None,
    steps: Annotated[int, typer.Option(help="Timed decode steps, fed with the text.")] = 32,
    prefills: Annotated[int, typer.Option(help="Timed prefills of each contestant.")] = 3,
    profile: Annotated[bool, typer.Option("--profile", help="Also take the steps apart, by kind of work.")] = False,
    output: Output = None,
    download: Download = False,
    seed: Seed = 0,
    threads: Threads = 0,
    as_json: JsonLines = False,
) -> None:
    """Time whole decode steps of a real model, certified against dense, with agreement in the same row."""
    from tailbound.lab import bench_generate as job
    from tailbound.lab import folder, show_bench_generate
    from tailbound.lab.steps import Options
    from tailbound.report.progress import Bars

    _settle(seed, threads)
    asked: dict[str, Any] = {
        "contexts": terminal.values("--contexts", contexts, int),
        "dtypes": terminal.values("--dtypes", dtypes, str),
        "epsilons": terminal.values("--epsilon", epsilon, float),
    }
    options = Options(
        model=model,
        text=text,
        **{name: values for name, values in asked.items() if values},
        steps=steps,
        prefills=prefills,
        profile=profile,
        download=download,
    )
    if output is not None:
        folder.prepare(output)
    rows = job.run(options, Bars())
    terminal.give_rows(show_bench_generate, rows, output, as_json)
    if any(row.broken for row in rows):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; what the user can put right is one line on stderr and exit code 2."""
    try:
        app()
    except InputError as error:
        print(f"tailbound: {error}", file=sys.stderr)
        sys.exit(2)


def _settle(seed: int, threads: int) -> None:
    import torch

    torch.manual_seed(seed)
    if threads:
        torch.set_num_threads(threads)
