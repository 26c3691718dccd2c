// AArch64 with the dot product extension (ARMv8.2, `sdot`). Eight lanes as two registers of four, so that every sum has as
// many terms and as deep a tree as at the AVX2 level, and its error bounds hold here word for word: fused multiply-adds in
// the same places, one rounding each; multiplications and additions that are apart there are apart here.
// `sdot` multiplies signed bytes by signed bytes and adds four products to an int32 without saturating: codes are read as
// they are, without the 128 that the unsigned products of x86 need. Instructions stand above each kernel.
// No std:: templates here: their instantiations would be shared with units that every machine runs.
#include <arm_neon.h>

#include "coding.h"
#include "kernels.h"
#include "numbers.h"
#include "prefetch.h"
#include "settle.h"

namespace tailbound {
namespace {

constexpr int64_t kChunk = 16;   // components expanded at once
constexpr int64_t kBatch = 8;    // keys gathered at once
constexpr int64_t kAhead = 4096; // bytes of codes that are asked for early
constexpr int64_t kKeysAhead = 32;  // keys that are asked for early
constexpr int64_t kFlush = 256;  // keys whose sums stay in float32
constexpr int64_t kMaxChunks = 256;
constexpr float kInfinity = INFINITY;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

struct Vector {
  float32x4_t low, high;
};

struct Mask {
  uint32x4_t low, high;
};

inline Vector broadcast(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline Vector zero() { return broadcast(0.0f); }
inline Vector read(const float* from) { return {vld1q_f32(from), vld1q_f32(from + 4)}; }
inline void write(float* to, Vector x) {
  vst1q_f32(to, x.low);
  vst1q_f32(to + 4, x.high);
}
inline Vector add(Vector a, Vector b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
inline Vector subtract(Vector a, Vector b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
inline Vector multiply(Vector a, Vector b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)}; }

// Comparisons are false where one side is NaN.
inline Mask below(Vector a, Vector b) { return {vcltq_f32(a.low, b.low), vcltq_f32(a.high, b.high)}; }
inline Mask equal(Vector a, Vector b) { return {vceqq_f32(a.low, b.low), vceqq_f32(a.high, b.high)}; }
inline Mask both(Mask a, Mask b) { return {vandq_u32(a.low, b.low), vandq_u32(a.high, b.high)}; }
inline Mask either(Mask a, Mask b) { return {vorrq_u32(a.low, b.low), vorrq_u32(a.high, b.high)}; }
inline Mask but_not(Mask a, Mask b) { return {vbicq_u32(a.low, b.low), vbicq_u32(a.high, b.high)}; }
inline Mask opposite(Mask a) { return {vmvnq_u32(a.low), vmvnq_u32(a.high)}; }

inline float32x4_t keep4(uint32x4_t on, float32x4_t x) { return vreinterpretq_f32_u32(vandq_u32(on, vreinterpretq_u32_f32(x))); }
inline Vector keep(Mask on, Vector x) { return {keep4(on.low, x.low), keep4(on.high, x.high)}; }
inline Vector choose(Mask on, Vector a, Vector b) { return {vbslq_f32(on.low, a.low, b.low), vbslq_f32(on.high, a.high, b.high)}; }
inline Vector larger(Vector x, Vector than) { return choose(below(than, x), x, than); }  // `than` where x is NaN

// Lane i as bit i.
inline Mask bit_of_lane() {
  const uint32_t bits[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  return {vld1q_u32(bits), vld1q_u32(bits + 4)};
}
inline uint32_t lanes(Mask mask) {
  const Mask bits = both(mask, bit_of_lane());
  return vaddvq_u32(vorrq_u32(bits.low, bits.high));
}
inline Mask from_lanes(uint32_t bits) {
  const Mask lane = bit_of_lane();
  const uint32x4_t all = vdupq_n_u32(bits);
  return {vtstq_u32(all, lane.low), vtstq_u32(all, lane.high)};
}

// One addition and two levels of a tree.
inline float sum_of(Vector x) { return vaddvq_f32(vaddq_f32(x.low, x.high)); }
inline float max_of(Vector x) { return vmaxvq_f32(vmaxq_f32(x.low, x.high)); }

inline Vector marks8(const uint16_t* marks) {
  const uint16x8_t bits = vld1q_u16(marks);
  return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16)), vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(bits), 16))};
}

