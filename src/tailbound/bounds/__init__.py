"""From keys to sound statements about logits. Every rounding on this floor goes outward and its name says so."""

from tailbound.bounds.base import CellBound, Interval
from tailbound.bounds.cells import Ball, Box, kmeans_cells, run_cells
from tailbound.bounds.interval import Sketch

__all__ = ["Ball", "Box", "CellBound", "Interval", "Sketch", "kmeans_cells", "run_cells"]
