#include "answer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "numbers.h"

namespace tailbound {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kAboveLost = 0x1p20;
constexpr double kWeightRounding = 1024.0 * kUnit;  // a weight's own, moves between shifts included

double exp_up(double x) { return std::max(up(std::exp(x) * (1.0 + 2.0 * kExpRelative)), kTiny); }
double exp_down(double x) { return std::max(down(std::exp(x) * (1.0 - 2.0 * kExpRelative)), 0.0); }

double unit_roundoff(Dtype dtype) {
  switch (dtype) {
    case Dtype::Float32: return kUnit32;
    case Dtype::BFloat16: return 0x1p-8 * (1.0 + 0x1p-20) + kUnit32;
    default: return 0x1p-11 * (1.0 + 0x1p-20) + kUnit32;
  }
}

double smallest_step(Dtype dtype) { return dtype == Dtype::Float16 ? 0x1p-24 : 0x1p-126; }

// At least part / (part + rest), at most 1.
double share_up(double part_up, double rest_down) {
  if (!(part_up > 0.0)) return 0.0;
  const double ratio = std::min(rest_down / part_up, 0x1p1000);  // an infinite ratio has no float below it
  const double share = up(1.0 / down(down(ratio) + 1.0));
  return share <= 1.0 ? share : 1.0;
}

}  // namespace

Verdict answer(Partial* parts, int count, double sink, bool has_sink, const Accuracy& accuracy, const Store& store,
               int64_t pair, uint8_t* output) {
  const int64_t width = store.value_width;
  double shift = has_sink ? sink : -kInfinity;
  for (int i = 0; i < count; ++i)
    if (parts[i].mass > 0.0 || parts[i].tail > 0.0 || parts[i].kept > 0) shift = std::max(shift, parts[i].shift);
  if (!(shift > -kInfinity)) shift = 0.0;

  double mass = has_sink ? std::exp(sink - shift) : 0.0, tail = 0.0;
  int64_t kept = 0;
  double* sums = parts[0].sums;
  for (int i = 0; i < count; ++i) {
    const Partial& part = parts[i];
    kept += part.kept;
    if (part.tail > 0.0) {
      const double factor = part.shift == shift ? 1.0 : exp_up(up(part.shift - shift));
      tail = up(tail + std::max(up(factor * part.tail), kTiny));
    }
    const double factor = part.shift == shift ? 1.0 : part.mass > 0.0 ? std::exp(part.shift - shift) : 0.0;
    mass += factor * part.mass;
    for (int64_t d = 0; d < width; ++d) sums[d] = (i ? sums[d] : 0.0) + factor * part.sums[d];
  }
  const double relative = accuracy.gamma + gamma(2.0 * count + 8.0);
  const double eta = accuracy.eta + 2.0 * kWeightRounding;

  // The output, as it will lie in memory.
  const double* center = store.value_center + pair * width;
  bool good = finite(mass);
  double size = 0.0, away = 0.0, center_norm = 0.0;
  for (int64_t d = 0; d < width; ++d) {
    const double mean = mass > 0.0 ? sums[d] / mass : 0.0;
    good = good && finite(mean);
    tailbound::store(store.dtype, output, d, mean);
    sums[d] = static_cast<double>(load(store.dtype, output, d));
  }
  if (!good) return {1.0, kInfinity, false};
  size = norm_up(sums, width);
  double* scratch = sums;
  for (int64_t d = 0; d < width; ++d) scratch[d] = sums[d] - center[d];
  away = norm_up(scratch, width);
  center_norm = norm_up(center, width);

  // The same sum as in finish.py.
  const double lowest = up(static_cast<double>(kept) * accuracy.least);  // weights near nothing may be rounded up
  const double sure = std::max(down(down(mass * exp_down(-eta) * (1.0 - 2.0 * gamma(8) - relative)) - lowest), 0.0);
  // Where the weights of all keys may be nothing but what was lost, the row is to be read again.
  const double tv = kept > 0 && !(mass > lowest * kAboveLost) ? 1.0 : share_up(tail, sure);
  const double root = std::sqrt(static_cast<double>(width)) * kMore;
  const double radius = store.bounds[pair * 4], norm = store.bounds[pair * 4 + 1];
  const double head_radius = has_sink ? std::max(radius, center_norm) : radius;
  away = up(up(away * (1.0 + gamma(4))) + 2.0 * root * kInputFlush);
  const double logits = up(std::min(0.5 * eta, 1.0) * 2.0 * head_radius);
  const double rounded = up(3.0 * relative * norm);
  const double cast = up(up(size * (unit_roundoff(store.dtype) + 2.0 * kUnit)) +
                         root * (smallest_step(store.dtype) + 2.0 * kInputFlush));
  double lost = 0.0;
  if (kept > 0) lost = up(up(2.0 * (static_cast<double>(kept) + 256.0) * accuracy.least / sure) * up(norm + root));
  const double e = up(up(logits + rounded) + up(cast + lost));
  const double error = up(up(tv * up(away + radius)) + up(up(1.0 + tv) * e));
  return {tv, std::isnan(error) ? kInfinity : error, true};
}

}  // namespace tailbound