// exp(x) for x <= 16: relative error below 2^-19 for -87 <= x, argument reduction included; 0 for less and for NaN.
// Up: 1 to 1 + 2^-15 times exp(x), or 0.
template <bool Up>
inline float32x4_t exp4(float32x4_t x) {
  constexpr float more = Up ? 1.0f + 0x1p-16f : 1.0f;
  const float32x4_t log2e = vdupq_n_f32(1.44269504088896341f);
  const uint32x4_t in = vcgeq_f32(x, vdupq_n_f32(-87.0f));
  const float32x4_t whole = vrndnq_f32(vmulq_f32(x, log2e));
  const float32x4_t part = vfmaq_f32(vnegq_f32(whole), x, log2e);
  float32x4_t p = vdupq_n_f32(more * 1.33954956e-3f);
  p = vfmaq_f32(vdupq_n_f32(more * 9.67028748e-3f), p, part);
  p = vfmaq_f32(vdupq_n_f32(more * 5.55036584e-2f), p, part);
  p = vfmaq_f32(vdupq_n_f32(more * 2.40222312e-1f), p, part);
  p = vfmaq_f32(vdupq_n_f32(more * 6.93147203e-1f), p, part);
  p = vfmaq_f32(vdupq_n_f32(more * 1.00000001f), p, part);
  const int32x4_t power = vshlq_n_s32(vcvtnq_s32_f32(whole), 23);
  return keep4(in, vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), power)));
}

template <bool Up = false>
inline Vector exp8(Vector x) {
  return {exp4<Up>(x.low), exp4<Up>(x.high)};
}

inline Vector bracket8(const Terms& t, const uint16_t* marks) {
  return multiply_add(broadcast(t.residual), marks8(marks + kBlock),
                      multiply_add(broadcast(t.extent), marks8(marks + 2 * kBlock), broadcast(t.error)));
}

struct Codes {
  int8x16_t low, high;  // four components of keys 0 to 3, and of 4 to 7
};

struct Sums {
  int32x4_t low, high;
};

// Upper ends and brackets of 8 keys (half a block), D components: D / 4 times 2 loads, and for each row a load and 4 `sdot`.
template <int R>
inline void half_ends(const int8_t* codes, int half, const uint16_t* marks, int64_t width, const int8_t* planes, int rows,
                      const Terms* terms, Vector* end, Vector* bracket) {
  Sums coarse[R], fine[R];
  for (int r = 0; r < R; ++r) coarse[r] = fine[r] = {vdupq_n_s32(0), vdupq_n_s32(0)};
  const auto add_products = [&](const Codes& code) {
    for (int r = 0; r < R; ++r) {
      const int8x8_t words = vld1_s8(planes + 8 * r);
      coarse[r] = {vdotq_lane_s32(coarse[r].low, code.low, words, 0), vdotq_lane_s32(coarse[r].high, code.high, words, 0)};
      fine[r] = {vdotq_lane_s32(fine[r].low, code.low, words, 1), vdotq_lane_s32(fine[r].high, code.high, words, 1)};
    }
  };
  const int64_t groups = width / 4, tail = width % 4;
  for (int64_t g = 0; g < groups; ++g, planes += 8 * rows) {
    const int8_t* from = codes + g * 64 + half * 32;
    if (half == 0) fetch_line(from + kAhead);
    add_products({vld1q_s8(from), vld1q_s8(from + 16)});
  }
  if (tail) {
    alignas(32) int8_t last[32] = {};
    const int8_t* from = codes + groups * 64 + half * 8 * tail;
    for (int lane = 0; lane < 8; ++lane)
      for (int64_t d = 0; d < tail; ++d) last[4 * lane + d] = from[lane * tail + d];
    add_products({vld1q_s8(last), vld1q_s8(last + 16)});
  }
  for (int r = 0; r < R; ++r) {
    const Terms& t = terms[r];
    const Vector product = {vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(coarse[r].low, 6), fine[r].low)),
                            vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(coarse[r].high, 6), fine[r].high))};
    const Vector middle = add(broadcast(t.base), multiply(multiply(broadcast(t.unit), product), marks8(marks)));
    bracket[r] = bracket8(t, marks);
    end[r] = add(middle, bracket[r]);
  }
}

