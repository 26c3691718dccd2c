#include "settle.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tailbound {
namespace {

// A number (above 0) and all above it, without ties: these cost a comparison more a key.
Threshold just_below(float number) { return {bit_cast<float>(bit_cast<int32_t>(number) - 1), 0}; }

}  // namespace

Threshold settle(const float* weights, int64_t n, float* middle, int64_t count, double below, double budget, double* rest) {
  std::sort(middle, middle + count);
  // `below` is a sum of sums of few terms in float32, the rest is in float64.
  const double rounding = kSumRoundings * 0x1p-24 + static_cast<double>(n + 1) * 0x1p-52;
  const double most = budget * (1.0 - rounding);
  double sum = below;
  int64_t out = 0;
  while (out < count && sum + static_cast<double>(middle[out]) <= most) sum += static_cast<double>(middle[out++]);
  *rest = sum * (1.0 + rounding);
  if (out == count) return just_below(std::numeric_limits<float>::infinity());
  if (out == 0 || middle[out - 1] < middle[out]) return just_below(middle[out]);
  // Some keys equal to theta are left out: the first ones stay.
  const float theta = middle[out];
  const int64_t stay = std::upper_bound(middle, middle + count, theta) - (middle + out);
  int64_t kept = 0, i = 0;
  for (; i < n && kept < stay; ++i) kept += weights[i] == theta;
  return {theta, i};
}

// exp is convex: the mean of exp(-2 bracket), each counted by its weight, is at least exp of minus twice the mean bracket.
double sure_mass(double weights, double brackets) {
  if (!(weights > 0x1p-90 && weights < 0x1p120)) return 0.0;
  // Each a sum of at most 2^10 terms a lane (a page has at most 8192 keys, a vector at least 8 lanes) and 4 levels of a tree:
  // off by less than 2^-13. Products that underflow lose less than 2^-112 in all.
  const double twice = 2.0 * brackets / weights * (1.0 + 0x1p-11) + 0x1p-20;
  return weights * std::exp(-twice) * (1.0 - 0x1p-13);
}

double exp_double(double x) { return std::exp(x); }

}  // namespace tailbound
