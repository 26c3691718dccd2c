"""The `tailbound` command: one thin function a command. Exit codes: 0 good, 1 a promise failed, 2 bad input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tailbound.lab.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Certified sparse attention: few keys, and a proof with every answer.",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Seed = Annotated[int, typer.Option(help="Seed for everything random.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's choice.")]


@app.callback()
def _top() -> None:
    """Certified sparse attention."""


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="smollm2, a GGUF file, a folder, or a hub name.")] = "smollm2",
    text: Annotated[Path | None, typer.Option(help="Document to read; default: Python's standard library.")] = None,
    context: Annotated[int, typer.Option(help="Tokens of the document.")] = 4096,
    tokens: Annotated[int, typer.Option(help="Tokens to write.")] = 32,
    epsilon: Annotated[float, typer.Option(help="Budget of total variation for each row, in [0, 1).")] = 0.01,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    download: Annotated[bool, typer.Option("--download", help="Allow the network for a hub name.")] = False,
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
    _show(result.as_json() if as_json else None, *show.demo(result))
    if result.violations:
        raise typer.Exit(1)


@app.command()
def doctor(seed: Seed = 0, threads: Threads = 0, as_json: Json = False) -> None:
    """Say what this machine can run, and how to get what is missing."""
    from tailbound.lab import machine, show

    _settle(seed, threads)
    found = machine.inspect()
    _show(found.as_json() if as_json else None, show.doctor(found))


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
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    rounds: Annotated[int, typer.Option(help="Rounds in which every contestant runs once.")] = 7,
    seed: Seed = 0,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Time one decode step of attention, certified against dense. With --json: one object a line, one line a row."""
    from tailbound.lab import bench as job
    from tailbound.lab import show
    from tailbound.report.progress import Bars

    _settle(seed, threads)
    budgets = tuple(epsilon or (0.01, 0.05))
    rows = job.decode(job.Options(n, budgets, sigma, heads, kv_heads, head_dim, dtype, rounds), Bars())
    for row in rows if as_json else ():
        print(json.dumps(row.as_json()))
    if not as_json:
        _show(None, show.bench(rows))
    if any(row.violations for row in rows):
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


def _show(figures: dict[str, Any] | None, *renderables: Any) -> None:
    if figures is not None:
        print(json.dumps(figures))
        return
    from rich.console import Console

    console = Console()
    for renderable in renderables:
        console.print(renderable)