// f(first key, row, upper ends, brackets) of all half blocks and rows.
template <int R, class F>
inline void each_end(const int8_t* codes, const uint16_t* marks, int64_t blocks, int64_t width, const int8_t* planes, int rows,
                     const Terms* terms, F f) {
  for (int64_t i = 0; i < 2 * blocks; ++i) {
    const int half = static_cast<int>(i % 2);
    Vector end[R], bracket[R];
    half_ends<R>(codes + i / 2 * kBlock * width, half, marks + i / 2 * 3 * kBlock + half * 8, width, planes, rows, terms, end,
                 bracket);
    for (int r = 0; r < R; ++r) f(8 * i, r, end[r], bracket[r]);
  }
}

// What scan.inc takes off for codes read as z + 128 is not used.
template <int R>
void scan_rows(const int8_t* codes, const uint16_t* marks, int64_t blocks, int64_t width, const int8_t* planes, int rows,
               const Terms* terms, const int32_t*, float* upper, int64_t stride) {
  each_end<R>(codes, marks, blocks, width, planes, rows, terms,
              [&](int64_t i, int r, Vector end, Vector) { write(upper + r * stride + i, end); });
}

float top(const float* upper, int64_t n) {
  Vector a = broadcast(-kInfinity), b = a;
  for (int64_t i = 0; i < n; i += 16) {
    a = larger(read(upper + i), a);
    b = larger(read(upper + i + 8), b);
  }
  return max_of(larger(a, b));
}

// Weights of R rows and what they add up to.
template <int R>
struct Weighing {
  Vector sums[R], brackets[R];  // of weights, and of weights times brackets

  Weighing() {
    for (int r = 0; r < R; ++r) sums[r] = brackets[r] = zero();
  }

  // `good` is all ones where an end counts.
  Vector add(int r, Mask good, Vector end, Vector bracket, float level) {
    const Vector weight = keep(good, exp8<true>(subtract(end, broadcast(level))));
    sums[r] = tailbound::add(sums[r], weight);
    brackets[r] = multiply_add(weight, keep(good, bracket), brackets[r]);
    return larger(weight, broadcast(kLeastWeight));
  }

  void end(double* sure) const {
    for (int r = 0; r < R; ++r)
      sure[r] += sure_mass(static_cast<double>(sum_of(sums[r])), static_cast<double>(sum_of(brackets[r])));
  }
};

template <int R>
bool weigh_rows(float* upper, int64_t stride, const uint16_t* marks, int64_t blocks, const Terms* terms, const float* level,
                double* sure) {
  const Vector infinity = broadcast(kInfinity);
  Mask unbounded = from_lanes(0);
  Weighing<R> w;
  for (int64_t i = 0; i < blocks * kBlock; i += 8) {
    const uint16_t* m = marks + i / kBlock * 3 * kBlock + i % kBlock;
    for (int r = 0; r < R; ++r) {
      float* to = upper + r * stride + i;
      const Vector end = read(to);
      const Mask bounded = below(end, infinity), hidden = equal(end, broadcast(-kInfinity));
      unbounded = either(unbounded, opposite(bounded));
      const Vector weight = w.add(r, but_not(bounded, hidden), end, bracket8(terms[r], m), level[r]);
      write(to, keep(opposite(hidden), choose(bounded, weight, infinity)));
    }
  }
  w.end(sure);
  return lanes(unbounded) != 0;
}

