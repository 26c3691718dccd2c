"""The page of an audit, `report.html`, from what `audit.json` holds: which figures it shows, in which words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tailbound.lab.audit import page_charts, words
from tailbound.lab.audit.columns import AT, EPSILONS
from tailbound.lab.audit.words import HEAD, Found
from tailbound.report import board, tables
from tailbound.report.board import Cell, Section, Things

COLUMNS = HEAD[:12]
"""Of the table of heads; the page of a head has all."""


def html(found: Found) -> str:
    """The page. What was not reached (an audit that was interrupted, or asked for no advice) is left out."""
    things = _things(found) if found["heads"] else None
    opening = board.paragraph(words.verdict(found), "lead") + board.tiles(_first(found))
    sections = [*(_of_heads(found, things) if things else ()), *_of_answers(found, things), *_texts(found)]
    if things:
        sections.append(_table(found, things))
    return board.render(f"Audit of {found['settings']['model']}", opening, [*sections, _made(found)], things)


def _first(found: Found) -> Iterator[tuple[str, str]]:
    model = found["model"]
    if model:
        yield f"of {model['heads']} heads need less than a tenth of the keys", str(model["sparse_heads"])
        yield "need more than half", str(model["flat_heads"])
        yield f"of the keys are needed at {AT:g}, the mean over heads", f"{model[f'share_{AT:g}']:.1%}"
    if found["advised"]:
        held = found["advised"][0]["held_out"]
        yield "of dense attention's bytes are moved under the advised budget", f"{held['figures']['bytes_share']:.0%}"
        if held["speed"] is not None:
            yield "a decode step under it, times as fast", f"{held['speed']['median']:.2f}"
        measure, _, limit = found["target"].partition("=")
        yield f"{measure} on text not seen; the target is {limit}", f"{held['value']:.3g}"


def _things(found: Found) -> Things:
    budgets = page_charts.budgets(found)
    cells = {}
    for line in found["heads"]:
        advised = [f"{words.entry(budget, line):g}" for budget in budgets.values()]
        cells[words.key(line)] = [*(figure.of(line) for figure in HEAD), *advised]
    names = [figure.words for figure in HEAD] + [f"Epsilon of the budget {name}" for name in budgets]
    curves = {words.key(line): page_charts.of_head(line) for line in found["heads"]}
    return Things("Head", "head", names, cells, page_charts.head(), curves)


def _of_heads(found: Found, things: Things) -> Iterator[Section]:
    maps = board.figure(
        "map",
        page_charts.maps(found),
        "One cell a head. Dark heads of the first map need few keys: they are sparse.",
        things,
    )
    yield Section("heads", "Heads, layer by layer", maps)
    keys = board.figure(
        "keys",
        [page_charts.keys(found)],
        "Keys that a free search would keep so that the attention mass left out is at most epsilon, over the keys that "
        "a row sees. The mean over heads, the mean of their 95th percentiles over positions, and what the Gaussian "
        "rule predicts.",
    )
    columns = ("epsilon", "needed", "95th percentile", "Gaussian rule")
    rows = (
        [Cell(f"{epsilon:g}"), *(Cell(f"{found['model'][f'{name}_{epsilon:g}']:.1%}") for name in page_charts.SHARES)]
        for epsilon in EPSILONS
    )
    yield Section(
        "keys", "Keys against epsilon", keys + board.folded("The same in figures", board.table(columns, rows, "Keys"))
    )
    rule = board.figure(
        "rule",
        page_charts.rules(found),
        "The Gaussian rule (6.4) knows only the standard deviation of a row's logits. On the dashed line it is right; "
        "above it a head needs more keys than it says, below it fewer.",
        things,
    )
    yield Section("theory", "Theory against measurement", rule)


def _of_answers(found: Found, things: Things | None) -> Iterator[Section]:
    if found["curve"]:
        answers = board.figure(
            "answers",
            page_charts.answers(found),
            f"The mean over {_positions(found)}, with its standard error. At each epsilon a "
            "policy reads as many keys as ours does; none but ours says what it leaves out.",
        )
        yield Section("answers", "Answers of the model", answers + board.folded("The same in figures", _curve(found)))
    if found["advised"]:
        yield Section("budget", "The advised budget", _advice(found, things))
    elif found["complete"]:
        text = f"No budget is advised: {found['why_not']}."
        yield Section("budget", "The advised budget", board.paragraph(text))


def _positions(found: Found) -> str:
    words = f"{found['curve'][0]['positions']} positions"
    return f"{words} of {len(found['texts'])} texts" if found.get("texts") else words


def _texts(found: Found) -> Iterator[Section]:
    """A line for each of many texts: how far they differ."""
    if not found.get("texts"):
        return
    intro = board.paragraph(f"{words.many(found)}. Figures are means over the positions looked at in each.")
    rows = (
        [Cell(line["text"]), *(Cell(figure.of(line)) for figure in words.TEXT), Cell(f"{line['seconds']:,.0f}")]
        for line in found["texts"]
    )
    columns = ("Text", *(figure.words for figure in words.TEXT), "Seconds")
    yield Section("texts", "Texts", intro + board.table(columns, rows, "Texts"))


def _curve(found: Found) -> str:
    columns = ["policy", "epsilon", "keys read", "bytes", words.distance(found), "standard error", "largest"]
    columns += [] if found["encoder"] else ["KL, nats", "same token", "loss, nats"]

    def row(line: Found) -> Iterator[Cell]:
        yield Cell(line["policy"])
        yield Cell(f"{line['epsilon']:g}")
        yield Cell(f"{line['share']:.1%}")
        yield Cell(f"{line['bytes_share']:.2f}")
        yield Cell(f"{line['tv_mean']:.3g}")
        for name, form in (("tv_standard_error", ".2g"), ("tv_max", ".3g")):
            yield Cell(tables.figure(line[name], form))
        if not found["encoder"]:
            for name, form in (("kl_mean", ".3g"), ("agreement", ".1%"), ("loss", ".4f")):
                yield Cell(tables.figure(line[name], form))

    dense = found["curve"][0]["dense_loss"]
    note = "" if dense is None else board.paragraph(f"Loss of exact attention: {dense:.4f} nats.", "caption")
    rows = [list(row(line)) for line in sorted(found["curve"], key=lambda line: line["epsilon"])]
    return board.table(columns, rows, "Answers of the model") + note


def _advice(found: Found, things: Things | None) -> str:
    best = found["advised"][0]
    text = (
        f"The target is {found['target']}. Budgets were chosen on one part of the text and then run on another that "
        f"nothing had seen. The one that moves fewer bytes is advised, and stands in budget.json: "
        f"{words.budget_name(best)}."
    )
    columns = ("budget", "where", "keys read", "bytes", words.distance(found), "target", "step, times as fast")

    def rows() -> Iterator[Sequence[Cell]]:
        for advice in found["advised"]:
            held, name = advice["held_out"], words.budget_name(advice)
            speed = held["speed"]
            faster = "" if speed is None else f"{speed['median']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})"
            for where, figures in (("chosen on", advice["chosen_on"]), ("text not seen", held["figures"])):
                last = (faster, "met" if held["met"] else "missed") if figures is held["figures"] else ("", "met")
                yield [
                    Cell(name),
                    Cell(where),
                    Cell(f"{figures['share']:.1%}"),
                    Cell(f"{figures['bytes_share']:.3f}"),
                    Cell(f"{figures['tv_mean']:.3g}"),
                    Cell(last[1]),
                    Cell(last[0]),
                ]

    text = board.paragraph(text) + board.table(columns, rows(), "Advised budgets")
    charts = page_charts.budget_maps(found)
    if not charts:
        return text
    return text + board.figure("budget", charts, "Epsilon by head: heads that bear errors have more.", things)


def _table(found: Found, things: Things) -> Section:
    columns = ["Head", *(figure.words for figure in COLUMNS)]
    rows = (
        [
            Cell(words.key(line), line["layer"] + line["head"] / 1000, words.key(line)),
            *(Cell(figure.of(line), line.get(figure.name)) for figure in COLUMNS),
        ]
        for line in found["heads"]
    )
    intro = board.paragraph("Every head; a column's name sorts by it, and a head opens its page.")
    return Section("table", "All heads", intro + board.table(columns, rows, "All heads", things))


def _made(found: Found) -> Section:
    asked, versions = found["settings"], found["versions"]
    pairs = [
        ("Model", asked["model"]),
        ("Text", found["text"]),
        ("Tokens", f"{asked['context']:,}"),
        ("Positions looked at", str(asked["queries"])),
        ("dtype", asked["dtype"]),
        ("Seed", str(asked["seed"])),
        ("Hash of the tokens", asked["tokens"]),
        ("Layers measured", f"{found['layers_done']} of {found['layers']}"),
        ("Processor", found["processor"]),
        ("Seconds", f"{found['seconds']:,.0f}"),
        ("Peak memory", f"{found['peak_bytes'] / 2**30:.2f} GiB"),
        *versions.items(),
    ]
    return Section("made", "How it was made", board.facts(pairs))
