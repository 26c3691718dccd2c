// Arithmetic with a direction, and the three storage formats. Internal linkage throughout: every unit that includes this
// compiles its own copy with its own instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace tailbound {

enum class Dtype : int { Float32 = 0, BFloat16 = 1, Float16 = 2 };

namespace {

constexpr double kUnit = 0x1p-53;
constexpr double kUnit32 = 0x1p-24;
constexpr double kTiny = 0x1p-1022;
constexpr double kInputFlush = 0x1p-126;  // denormal inputs may be read as zero
constexpr double kFloor = 0x1p-900;       // underflow in float64 between a key and a logit
constexpr double kExpRelative = 0x1p-50;  // granted to exp in float64

inline double gamma(double n) { return n * kUnit / (1.0 - n * kUnit) * (1.0 + 8.0 * kUnit); }
inline double gamma32(double n) { return n * kUnit32 / (1.0 - n * kUnit32) * (1.0 + 8.0 * kUnit); }

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// At least, at most: one result of round-to-nearest is off by less than 2^-52 of itself, or by a subnormal.
inline double up(double x) { return x + std::fabs(x) * 0x1p-52 + kTiny; }
inline double down(double x) { return x - std::fabs(x) * 0x1p-52 - kTiny; }

// A factor that makes up for a few roundings.
constexpr double kMore = 1.0 + 0x1p-50;

inline double flush_norm(double width) { return std::sqrt(width) * kInputFlush * kMore; }

// The smallest float at or above x. Infinite beyond float's range.
inline float float_up(double x) {
  const float near = static_cast<float>(x);
  if (static_cast<double>(near) >= x || std::isnan(near)) return near;
  // Next float above, by its bits: near is below x, so it is not +inf.
  const int32_t bits = bit_cast<int32_t>(near);
  if (near > 0.0f) return bit_cast<float>(bits + 1);
  if (near < 0.0f) return bit_cast<float>(bits - 1);
  return 0x1p-126f;
}

inline float bfloat16_float(uint16_t bits) { return bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// The smallest bfloat16 at or above a non-negative x: at least the smallest normal unless x is 0, +inf for NaN.
inline uint16_t bfloat16_up(double x) {
  if (x == 0.0) return 0;
  if (!(x < 0x1.fep127)) return x <= 0x1.fep127 ? 0x7f7f : 0x7f80;
  if (x <= 0x1p-126) return 0x0080;
  const uint32_t bits = bit_cast<uint32_t>(float_up(x));
  return static_cast<uint16_t>((bits + 0xffffu) >> 16);
}

inline float float16_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 31u, mantissa = bits & 1023u;
  if (exponent == 0) {
    const float size = static_cast<float>(static_cast<int32_t>(mantissa)) * 0x1p-24f;
    return bit_cast<float>(bit_cast<uint32_t>(size) | sign);
  }
  const uint32_t wide = exponent == 31u ? 255u : exponent + 112u;
  return bit_cast<float>(sign | wide << 23 | mantissa << 13);
}

inline float load(Dtype dtype, const void* from, int64_t i) {
  switch (dtype) {
    case Dtype::Float32: return static_cast<const float*>(from)[i];
    case Dtype::BFloat16: return bfloat16_float(static_cast<const uint16_t*>(from)[i]);
    default: return float16_float(static_cast<const uint16_t*>(from)[i]);
  }
}

inline int64_t size_of(Dtype dtype) { return dtype == Dtype::Float32 ? 4 : 2; }

inline bool finite(float x) { return (bit_cast<uint32_t>(x) & 0x7f800000u) != 0x7f800000u; }
inline bool finite(double x) { return (bit_cast<uint64_t>(x) & 0x7ff0000000000000u) != 0x7ff0000000000000u; }

// n numbers of a tensor, exactly; returns whether all are finite. One loop a dtype, so that it vectorises.
inline bool widen(Dtype dtype, const void* from, int64_t n, double* to) {
  switch (dtype) {
    case Dtype::Float32:
      for (int64_t i = 0; i < n; ++i) to[i] = static_cast<double>(static_cast<const float*>(from)[i]);
      break;
    case Dtype::BFloat16:
      for (int64_t i = 0; i < n; ++i) to[i] = static_cast<double>(bfloat16_float(static_cast<const uint16_t*>(from)[i]));
      break;
    default:
      for (int64_t i = 0; i < n; ++i) to[i] = static_cast<double>(float16_float(static_cast<const uint16_t*>(from)[i]));
  }
  uint64_t bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= static_cast<uint64_t>(!finite(to[i]));
  return bad == 0;
}

// To nearest, ties to even.
inline uint16_t to_bfloat16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 64u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline uint16_t to_float16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (size >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (size < 0x38800000u) {  // below the normal range: count steps of 2^-24
    const float steps = bit_cast<float>(size) * 0x1p24f;
    const float whole = (steps + 0x1.8p23f) - 0x1.8p23f;
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(whole));
  }
  return static_cast<uint16_t>(sign | ((size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13));
}

inline void store(Dtype dtype, void* to, int64_t i, double x) {
  const float narrow = static_cast<float>(x);
  switch (dtype) {
    case Dtype::Float32: static_cast<float*>(to)[i] = narrow; break;
    case Dtype::BFloat16: static_cast<uint16_t*>(to)[i] = to_bfloat16(narrow); break;
    default: static_cast<uint16_t*>(to)[i] = to_float16(narrow); break;
  }
}

// Round to an integer, ties to even, for |x| < 2^51: the classic addition, which vectorises.
inline double round_even(double x) { return (x + 0x1.8p52) - 0x1.8p52; }

// The largest size; eight at a time, so that it vectorises. NaN may be passed over.
inline double largest_of(const double* x, int64_t n) {
  double most[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int j = 0; j < 8; ++j) most[j] = std::fabs(x[i + j]) > most[j] ? std::fabs(x[i + j]) : most[j];
  for (; i < n; ++i) most[0] = std::fabs(x[i]) > most[0] ? std::fabs(x[i]) : most[0];
  for (int j = 1; j < 8; ++j) most[0] = most[j] > most[0] ? most[j] : most[0];
  return most[0];
}

// In eight sums, so that it vectorises.
inline double sum_of_squares(const double* x, int64_t n, double unit) {
  double sums[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int j = 0; j < 8; ++j) sums[j] += (x[i + j] * unit) * (x[i + j] * unit);
  for (; i < n; ++i) sums[0] += (x[i] * unit) * (x[i] * unit);
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

// At least the Euclidean norm; scaled by a power of two where squares could leave the range.
inline double norm_up(const double* x, int64_t n) {
  const double more = 1.0 + gamma(2.0 * static_cast<double>(n) + 16.0);
  const double sum = sum_of_squares(x, n, 1.0);
  if (sum > 0x1p-800 && sum < 0x1p800) return up(std::sqrt(sum) * more);
  for (int64_t i = 0; i < n; ++i)
    if (std::isnan(x[i])) return x[i];
  const double largest = largest_of(x, n);
  if (largest == 0.0 || std::isinf(largest)) return largest;
  int exponent = 0;
  std::frexp(largest, &exponent);
  exponent = exponent < -1000 ? -1000 : exponent > 1000 ? 1000 : exponent;
  const double scaled = std::sqrt(sum_of_squares(x, n, std::ldexp(1.0, -exponent)));
  return up(std::ldexp(scaled * more, exponent));
}

}  // namespace
}  // namespace tailbound
