"""A model's part of the report."""

from __future__ import annotations

from typing import Any

from tailbound.lab.reproduce import model_charts, model_tables, printed, sample
from tailbound.lab.reproduce.writing import Figures, Section, fill, number, versions


def section(job: str, figures: Figures, pictures: str) -> Section:
    """Everything about one model on one text.

    Args:
        job: the name of its folder.
        pictures: the address of the folder of plots.
    """
    run = figures["run"][0]
    encoder = run["part"] == "bert"
    lengths = sorted({row["n"] for row in figures["model.needs"]})
    model = run["model"].split(" (")[0]
    heads_n = lengths[0] if encoder else lengths[-1]
    heads = [row for row in figures["model.heads"] if row["n"] == heads_n]
    fields = {
        "heading": heading(run),
        "what": _what(run, lengths, len(heads)),
        "model": run["model"],
        "job": job,
        "pictures": pictures,
        "and_paper": f" (lines), and the paper's {printed.BERT} (crosses)" if encoder else "",
        "wikitext": _wikitext(figures, run, model),
        "heads_n": f"{heads_n:,}",
        "heads_count": str(len(heads)),
        "papers_heads": f", and the six heads of {printed.BERT} that the paper lists" if encoder else "",
        "sample_what": _sample_what(figures["model.searches"], encoder),
        "needs": model_tables.needs(figures["model.needs"], encoder, model),
        "fixed": model_tables.fixed(figures["model.fixed"], encoder, model),
        "spread": model_tables.spread(figures["model.spread"], model),
        "heads": model_tables.heads(heads, run, model),
        "rule": model_tables.rule(figures["model.rule"], model),
        "searches": model_tables.searches(figures["model.searches"], lengths[-1], model),
        "bounds": model_tables.bounds(figures["model.bounds"], model),
        "outputs": model_tables.outputs(figures["model.outputs"], model),
    }
    fields |= _needs_fields(figures, lengths) | _heads_fields(figures, heads)
    fields |= _search_fields(figures, lengths[-1]) | _bound_fields(figures, lengths[-1]) | _counts(figures)
    return Section(fill("model.md", fields), model_charts.charts(job, figures, encoder))


def heading(run: dict[str, Any]) -> str:
    """What the section is called."""
    if run["part"] == "bert":
        return f"Encoder: {run['model']}"
    return f"Decoder: {run['model']}, {run['context']:,} tokens"


def _what(run: dict[str, Any], lengths: list[int], heads: int) -> str:
    same = {"model": run["model"], "text": run["text"], "heads": str(heads), "versions": versions(run)}
    if run["part"] == "bert":
        whose = fill("encoder_same.md" if run["papers_model"] else "encoder_other.md", {"bert": printed.BERT})
        windows = ", ".join(f"{run['windows'][str(n)]} windows of {n} tokens" for n in lengths)
        return fill("encoder.md", same | {"windows": windows, "whose": whose})
    return fill("decoder.md", same | {"context": f"{run['context']:,}", "positions": str(run["positions"])})


def _wikitext(figures: Figures, run: dict[str, Any], model: str) -> str:
    rows = figures.get("model.wikitext", [])
    if not rows:
        return ""
    return fill(
        "wikitext.md", {"model": run["model"], "text": run["text"], "table": model_tables.wikitext(rows, model)}
    )


def _sample_what(rows: list[dict[str, Any]], encoder: bool) -> str:
    count = max(row["rows"] for row in rows)
    where = (
        "each length, two positions of the first window" if encoder else "the full length, one of the last positions"
    )
    return f"For {where} in every layer, drawn by the seed, all heads: {count} rows."


def _needs_fields(figures: Figures, lengths: list[int]) -> dict[str, str]:
    at = [row for row in figures["model.needs"] if row["epsilon"] == sample.EPSILONS[0]]
    fixed = figures["model.fixed"]
    return {
        "row_count": f"{at[0]['rows']:,}",
        "n_first": f"{lengths[0]:,}",
        "n_last": f"{lengths[-1]:,}",
        "need_first": f"{1 / at[0]['ratio']:.0%}",
        "need_last": f"{1 / at[-1]['ratio']:.0%}",
        "fixed_first": f"{fixed[0]['mean']:.0%}",
        "fixed_last": f"{fixed[-1]['mean']:.0%}",
        "gap_pass": f"{max(row['gap_pass'] for row in fixed):.1%}",
    }


def _heads_fields(figures: Figures, heads: list[dict[str, Any]]) -> dict[str, str]:
    rule, ks = figures["model.rule"][-1], [row["k"] for row in heads]
    return {
        "factor": f"{max(ks) / min(ks):,.0f}",
        "near": f"{rule['near']:.0%}",
        "near_inside": number(rule["near_inside"], ".0%"),
        "inside": str(rule["inside"]),
        "correlation": number(rule["rank_correlation"], ".3f"),
    }


def _search_fields(figures: Figures, n: int) -> dict[str, str]:
    rows = [row for row in figures["model.searches"] if row["n"] == n and row["epsilon"] == sample.EPSILONS[0]]
    found = {(row["search"], row["bound"]): row for row in rows}
    best = min((row for row in rows if row["bound"] in sample.CELLS), key=lambda row: row["mean_share"])
    return {
        "best_search": best["search"],
        "best_cells": best["bound"],
        "best_share": f"{best['mean_share']:.1%}",
        "sketch_share": f"{found['MC-Search, adaptive', sample.SKETCH]['mean_share']:.1%}",
        "oracle_share": f"{found['oracle', sample.ORACLE]['mean_share']:.1%}",
    }


def _bound_fields(figures: Figures, n: int) -> dict[str, str]:
    rows = [row for row in figures["model.bounds"] if row["n"] == n and row["at"] == "k_eps"]
    median = {row["bound"]: row["median"] for row in rows}
    three = [row for row in figures["model.outputs"] if row["n"] == n]
    winner = max(three, key=lambda row: row["wins"])
    return {
        "gap_median": f"{median['one gap (4.5)']:,.0f}",
        "cells_median": f"{min(median[f'mass (4.4), {kind}'] for kind in sample.CELLS):,.0f}",
        "sketch_median": f"{median[f'mass (4.4), {sample.SKETCH}']:.2f}",
        "winner": winner["bound"],
        "wins": f"{winner['wins']:.0%}",
        "winner_median": f"{winner['median']:.1f}",
    }


def _counts(figures: Figures) -> dict[str, str]:
    found = {}
    for name, table in (("search", "searches"), ("bound", "bounds"), ("output", "outputs")):
        rows = figures[f"model.{table}"]
        found[f"{name}_violations"] = str(sum(row["violations"] for row in rows))
        found[f"{name}_rows"] = f"{sum(row['rows'] for row in rows):,}"
    return found