// The scan and its weights in one pass: while these are worked out, the next codes come in.
template <int R>
bool scan_weights_rows(const int8_t* codes, const uint16_t* marks, int64_t blocks, int64_t width, const int8_t* planes,
                       int rows, const Terms* terms, const int32_t*, const float* level, float* weights, int64_t stride,
                       float* top, double* sure) {
  const Vector infinity = broadcast(kInfinity);
  const Mask every = from_lanes(255);
  Mask unbounded = from_lanes(0);
  Vector most[R];
  for (int r = 0; r < R; ++r) most[r] = broadcast(-kInfinity);
  Weighing<R> w;
  each_end<R>(codes, marks, blocks, width, planes, rows, terms, [&](int64_t i, int r, Vector end, Vector bracket) {
    most[r] = larger(end, most[r]);
    unbounded = either(unbounded, opposite(below(end, infinity)));
    write(weights + r * stride + i, w.add(r, every, end, bracket, level[r]));
  });
  for (int r = 0; r < R; ++r) top[r] = max_of(most[r]);
  w.end(sure);
  return lanes(unbounded) == 0;
}

#include "scan.inc"

// Sums of the weights below four thresholds.
inline void sums_below(const float* weights, int64_t n, const float* theta, double* sums) {
  Vector s[4];
  for (int j = 0; j < 4; ++j) s[j] = zero(), sums[j] = 0.0;
  for (int64_t i = 0; i < n;) {
    const int64_t until = least(n, i + 8 * kFlush);
    for (; i < until; i += 8) {
      const Vector w = read(weights + i);
      for (int j = 0; j < 4; ++j) s[j] = add(s[j], keep(below(w, broadcast(theta[j])), w));
    }
    for (int j = 0; j < 4; ++j) sums[j] += static_cast<double>(sum_of(s[j])), s[j] = zero();
  }
}

// Keep of `weights` those from low to high, and add the smaller ones up; returns how many were kept.
inline int64_t between(const float* weights, int64_t n, int32_t low, int32_t high, float* kept, double* smaller) {
  const Vector lo = broadcast(bit_cast<float>(low)), hi = broadcast(bit_cast<float>(high));
  float64x2_t sums[4];
  for (int j = 0; j < 4; ++j) sums[j] = vdupq_n_f64(0.0);
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 8) {
    const Vector w = read(weights + i);
    const Mask under = below(w, lo);
    const Vector small = keep(under, w);
    sums[0] = vaddq_f64(sums[0], vcvt_f64_f32(vget_low_f32(small.low)));
    sums[1] = vaddq_f64(sums[1], vcvt_high_f64_f32(small.low));
    sums[2] = vaddq_f64(sums[2], vcvt_f64_f32(vget_low_f32(small.high)));
    sums[3] = vaddq_f64(sums[3], vcvt_high_f64_f32(small.high));
    const Mask within = both(below(w, hi), below(zero(), w));
    for (uint32_t bits = lanes(but_not(within, under)); bits; bits &= bits - 1) kept[count++] = weights[i + __builtin_ctz(bits)];
  }
  *smaller = vaddvq_f64(vaddq_f64(vaddq_f64(sums[0], sums[2]), vaddq_f64(sums[1], sums[3])));
  return count;
}

#include "bracket.inc"

