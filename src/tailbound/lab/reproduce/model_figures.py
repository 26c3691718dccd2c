"""From the raw rows of a model to the figures of its tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import special, stats

from tailbound.lab import needs
from tailbound.lab.reproduce import printed, sample
from tailbound.lab.rows import Columns, Rows, chosen

EPSILON = needs.GAP_EPSILON
NEAR = 0.1
"""A prediction is near if it is within this share of the measured value."""


def figures(rows: Rows) -> Iterator[dict[str, Any]]:
    """The tables' rows; beside ours the paper's figure, where it has one for this length."""
    needed = rows.read("needs")
    for n in np.unique(needed["n"]).tolist():
        some = chosen(needed, n=n)
        yield from _needs(some, n, rows.settings["part"] == "bert")
        heads = list(_heads(some, n))
        yield from heads
        yield {"table": "model.spread", "n": n} | _spread([row["k"] for row in heads])
        yield {"table": "model.rule", "n": n, "rows": len(some["n"])} | _rule(heads)
    yield from _searches(rows.read("searches"))
    yield from _looseness("model.bounds", rows.read("bounds"), ("n", "at"))
    yield from _looseness("model.outputs", rows.read("outputs"), ("n",))


def _needs(some: Columns, n: int, encoder: bool) -> Iterator[dict[str, Any]]:
    """An encoder's figures stand beside the paper's of the same length; a decoder's beside nothing."""
    for epsilon in printed.EPSILONS:
        k = some[needs.k_name(epsilon)]
        paper = printed.BERT_RATIO.get(n, {}).get(epsilon) if encoder else None
        ratio = n / float(k.mean())
        yield {
            "table": "model.needs",
            "n": n,
            "epsilon": epsilon,
            "rows": len(k),
            "mean_k": float(k.mean()),
            "ratio": ratio,
            "standard_error": _between_windows(some, n / k.mean() ** 2 * k) if encoder else None,
            "p95_k": float(np.percentile(k, 95)),
            "paper": paper,
            "difference": None if paper is None else ratio - paper,
        }
    tv, paper = some["tv_16"], printed.BERT_TV.get(n) if encoder else None
    yield {
        "table": "model.fixed",
        "n": n,
        "rows": len(tv),
        "mean": float(tv.mean()),
        "standard_error": _between_windows(some, tv) if encoder else None,
        "p95": float(np.percentile(tv, 95)),
        "paper_mean": paper.mean if paper else None,
        "paper_p95": paper.p95 if paper else None,
        "difference_mean": float(tv.mean()) - paper.mean if paper else None,
        "difference_p95": float(np.percentile(tv, 95)) - paper.p95 if paper else None,
        "gap_pass": float((some["gap_16"] <= EPSILON).mean()),
        "paper_gap_pass": printed.BERT_GAP_PASS if paper else None,
        "gap_median": float(np.median(some["gap_16"])),
        "gap_violations": int((some["gap_16"] < some["tv_16"] * (1.0 - sample.SLACK)).sum()),
        "ratio_gap": n / float(some["k_gap"].mean()),
    }
    if encoder and n in printed.BERT_WIKITEXT:
        k, wiki = some[needs.k_name(EPSILON)], printed.BERT_WIKITEXT[n]
        ours = n / float(k.mean()), float(np.percentile(k, 95))
        yield {
            "table": "model.wikitext", "n": n, "epsilon": EPSILON, "ratio": ours[0], "p95_k": ours[1],
            "paper_ratio": wiki.ratio, "paper_p95_k": wiki.p95,
            "difference_ratio": ours[0] - wiki.ratio, "difference_p95_k": ours[1] - wiki.p95,
        }  # fmt: skip


def _between_windows(some: Columns, values: np.ndarray) -> float | None:
    """The standard error of the mean as the windows of text differ: queries of one window are not independent."""
    windows = np.unique(some["window"])
    if len(windows) < 2:
        return None
    means = [values[some["window"] == window].mean() for window in windows]
    return float(np.std(means, ddof=1) / math.sqrt(len(means)))


