"""Audits as `audit.json` holds them, small and made up, in every state that one can be in."""

import json
import math

import numpy as np

from tailbound.lab import seals
from tailbound.lab.audit import curves, heads, words
from tailbound.lab.audit.columns import EPSILONS

LAYERS, HEADS = 4, 3


def audit(
    model="a model",
    encoder=False,
    layers_done=LAYERS,
    finished=True,
    target="next-token-tv=0.01",
    seed=0,
    varied=True,
    texts=0,
):
    """One whose figures fall with epsilon, as they must; the rest is chance.

    Args:
        layers_done: fewer than `LAYERS`, or finished False: as Ctrl-C leaves it.
        varied: whether the budget by head is not the same for all.
        texts: of many texts how many are done, of three.
    """
    generator = np.random.default_rng(seed)
    lines = [_head(generator, layer, head) for layer in range(layers_done) for head in range(HEADS)]
    complete = finished and layers_done == LAYERS
    names = curves.ENCODER if encoder else curves.DECODER
    curve = [_run(generator, name, epsilon, encoder) for name in names for epsilon in EPSILONS] if complete else []
    by_head = {"default": 0.02}
    if varied:
        by_head["heads"] = {f"{layer}.{layer % HEADS}": 0.005 for layer in range(LAYERS)}
    budgets = {"by head": by_head, "uniform": {"default": 0.0123}} if complete and target else {}
    return {
        "schema": words.SCHEMA,
        "settings": {
            "schema": words.SCHEMA,
            "model": model,
            "dtype": "float32",
            "context": 512,
            "queries": 8,
            "seed": seed,
            "tokens": "0123456789abcdef",
        }
        | ({"texts": 3} if texts else {}),
        "text": "a text",
        "processor": "a processor",
        "versions": {"python": "3.11", "tailbound": "0.1.0", "torch": "2.13.0"},
        "encoder": encoder,
        "texts": [_text(generator, number, encoder) for number in range(texts)],
        "layers_done": layers_done,
        "layers": LAYERS,
        "heads": lines,
        "model": heads.over_all(lines) if lines else {},
        "curve": curve,
        "target": target,
        "advised": [_advice(generator, kind, budget, encoder) for kind, budget in budgets.items()],
        "why_not": "none was asked for",
        "seconds": 12.5,
        "peak_bytes": 2**30,
        "written": [],
        "complete": complete,
    }


def save(folder, found):
    """The folder of an audit, with its `audit.json`."""
    folder.mkdir(exist_ok=True)
    (folder / "audit.json").write_text(json.dumps(seals.sealed(found)))
    return folder


def _head(generator, layer, head):
    sharp, spread = generator.uniform(0.3, 1.5), generator.uniform(0.8, 4)
    line = {"layer": layer, "head": head, "rows": 8}
    for epsilon in EPSILONS:
        share = math.exp(-sharp * (4 + math.log10(epsilon)))
        line |= {f"k_{epsilon:g}": 500 * share, f"share_{epsilon:g}": share}
        line |= {f"p95_{epsilon:g}": min(1.0, 1.3 * share), f"rule_{epsilon:g}": min(1.0, 1.1 * share)}
    line |= {"sigma": spread, "skewness": 0.1, "kurtosis": float(generator.normal())}
    line |= {"effective_keys": 500 / spread**3, "heaviest": 0.2, "sink_mass": 0.3, "recent_mass": 0.4}
    line |= {"value_distance": 1.5, "gap_pass": 0.0, "share_gap": 0.99, "certified_over_needed": 1.1}
    for name in heads.LOOSE:
        line[name] = None if layer == 1 and name == "looseness_interval" else float(generator.uniform(1, 100))
    return line


def _text(generator, number, encoder):
    run = _run(generator, curves.OURS, 0.01, encoder)
    line = {"text": f"folder/{number} & <more>.txt", "share_0.01": 0.1 * number, "by": f"machine:{number}"}
    line |= {name: run[name] for name in ("share", "bytes_share", "tv_mean", "tv_max", "agreement", "dense_loss")}
    return line | {"seconds": 12.0, "losses": number % 2}


def _run(generator, name, epsilon, encoder):
    share, worse = 0.5 - 0.1 * math.log10(epsilon / 0.001), generator.uniform(1, 3)
    found = {"policy": name, "epsilon": epsilon, "positions": 8, "share": share, "bytes_share": share + 0.2}
    found |= {"tv_mean": epsilon * worse, "tv_standard_error": epsilon / 5, "tv_max": 3 * epsilon * worse}
    of_tokens = {"kl_mean": epsilon**2 * worse, "agreement": 1 - epsilon, "loss": 1.5 + epsilon, "dense_loss": 1.5}
    found |= dict.fromkeys(of_tokens) if encoder else of_tokens
    return found | {"certificate_max": epsilon if name == curves.OURS else None}


def _advice(generator, kind, budget, encoder):
    held = _run(generator, curves.OURS, 0.01, encoder)
    return {
        "kind": kind,
        "budget": budget,
        "predicted_damage": 0.001 if kind == "by head" else None,
        "predicted_attention_speed": 2.0,
        "chosen_on": _run(generator, curves.OURS, 0.01, encoder),
        "held_out": {
            "figures": held,
            "value": held["tv_mean"],
            "met": held["tv_mean"] <= 0.01,
            "over_limit": max(0.0, held["tv_mean"] - 0.01),
            "speed": None if encoder else {"median": 1.2, "low": 1.1, "high": 1.3},
            "fallbacks": None if encoder else 0,
        },
    }
