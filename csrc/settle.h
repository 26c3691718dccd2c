// What the kernels of every level leave to code that runs on every machine.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace tailbound {

// The end of a cut: `middle` holds all weights that may be on either side, everything smaller adds up to `below`, and is
// left out; everything larger stays. Sorts `middle`.
Threshold settle(const float* weights, int64_t n, float* middle, int64_t count, double below, double budget, double* rest);

// At most the sum of weight * exp(-2 bracket) over some keys, from the sums, in float32, of their weights and of weights
// times brackets. All weights are at most 1 + 2^-14 times too large.
double sure_mass(double weights, double brackets);

double exp_double(double x);

}  // namespace tailbound