def _heads(some: Columns, n: int) -> Iterator[dict[str, Any]]:
    """By head: what it needs, and what the Gaussian rule predicts from the spread of each of its rows."""
    k = some[needs.k_name(EPSILON)]
    visible = some.get("visible", np.full(len(k), n))
    shift = float(special.ndtri(EPSILON))
    rule = special.ndtr(-(some["sigma"] + shift))
    for layer in np.unique(some["layer"]).tolist():
        for head in np.unique(some["head"]).tolist():
            here = (some["layer"] == layer) & (some["head"] == head)
            yield {
                "table": "model.heads",
                "n": n,
                "layer": layer,
                "head": head,
                "k": float(k[here].mean()),
                "share": float((k[here] / visible[here]).mean()),
                "gap_pass": float((some["gap_16"][here] <= EPSILON).mean()),
                "tv_16": float(some["tv_16"][here].mean()),
                "sigma": float(some["sigma"][here].mean()),
                "rule": float(rule[here].mean()),
                "relative_variance": float(
                    np.median(np.expm1(np.minimum(some["sigma"][here], 20.0) ** 2) / visible[here])
                ),
            }


def _spread(values: list[float]) -> dict[str, Any]:
    names = {"min": 0, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "max": 100}
    return {"heads": len(values)} | {name: float(np.percentile(values, at)) for name, at in names.items()}


def _rule(heads: list[dict[str, Any]]) -> dict[str, Any]:
    """How the rule's share compares with the measured one, over heads; and among those within its range."""
    ratio = np.array([row["rule"] / row["share"] for row in heads])
    inside = np.array([row["relative_variance"] <= 0.13 for row in heads])
    found: dict[str, Any] = {
        "heads": len(heads),
        "sigma_median": float(np.median([row["sigma"] for row in heads])),
        "rank_correlation": _rank_correlation([row["rule"] for row in heads], [row["share"] for row in heads]),
        "ratio_p5": float(np.percentile(ratio, 5)),
        "ratio_median": float(np.median(ratio)),
        "ratio_p95": float(np.percentile(ratio, 95)),
        "near": float((np.abs(ratio - 1.0) <= NEAR).mean()),
        "inside": int(inside.sum()),
        "near_inside": float((np.abs(ratio[inside] - 1.0) <= NEAR).mean()) if inside.any() else None,
    }
    return found


def _rank_correlation(a: list[float], b: list[float]) -> float | None:
    """None where one of the two is the same everywhere."""
    if min(len(set(a)), len(set(b))) < 2:
        return None
    return float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])


def _searches(columns: Columns) -> Iterator[dict[str, Any]]:
    """Keys scored by search and bound; a decoder's rows see a few keys less than its context.

    `fewer_bytes`: of K and V in bfloat16, against the sketch (at most D + 8 bytes a key) and the keys read after it.
    """
    lengths = columns["length"]
    for n in np.unique(lengths).tolist():
        for epsilon in sample.EPSILONS:
            some = {name: column[(lengths == n) & (columns["epsilon"] == epsilon)] for name, column in columns.items()}
            for search, bound in dict.fromkeys(zip(some["search"].tolist(), some["bound"].tolist(), strict=True)):
                here = chosen(some, search=search, bound=bound)
                share = here["scored"] / here["n"]
                width = int(here["head_dim"][0])
                read = width + 8 + 4 * width * float(share.mean())
                yield {
                    "table": "model.searches",
                    "n": n,
                    "epsilon": epsilon,
                    "search": search,
                    "bound": bound,
                    "rows": len(share),
                    "mean_share": float(share.mean()),
                    "median_share": float(np.median(share)),
                    "fewer": float(here["n"].mean() / here["scored"].mean()),
                    "fewer_bytes": 4 * width / read if search == sample.CUT else None,
                    "certified": float(here["certified"].mean()),
                    "violations": int(here["violation"].sum()),
                }


def _looseness(table: str, columns: Columns, by: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Certified over true: median and 99th percentile, over rows with something to certify."""
    columns = dict(columns) | {"n": columns["length"]}
    groups = dict.fromkeys(zip(*(columns[name].tolist() for name in (*by, "bound")), strict=True))
    for group in sorted(groups, key=lambda key: key[0]):
        here = chosen(columns, **dict(zip((*by, "bound"), group, strict=True)))
        some = here["true"] > 0
        ratio = here["certified"][some] / here["true"][some]
        line = {"table": table} | dict(zip((*by, "bound"), group, strict=True))
        line |= {
            "rows": int(some.sum()),
            "median": float(np.median(ratio)),
            "p99": float(np.percentile(ratio, 99)),
            "mean_certified": float(here["certified"][np.isfinite(here["certified"])].mean()),
            "mean_true": float(here["true"].mean()),
            "violations": int(here["violation"].sum()),
        }
        if "wins" in here:
            line["wins"] = float(here["wins"].mean())
        yield line
