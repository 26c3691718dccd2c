// What the kernels of every level leave to code that runs on every machine.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace tailbound {

// The end of a cut: `middle` holds all weights that may be on either side, everything smaller adds up to `below`, and is
// left out; everything larger stays. Sorts `middle`.
Threshold settle(const float* weights, int64_t n, float* middle, int64_t count, double below, double budget, double* rest);

double exp_double(double x);

}  // namespace tailbound
