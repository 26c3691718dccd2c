// Coding one key, in plain loops: each unit compiles them with its own instruction set. No loop reorders an addition, so
// that codes are the same bits at every level and in the specification (bounds/interval.py).
#pragma once

#include "kernels.h"
#include "numbers.h"

namespace tailbound {
namespace {

// The first three levels, in registers.
inline void rotate_eight(double* x) {
  const double a0 = x[0] + x[1], a1 = x[0] - x[1], a2 = x[2] + x[3], a3 = x[2] - x[3];
  const double a4 = x[4] + x[5], a5 = x[4] - x[5], a6 = x[6] + x[7], a7 = x[6] - x[7];
  const double b0 = a0 + a2, b1 = a1 + a3, b2 = a0 - a2, b3 = a1 - a3;
  const double b4 = a4 + a6, b5 = a5 + a7, b6 = a4 - a6, b7 = a5 - a7;
  x[0] = b0 + b4, x[1] = b1 + b5, x[2] = b2 + b6, x[3] = b3 + b7;
  x[4] = b0 - b4, x[5] = b1 - b5, x[6] = b2 - b6, x[7] = b3 - b7;
}

// H x in place: butterflies of distance 1, 2, 4, ..., blocks of falling powers of two, each times 2^-(levels / 2).
inline void rotate(double* x, int64_t width) {
  for (int64_t size = int64_t{1} << 30; size > 0; size >>= 1) {
    if (!(width & size)) continue;
    int levels = 0;
    int64_t distance = 1;
    if (size >= 8) {
      for (int64_t i = 0; i < size; i += 8) rotate_eight(x + i);
      levels = 3;
      distance = 8;
    }
    for (; distance < size; distance *= 2, ++levels)
      for (int64_t i = 0; i < size; i += 2 * distance)
        for (int64_t j = i; j < i + distance; ++j) {
          const double a = x[j], b = x[j + distance];
          x[j] = a + b;
          x[j + distance] = a - b;
        }
    const double factor = 1.0 / static_cast<double>(int64_t{1} << (levels / 2));
    for (int64_t i = 0; i < size; ++i) x[i] *= factor;
    x += size;
  }
}

// Undo the gain of rotating twice: 2 for blocks of 2, 8, 32, ...
inline void undo_gain(double* x, int64_t width) {
  bool odd = false;
  for (int64_t size = int64_t{1} << 30; size > 0; size >>= 1) {
    if (!(width & size)) continue;
    odd = false;
    for (int64_t s = size; s > 1; s >>= 1) odd = !odd;
    if (odd)
      for (int64_t i = 0; i < size; ++i) x[i] *= 0.5;
    x += size;
  }
}

// Eight sums, so that it vectorises.
template <class T>
inline double dot(const T* a, const float* b, int64_t n) {
  double sums[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int j = 0; j < 8; ++j) sums[j] += static_cast<double>(a[i + j]) * static_cast<double>(b[i + j]);
  for (; i < n; ++i) sums[0] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

inline void center_products(const float* center, int64_t width, const double* queries, int rows, double* out) {
  for (int row = 0; row < rows; ++row) out[row] = dot(queries + row * width, center, width);
  out[rows] = dot(center, center, width);
}

inline CodedQuery code_query(const double* query, int64_t width, double* scratch, int8_t* planes, int64_t stride,
                             int32_t* words) {
  double *turned = scratch, *word = scratch + width;
  for (int64_t d = 0; d < width; ++d) turned[d] = query[d];
  rotate(turned, width);
  const double largest = largest_of(turned, width);
  double unit = largest / kWordMax;
  if (!(unit > 0.0)) unit = 1.0;
  for (int64_t d = 0; d < width; ++d) {
    const double w = round_even(turned[d] / unit), most = w > kWordMax ? kWordMax : w;
    word[d] = most < -kWordMax ? -kWordMax : most;
  }
  int sums[2] = {0, 0};
  for (int64_t d = 0; d < width; ++d) {
    const int whole = static_cast<int>(word[d]), coarse = (whole + 32) >> 6;
    int8_t* plane = planes + d / 4 * stride + d % 4;
    plane[0] = static_cast<int8_t>(coarse);
    plane[4] = static_cast<int8_t>(whole - 64 * coarse);
    sums[0] += coarse;
    sums[1] += whole - 64 * coarse;
  }
  words[0] = sums[0];
  words[1] = sums[1];
  for (int64_t d = 0; d < width; ++d) word[d] = turned[d] - unit * word[d];
  const double norm = norm_up(query, width), wide = static_cast<double>(width);
  const double own = up(norm * gamma(wide + 2) * std::sqrt(2.0 * wide) * kMore);
  const double parts = up(norm_up(turned, width) * gamma(4));
  return {norm, unit, up(up(norm_up(word, width) + own) + parts)};
}

inline void code_key(const double* key, const float* center, int64_t width, double* scratch, int8_t* codes, int64_t lane,
                     uint16_t* marks) {
  double* away = scratch;
  double* code = scratch + width;
  double* size = scratch + 2 * width;
  for (int64_t d = 0; d < width; ++d) {
    away[d] = key[d] - static_cast<double>(center[d]);
    code[d] = away[d];
  }
  rotate(code, width);
  undo_gain(code, width);
  const double largest = largest_of(code, width);
  uint16_t step_bits = bfloat16_up(largest / 127.0);
  if (step_bits == 0x7f80) step_bits = 0;  // beyond bfloat16: no code, all in the residual
  const double step = static_cast<double>(bfloat16_float(step_bits));
  if (step > 0.0) {
    for (int64_t d = 0; d < width; ++d) code[d] = round_even(code[d] / step);
  } else {
    for (int64_t d = 0; d < width; ++d) code[d] = 0.0;
  }
  for (int64_t d = 0; d < width; ++d) codes[code_place(width, lane, d)] = static_cast<int8_t>(code[d]);
  const double extent = up(norm_up(code, width) * step);

  rotate(code, width);  // exact, as is the product with the step
  for (int64_t d = 0; d < width; ++d) {
    const double rebuilt = step * code[d];
    size[d] = std::fabs(key[d]) + std::fabs(static_cast<double>(center[d])) + std::fabs(rebuilt);
    away[d] -= rebuilt;
  }
  const double rounded = up(norm_up(size, width) * gamma(4));
  const double residual = up(up(norm_up(away, width) + rounded) + 2.0 * flush_norm(static_cast<double>(width)));
  marks[lane] = step_bits;
  marks[kBlock + lane] = bfloat16_up(residual);
  marks[2 * kBlock + lane] = bfloat16_up(extent);
}

}  // namespace
}  // namespace tailbound