int64_t pick(const float* weights, int64_t stride, int64_t first, int64_t n, int rows, const Threshold* threshold,
             int32_t* index, uint16_t* members) {
  int64_t count = 0, i = 0;
  for (; i + 8 <= n; i += 8) {
    uint32_t of_row[kMaxRows], any = 0;
    for (int row = 0; row < rows; ++row) {
      const Vector w = read(weights + row * stride + first + i), theta = broadcast(threshold[row].theta);
      of_row[row] = lanes(below(theta, w));
      const int64_t ties = threshold[row].ties - first - i;
      if (ties > 0) of_row[row] |= lanes(equal(w, theta)) & ((1u << least(ties, 8)) - 1u);
      any |= of_row[row];
    }
    for (; any; any &= any - 1) {
      const int lane = __builtin_ctz(any);
      uint32_t of = 0;
      for (int row = 0; row < rows; ++row) of |= (of_row[row] >> lane & 1u) << row;
      index[count] = static_cast<int32_t>(first + i + lane);
      members[count++] = static_cast<uint16_t>(of);
    }
  }
  return count + kScalarKernels.pick(weights, stride, first + i, n - i, rows, threshold, index + count, members + count);
}

// Lane j: the sum of the four lanes of a[j].
inline float32x4_t sum_four(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d) {
  return vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d));
}

// Lane j: the sum of a[j], by one addition and two levels of a tree. 14 instructions.
inline Vector sum_each(const Vector* a) {
  float32x4_t s[8];
  for (int j = 0; j < 8; ++j) s[j] = vaddq_f32(a[j].low, a[j].high);
  return {sum_four(s[0], s[1], s[2], s[3]), sum_four(s[4], s[5], s[6], s[7])};
}

// 16 components as two vectors, in order. Conversions from half precision are exact; FPCR.AHP, which would give the largest
// exponent another meaning, is not set by any C library.
template <Dtype T>
inline void expand(const uint8_t* from, int64_t left, Vector* a, Vector* b) {
  alignas(32) uint8_t whole[64];
  if (left < kChunk) {
    std::memset(whole, 0, sizeof(whole));
    std::memcpy(whole, from, static_cast<size_t>(left * size_of(T)));
    from = whole;
  }
  if constexpr (T == Dtype::Float32) {
    *a = read(reinterpret_cast<const float*>(from));
    *b = read(reinterpret_cast<const float*>(from) + 8);
  } else if constexpr (T == Dtype::BFloat16) {
    *a = marks8(reinterpret_cast<const uint16_t*>(from));
    *b = marks8(reinterpret_cast<const uint16_t*>(from) + 8);
  } else {
    const float16x8_t x = vreinterpretq_f16_u16(vld1q_u16(reinterpret_cast<const uint16_t*>(from)));
    const float16x8_t y = vreinterpretq_f16_u16(vld1q_u16(reinterpret_cast<const uint16_t*>(from) + 8));
    *a = {vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x)};
    *b = {vcvt_f32_f16(vget_low_f16(y)), vcvt_high_f32_f16(y)};
  }
}

// Where component i of a chunk lies after `expand`.
template <Dtype T>
inline int64_t expanded(int64_t i) {
  return i;
}

inline Vector exponential(Vector x, float shift) { return exp8(subtract(x, broadcast(shift))); }

// Which of 8 sets of rows hold a row, as bits.
inline uint32_t holding(const uint16_t* members, int row) {
  uint32_t bits = 0;
  for (int j = 0; j < kBatch; ++j) bits |= (static_cast<uint32_t>(members[j]) >> row & 1u) << j;
  return bits;
}

inline Vector keep(Vector x, uint32_t mine) { return keep(from_lanes(mine), x); }
inline float largest(Vector x, uint32_t mine) { return max_of(choose(from_lanes(mine), x, broadcast(-kInfinity))); }

constexpr bool kPairs = false;
template <int R, class Ahead>
void dots_of_pairs(const uint8_t* const*, int64_t, const uint16_t*, int64_t, Vector*, const Ahead&);

#include "gathering.inc"

}  // namespace

const Kernels kNeonDotKernels{code_key, code_query, center_products, scan, top, weigh, scan_weights, shrink, cut, pick, gather,
                              logit_roundings};

}  // namespace tailbound
