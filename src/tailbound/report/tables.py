"""Results as rich tables. Nothing here computes a figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tailbound.lab.demo import Result
    from tailbound.lab.machine import Machine


def demo(result: Result) -> Iterator[RenderableType]:
    """The text, the table by layer, and what it comes to."""
    passage = Text(result.prompt_end, style="dim") + Text(result.written, style="bold")
    yield Panel(passage, title=f"{result.model} writes on after {result.context:,} tokens of {result.source}")
    yield _layers(result)
    yield _verdict(result)


def _layers(result: Result) -> Table:
    table = Table(title=f"Certified attention by layer (epsilon {result.epsilon:g})", title_justify="left")
    for name in ("layer", "keys kept", "dense rows", "certified TV", "true TV", "certified error", "true error"):
        table.add_column(name, justify="right")
    for row in result.layers:
        table.add_row(
            str(row.layer),
            f"{row.kept_share:.1%}",
            f"{row.dense_share:.1%}",
            f"{row.tv_max:.6f}",
            f"{row.true_tv_max:.6f}",
            f"{row.output_error_max:.4f}",
            f"{row.true_output_error_max:.4f}",
        )
    table.caption = "TV and errors are the largest of the layer; the true ones were recomputed in float64, apart from the engine"
    table.caption_justify = "left"
    return table


def _verdict(result: Result) -> Table:
    table = Table.grid(padding=(0, 2))
    rows = {
        "certificates issued": f"{result.certificates:,}",
        "violations": f"{result.violations}",
        "keys kept, mean": f"{result.kept_mean:.1%}",
        "rows answered densely": f"{result.dense_share:.1%}",
        "largest TV, certified / true": f"{result.tv_max:.6f} / {result.true_tv_max:.6f}",
        "next-token TV against dense, mean": f"{result.next_token_tv_mean:.5f}",
        "argmax agreement with dense": f"{result.argmax_agreement:.1%}",
        "seconds": ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.phases.items()),
    }
    for name, value in rows.items():
        style = "" if name != "violations" else ("bold red" if result.violations else "green")
        table.add_row(name, Text(value, style=style))
    return table


def doctor(machine: Machine) -> Table:
    """What runs here, and the command for what does not."""
    table = Table(title="tailbound doctor", title_justify="left", show_header=False)
    table.add_row("tailbound", machine.tailbound)
    table.add_row("python", f"{machine.python} on {machine.platform}")
    table.add_row("processor", machine.processor)
    table.add_row("torch", f"{machine.torch}, {machine.threads} threads of {machine.cores} cores")
    if machine.native_missing:
        table.add_row("native module", Text(f"missing: {machine.native_missing}", style="red"))
    else:
        table.add_row("ISA levels of the processor", ", ".join(machine.isa_cpu))
        table.add_row("ISA levels of this build", ", ".join(machine.isa_built))
        table.add_row("ISA level in force", f"{machine.isa_active} (TAILBOUND_ISA overrides)")
    for extra in machine.extras:
        found = ", ".join(f"{name} {version}" for name, version in extra.versions.items() if version)
        state = found if extra.present else Text(f"missing; install with: {extra.install}", style="yellow")
        table.add_row(extra.name, state)
    return table
