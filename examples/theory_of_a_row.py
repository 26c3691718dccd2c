"""Research use of `theory`: what each bound of the paper says of one row, beside the truth.

10,000 Gaussian logits of standard deviation 2, values in 16 dimensions: how many keys a budget needs, what the Gaussian
rule predicts, what a gap and block masses certify for them, and three bounds on the output.

Run: python examples/theory_of_a_row.py
"""

import torch

from tailbound import theory


def main():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(10_000, generator=generator, dtype=torch.float64)
    values = torch.randn(10_000, 16, generator=generator, dtype=torch.float64)

    print("epsilon    keys needed   rule (6.4)   gap bound for them (Thm 4.5)")
    for epsilon in (0.001, 0.01, 0.05, 0.1):
        k = int(theory.smallest_k(logits, epsilon))
        rule = float(theory.gaussian_k(len(logits), epsilon, 2.0))
        print(f"{epsilon:7g}{k:15,}{rule:13,.0f}{float(theory.gap_bound(logits, k)):15.4f}")

    head = theory.top_k(logits, int(theory.smallest_k(logits, 0.05)))
    truth = float(theory.output_difference(logits, values, head).norm())
    print(f"\noutput error of the 0.05 head: {truth:.4f}")
    for name, bound in (
        ("norm, Prop 5.1", theory.norm_bound),
        ("diameter, Prop 5.3", theory.diameter_bound),
        ("variance, Cor 5.5", theory.variance_bound),
    ):
        found = float(bound(logits, values, head))
        print(f"  {name:20}{found:8.4f}   {found / truth:6.1f} times the truth")
    best = theory.best_bound(logits, values, head)
    print(f"  the smallest (Thm 5.6) is the {theory.BOUNDS[int(best.winner)]} bound")


if __name__ == "__main__":
    main()
