"""What the jobs found, as tables: which figures, in which order, and in which words."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.panel import Panel
from rich.text import Text

from tailbound.engine.native import INSTALL
from tailbound.lab.captures import Summary
from tailbound.lab.demo import Result as Demo
from tailbound.lab.generate import Result
from tailbound.lab.machine import Machine
from tailbound.report import tables


def demo(result: Demo) -> Iterator[RenderableType]:
    """The text, the table by layer, and what it comes to."""
    passage = Text(result.prompt_end, style="dim") + Text(result.written, style="bold")
    yield Panel(passage, title=f"{result.model} writes on after {result.context:,} tokens of {result.source}")
    columns = ("layer", "keys kept", "dense rows", "certified TV", "true TV", "certified error", "true error")
    rows = (
        (
            str(row.layer),
            f"{row.kept_share:.1%}",
            f"{row.dense_share:.1%}",
            f"{row.tv_max:.6f}",
            f"{row.true_tv_max:.6f}",
            f"{row.output_error_max:.4f}",
            f"{row.true_output_error_max:.4f}",
        )
        for row in result.layers
    )
    yield tables.figures(
        f"Certified attention by layer (epsilon {result.epsilon:g})",
        columns,
        rows,
        "TV and errors are the largest of the layer; the true ones were recomputed in float64, apart from the engine",
    )
    yield tables.pairs(
        [
            ("certificates issued", f"{result.certificates:,}"),
            ("violations", Text(str(result.violations), style="bold red" if result.violations else "green")),
            ("keys kept, mean", f"{result.kept_mean:.1%}"),
            ("rows answered densely", f"{result.dense_share:.1%}"),
            ("largest TV, certified / true", f"{result.tv_max:.6f} / {result.true_tv_max:.6f}"),
            ("next-token TV against dense, mean", f"{result.next_token_tv_mean:.5f}"),
            ("argmax agreement with dense", f"{result.argmax_agreement:.1%}"),
            ("seconds", ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.phases.items())),
        ]
    )


def generate(result: Result) -> RenderableType:
    """What the certificates of a text say, and dense attention beside it."""
    last = result.turns[-1]
    speed = "" if last.tokens_per_s is None else f", then {last.tokens_per_s:.1f} tokens/s"
    of_turns = f" (the last of {len(result.turns)} turns)" if len(result.turns) > 1 else ""
    rows: list[tuple[str, RenderableType]] = [
        ("speed" + of_turns, f"first token after {last.first_token_s:.2f} s{speed}"),
        ("tokens", f"{last.prompt_tokens:,} read, {last.reused:,} of them from the cache; {last.tokens:,} written"),
        ("certificates", f"{result.certificates:,}, epsilon {result.epsilon}"),
    ]
    if result.certificates:
        rows += [
            ("largest TV", tables.figure(result.tv_max, ".6f")),
            ("keys kept, mean", tables.figure(result.kept_share, ".1%")),
            ("status", ", ".join(f"{name} {count:,}" for name, count in result.statuses.items())),
        ]
    rows += [(f"exact, layers {layers}", f"{calls} calls a layer: {reason}") for layers, reason, calls in result.exact]
    if (dense := result.dense) is not None:
        alone = "" if dense.tokens_per_s is None else f"{dense.tokens_per_s:.1f} tokens/s; "
        rows += [
            ("dense", f"{alone}a certified step is {dense.ratio.in_words(False)} times faster"),
            ("dense, its text", f"the same for {dense.shared_prefix} of {dense.tokens} tokens"),
            ("dense, step by step", f"argmax agreement {dense.argmax_agreement:.1%}"),
            ("dense, next-token TV", f"{dense.next_token_tv_mean:.5f}, mean along the dense text"),
        ]
    if result.broken:
        rows.append(("broken", Text(result.broken, style="bold red")))
    return tables.pairs(rows)


def doctor(machine: Machine) -> RenderableType:
    """What runs here, and the command for what does not."""
    rows: list[tuple[str, RenderableType]] = [
        ("tailbound", machine.tailbound),
        ("python", f"{machine.python} on {machine.platform}"),
        ("processor", machine.processor),
        ("torch", f"{machine.torch}, {machine.threads} threads of {machine.cores} cores"),
    ]
    if machine.native_missing:
        said = f"missing ({machine.native_missing}): torch answers, slowly; {INSTALL}"
        rows.append(("native module", Text(said, style="red")))
    else:
        rows += [
            ("ISA levels of the processor", ", ".join(machine.isa_cpu)),
            ("ISA levels of this build", ", ".join(machine.isa_built)),
            ("ISA level in force", f"{machine.isa_active} (TAILBOUND_ISA overrides)"),
        ]
    for extra in machine.extras:
        found = ", ".join(f"{name} {version}" for name, version in extra.versions.items() if version)
        rows.append((extra.name, found if extra.present else Text(f"missing; {extra.install}", style="yellow")))
    return tables.pairs(rows, title="tailbound doctor")


def capture(summary: Summary) -> RenderableType:
    """What was captured, and where it is."""
    return tables.pairs(
        [
            ("written", f"{summary.output}, {summary.bytes / 1e6:.1f} MB, {summary.dtype}"),
            ("model", f"{summary.model} on {summary.text}"),
            ("positions", f"keys of {summary.context:,}, queries of the last {summary.queries:,}"),
            ("layers", str(summary.layers)),
            ("heads", f"{summary.heads} query, {summary.kv_heads} KV, head_dim {summary.head_dim}"),
            ("seconds", f"{summary.seconds:.1f}"),
        ]
    )
