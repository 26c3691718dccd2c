"""Choose a budget by audit: which budget keeps the next token's distribution within a target, on text not seen before?

Reads an `audit.json`: of the folder that is named, or the committed one of SmolLM2 at 8,192 tokens. To make one, some
minutes: tailbound audit --model smollm2 --context 2048 --out audit

Prints what each budget did on text that it was not chosen on, takes the cheapest that met the target, and decodes
under it.

Run: python examples/choose_a_budget.py [FOLDER]   (needs what smollm2.py says)
"""

import json
import sys
from pathlib import Path

from smollm2 import load

import tailbound

COMMITTED = Path(__file__).resolve().parent.parent / "docs" / "results" / "audit-smollm2-8192.json"


def choose(audit):
    """The cheapest advised budget that met the target on text not seen; the one that missed it least if none did."""
    advised = audit["advised"]
    met = [advice for advice in advised if advice["held_out"]["met"]]
    if met:
        return min(met, key=lambda advice: advice["held_out"]["figures"]["bytes_share"])
    return min(advised, key=lambda advice: advice["held_out"]["over_limit"])


def main():
    audit = json.loads((Path(sys.argv[1]) / "audit.json" if len(sys.argv) > 1 else COMMITTED).read_text())
    print(f"{audit['settings']['model']} on {audit['text']}, {audit['settings']['context']:,} tokens\n")
    print("epsilon   keys read   next-token TV, mean")
    for run in audit["curve"]:
        if run["policy"] == "tailbound":
            print(f"{run['epsilon']:7g}{run['share']:12.1%}{run['tv_mean']:15.4f}")
    print(f"\ntarget {audit['target']}, on text not seen:")
    for advice in audit["advised"]:
        held = advice["held_out"]
        verdict = "met" if held["met"] else f"missed by {held['over_limit']:.4f}"
        print(f"  {advice['kind']:8} {held['value']:.4f}, {verdict}; keys read {held['figures']['share']:.1%}")
    budget = choose(audit)
    print(f"chosen: {budget['kind']}, {json.dumps(budget['budget'])[:60]}\n")

    tokenizer, model = load()
    inputs = tokenizer("It was the best of times, it was the worst of times. " * 40, return_tensors="pt")
    with tailbound.hf.certify(model, epsilon=budget["budget"]) as ledger:
        model.generate(**inputs, max_new_tokens=8, do_sample=False)
    ledger.assert_within(budget["budget"])
    print(f"{len(ledger):,} certificates, each within the budget of its own head")


if __name__ == "__main__":
    main()
