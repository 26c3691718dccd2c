"""The best that the diameter bound can do over all heads. Tzachristas et al. 2025, Lemma 5.7 and Thm 5.8."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Split(NamedTuple):
    """A division of the values in two parts.

    Attributes:
        diameter: the largest distance between a value of one part and a value of the other, the unit of the values.
        head: bool (n,), the part that holds value 0.
        edge: the pair of values (one in each part) at that distance.
    """

    diameter: Tensor
    head: Bool[Tensor, " n"]
    edge: tuple[int, int]


def smallest_cross_diameter(values: Float[Tensor, "n d"]) -> Split:
    """The non-trivial split whose cross diameter is smallest over all `2^(n-1) - 1` of them.

    That diameter is the weight of the lightest edge of a maximum spanning tree of the values under Euclidean distance,
    and cutting this edge gives the split (Thm 5.8): any split is crossed by some edge of the tree, which is at least
    the lightest, and the cut of the lightest edge is crossed by nothing heavier, or the tree could be improved.

    Raises:
        ValueError: fewer than two values (one value has no split), NaN or infinity.

    >>> smallest_cross_diameter(torch.tensor([[0.0], [1.0], [10.0]])).diameter.item()
    9.0
    """
    if values.ndim != 2 or values.shape[0] < 2:
        raise ValueError(f"values has shape {tuple(values.shape)}; a split needs (n, d) with n at least 2")
    if not bool(values.isfinite().all()):
        raise ValueError("values holds NaN or infinity")
    from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

    apart = torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist").cpu().numpy()
    # scipy looks for a minimum and takes 0 for a missing edge: weigh edges by rank, heaviest first, counted from 1.
    distances, rank = np.unique(apart, return_inverse=True)
    tree = minimum_spanning_tree((len(distances) - rank).reshape(apart.shape)).tocoo()
    lightest = int(tree.data.argmax())
    edge = int(tree.row[lightest]), int(tree.col[lightest])
    tree.data[lightest] = 0
    tree.eliminate_zeros()
    _, part = connected_components(tree, directed=False)
    return Split(values.new_tensor(apart[edge]), torch.from_numpy(part == part[0]).to(values.device), edge)
