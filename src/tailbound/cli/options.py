"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Seed = Annotated[int, typer.Option(help="Seed for everything random.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's choice.")]
Model = Annotated[str, typer.Option(help="smollm2, a GGUF file, a folder, or a hub name.")]
Text = Annotated[Path | None, typer.Option(help="Text to read; default: Python's standard library.")]
Reference = Annotated[Path | None, typer.Option(help="Text to read; default: Python's language reference.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Download = Annotated[bool, typer.Option("--download", help="Allow the network for a hub name.")]
Output = Annotated[Path | None, typer.Option(help="Folder for rows.jsonl, table.md and plot.png.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line, instead of tables.")]
LIST = "Repeatable, or with commas. Default:"


def settle(seed: int, threads: int) -> None:
    """Seed torch, and set its threads if asked."""
    import torch

    torch.manual_seed(seed)
    if threads:
        torch.set_num_threads(threads)
