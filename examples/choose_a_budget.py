"""Choose a budget by audit: which budget keeps the next token's distribution within a target, on text not seen before?

A small audit (512 tokens, 16 positions) of SmolLM2; a serious one takes the default sizes. Then the advised budget, by
layer and head, decodes under `certify`.

Run: python examples/choose_a_budget.py   (needs what smollm2.py says)
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from smollm2 import load

import tailbound


def main():
    with tempfile.TemporaryDirectory() as folder:
        sizes = ["--context", "512", "--queries", "16", "--target", "next-token-tv=0.02"]
        command = [sys.executable, "-m", "tailbound", "audit", *sizes, "--out", folder, "--json"]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for advice in found["advised"]:
            held = advice["held_out"]
            print(
                f"{advice['kind']:8} keys read {held['figures']['share']:6.1%}   next-token TV on text not seen "
                f"{held['value']:.4f}   target 0.02 {'met' if held['met'] else 'missed'}"
            )
        budget = Path(folder) / "budget.json"
        print(f"\nadvised: {budget.read_text()[:160]} ...\n")

        tokenizer, model = load()
        inputs = tokenizer("It was the best of times, " * 100, return_tensors="pt")
        with tailbound.hf.certify(model, epsilon=budget) as ledger:
            model.generate(**inputs, max_new_tokens=8, do_sample=False)
        ledger.assert_within(budget)
        print(f"{len(ledger):,} certificates, each within the budget of its own head")


if __name__ == "__main__":
    main()
