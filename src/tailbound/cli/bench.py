"""`tailbound bench`: one thin function a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tailbound.cli.options import LIST, Download, JsonLines, Model, Output, Seed, Text, Threads, settle
from tailbound.lab import terminal

app = typer.Typer(no_args_is_help=True, help="Ratios of time, with the error in the same row.")


@app.callback()
def _bench() -> None:
    """Ratios of time, with the error in the same row."""


@app.command("decode")
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

    settle(seed, 0)
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


@app.command("generate")
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

    settle(seed, threads)
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
