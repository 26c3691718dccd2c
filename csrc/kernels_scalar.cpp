// The oracle that every faster level is held to. Unvectorised on purpose; logits in float64.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "coding.h"
#include "kernels.h"
#include "numbers.h"
#include "settle.h"

namespace tailbound {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void scan(const int8_t* codes, const uint16_t* marks, int64_t blocks, int64_t width, const int8_t* planes, const int32_t*,
          int rows, const Terms* terms, float* upper, int64_t stride) {
  for (int64_t block = 0; block < blocks; ++block, codes += kBlock * width, marks += 3 * kBlock)
    for (int row = 0; row < rows; ++row)
      for (int64_t lane = 0; lane < kBlock; ++lane) {
        int32_t coarse = 0, fine = 0;
        for (int64_t d = 0; d < width; ++d) {
          const int32_t code = codes[code_place(width, lane, d)];
          const int8_t* plane = planes + ((d / 4 * rows + row) * 2) * 4 + d % 4;
          coarse += code * plane[0];
          fine += code * plane[4];
        }
        const Terms& t = terms[row];
        const float product = static_cast<float>(64 * coarse + fine);
        const float middle = t.base + t.unit * product * bfloat16_float(marks[lane]);
        const float bracket = t.residual * bfloat16_float(marks[kBlock + lane]) +
                              t.extent * bfloat16_float(marks[2 * kBlock + lane]) + t.error;
        upper[row * stride + block * kBlock + lane] = middle + bracket;
      }
}

float top(const float* upper, int64_t n) {
  float largest = -kInfinity;
  for (int64_t i = 0; i < n; ++i) largest = upper[i] > largest ? upper[i] : largest;
  return largest;
}

bool weigh(float* upper, int64_t stride, const uint16_t* marks, int64_t blocks, int rows, const Terms* terms,
           const float* level, double* sure) {
  bool infinite = false;
  for (int row = 0; row < rows; ++row) {
    const Terms& t = terms[row];
    double sum = 0.0;
    for (int64_t i = 0; i < blocks * kBlock; ++i) {
      const uint16_t* m = marks + i / kBlock * 3 * kBlock + i % kBlock;
      float& end = upper[row * stride + i];
      if (end == -kInfinity) {
        end = 0.0f;
      } else if (!(end < kInfinity)) {
        end = kInfinity;
        infinite = true;
      } else {
        const float bracket = t.residual * bfloat16_float(m[kBlock]) + t.extent * bfloat16_float(m[2 * kBlock]) + t.error;
        const double from = static_cast<double>(end) - static_cast<double>(level[row]);
        end = float_up(std::max(std::exp(from) * (1.0 + 2.0 * kExpRelative), 0x1p-126));
        sum += std::exp(from - 2.0 * static_cast<double>(bracket)) * (1.0 - 2.0 * kExpRelative);
      }
    }
    sure[row] += sum * (1.0 - 0x1p-40);
  }
  return infinite;
}

bool scan_weights(const int8_t* codes, const uint16_t* marks, int64_t blocks, int64_t width, const int8_t* planes,
                  const int32_t* words, int rows, const Terms* terms, const float* level, float* weights, int64_t stride,
                  float* largest, double* sure) {
  scan(codes, marks, blocks, width, planes, words, rows, terms, weights, stride);
  for (int row = 0; row < rows; ++row) largest[row] = top(weights + row * stride, blocks * kBlock);
  return !weigh(weights, stride, marks, blocks, rows, terms, level, sure);
}

void shrink(float* weights, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i)
    if (weights[i] > 0.0f)
      weights[i] = std::max(float_up(static_cast<double>(weights[i]) * static_cast<double>(factor)), 0x1p-126f);
}

Threshold cut(const float* weights, int64_t n, double budget, float* scratch, double* rest) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i)
    if (weights[i] > 0.0f) scratch[count++] = weights[i];
  return settle(weights, n, scratch, count, 0.0, budget, rest);
}

int64_t pick(const float* weights, int64_t stride, int64_t first, int64_t n, int rows, const Threshold* threshold,
             int32_t* index, uint16_t* members) {
  int64_t count = 0;
  for (int64_t i = first; i < first + n; ++i) {
    int of = 0;
    for (int row = 0; row < rows; ++row) of |= has_weight(weights[row * stride + i], i, threshold[row]) << row;
    if (!of) continue;
    index[count] = static_cast<int32_t>(i);
    members[count++] = static_cast<uint16_t>(of);
  }
  return count;
}

// One key at a time, in float64.
void gather(const Gather& g) {
  const Store& s = *g.store;
  for (int64_t k = 0; k < g.count; ++k) {
    const int64_t at = g.index ? g.index[k] + g.origin : g.first + k;
    const uint8_t* key = s.key_row(g.pair, at);
    const uint8_t* value = s.value_row(g.pair, at);
    for (int row = 0; row < g.rows; ++row) {
      if (g.index ? !(g.members[k] >> row & 1) : at >= g.limit[row]) continue;
      double logit = 0.0;
      for (int64_t d = 0; d < s.width; ++d)
        logit += static_cast<double>(g.query[row * g.query_stride + d]) * static_cast<double>(load(s.dtype, key, d));
      double* sums = g.sums + row * s.value_width;
      if (logit > static_cast<double>(g.shift[row])) {
        const float shift = float_up(logit);
        const double factor = std::exp(static_cast<double>(g.shift[row]) - static_cast<double>(shift));
        g.shift[row] = shift;
        g.mass[row] *= factor;
        for (int64_t d = 0; d < s.value_width; ++d) sums[d] *= factor;
      }
      const double weight = std::exp(logit - static_cast<double>(g.shift[row]));
      g.mass[row] += weight;
      g.kept[row] += 1;
      for (int64_t d = 0; d < s.value_width; ++d) sums[d] += weight * static_cast<double>(load(s.dtype, value, d));
    }
  }
}

double logit_roundings(int64_t) { return 2.0; }  // the query's own; the rest is in float64 and far below one

}  // namespace

const Kernels kScalarKernels{code_key, code_query, center_products, scan, top, weigh, scan_weights, shrink, cut, pick, gather,
                             logit_roundings};

const Kernels& kernels(Level level) {
  switch (level) {
    case Level::Scalar: return kScalarKernels;
#ifdef TAILBOUND_HAS_AVX2
    case Level::Avx2: return kAvx2Kernels;
#endif
#ifdef TAILBOUND_HAS_AVX512VNNI
    case Level::Avx512Vnni: return kAvx512VnniKernels;
#endif
#ifdef TAILBOUND_HAS_AVX512BF16
    case Level::Avx512Bf16: return kAvx512Bf16Kernels;
#endif
#ifdef TAILBOUND_HAS_NEONDOT
    case Level::NeonDot: return kNeonDotKernels;
#endif
    default: throw std::logic_error(std::string("no kernels were built for ") + name(level));
  }
}

}  // namespace tailbound
