// AVX2 with FMA and F16C. Instructions for 8 or 16 keys stand above each kernel; R rows share every load.
// Codes are read as z + 128 in [1, 255] and the query's planes lie in [-63, 63], so that vpmaddubsw adds two products of
// at most 255 * 63 without saturating at 32767. No std:: templates here: their instantiations would be shared with units
// that every machine runs.
#include <immintrin.h>

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

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline __m256 all(float x) { return _mm256_set1_ps(x); }
inline int lanes(__m256 mask) { return _mm256_movemask_ps(mask); }

inline __m256 marks8(const uint16_t* marks) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(marks));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

inline float sum_of(__m256 x) {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
}

inline float max_of(__m256 x) {
  const __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 quarter = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
}

inline double sum_of(__m256d x) {
  const __m128d half = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
  return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
}

// exp(x) for x <= 16: relative error below 2^-19 for -87 <= x, argument reduction included; 0 for less and for NaN.
// Up: 1 to 1 + 2^-15 times exp(x), or 0.
template <bool Up = false>
inline __m256 exp8(__m256 x) {
  constexpr float more = Up ? 1.0f + 0x1p-16f : 1.0f;
  const __m256 log2e = all(1.44269504088896341f);
  const __m256 in = _mm256_cmp_ps(x, all(-87.0f), _CMP_GE_OQ);
  const __m256 whole = _mm256_round_ps(_mm256_mul_ps(x, log2e), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 part = _mm256_fmsub_ps(x, log2e, whole);
  __m256 p = all(more * 1.33954956e-3f);
  p = _mm256_fmadd_ps(p, part, all(more * 9.67028748e-3f));
  p = _mm256_fmadd_ps(p, part, all(more * 5.55036584e-2f));
  p = _mm256_fmadd_ps(p, part, all(more * 2.40222312e-1f));
  p = _mm256_fmadd_ps(p, part, all(more * 6.93147203e-1f));
  p = _mm256_fmadd_ps(p, part, all(more * 1.00000001f));
  const __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
  return _mm256_and_ps(in, _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power)));
}

inline __m256i four(const int8_t* plane) {
  int32_t bytes;
  std::memcpy(&bytes, plane, 4);
  return _mm256_set1_epi32(bytes);
}

inline __m256i add_products(__m256i sum, __m256i code, __m256i words) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(code, words), _mm256_set1_epi16(1)));
}

inline __m256 bracket8(const Terms& t, const uint16_t* marks) {
  return _mm256_fmadd_ps(all(t.residual), marks8(marks + kBlock),
                         _mm256_fmadd_ps(all(t.extent), marks8(marks + 2 * kBlock), all(t.error)));
}

// Upper ends and brackets of 8 keys (half a block), D components: D / 4 loads and 6 R instructions each.
template <int R>
inline void half_ends(const int8_t* codes, int half, const uint16_t* marks, int64_t width, const int8_t* planes, int rows,
                      const Terms* terms, const int32_t* shift, __m256* end, __m256* bracket) {
  __m256i coarse[R], fine[R];
  for (int r = 0; r < R; ++r) {
    coarse[r] = _mm256_set1_epi32(shift[2 * r]);
    fine[r] = _mm256_set1_epi32(shift[2 * r + 1]);
  }
  const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
  const int64_t groups = width / 4, tail = width % 4;
  for (int64_t g = 0; g < groups; ++g, planes += 8 * rows) {
    const int8_t* from = codes + g * 64 + half * 32;
    const __m256i code = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), flip);
    if (half == 0) fetch_line(from + kAhead);
    for (int r = 0; r < R; ++r) {
      coarse[r] = add_products(coarse[r], code, four(planes + 8 * r));
      fine[r] = add_products(fine[r], code, four(planes + 8 * r + 4));
    }
  }
  if (tail) {
    alignas(32) int8_t last[32] = {};
    const int8_t* from = codes + groups * 64 + half * 8 * tail;
    for (int lane = 0; lane < 8; ++lane)
      for (int64_t d = 0; d < tail; ++d) last[4 * lane + d] = from[lane * tail + d];
    const __m256i code = _mm256_xor_si256(_mm256_load_si256(reinterpret_cast<const __m256i*>(last)), flip);
    for (int r = 0; r < R; ++r) {
      coarse[r] = add_products(coarse[r], code, four(planes + 8 * r));
      fine[r] = add_products(fine[r], code, four(planes + 8 * r + 4));
    }
  }
  for (int r = 0; r < R; ++r) {
    const Terms& t = terms[r];
    const __m256 product = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(coarse[r], 6), fine[r]));
    const __m256 middle = _mm256_add_ps(all(t.base), _mm256_mul_ps(_mm256_mul_ps(all(t.unit), product), marks8(marks)));
    bracket[r] = bracket8(t, marks);
    end[r] = _mm256_add_ps(middle, bracket[r]);
  }
}

// f(first key, row, upper ends, brackets) of all half blocks and rows.
template <int R, class F>
inline void each_end(const int8_t* codes, const uint16_t* marks, int64_t blocks, int64_t width, const int8_t* planes, int rows,
                     const Terms* terms, const int32_t* shift, F f) {
  for (int64_t i = 0; i < 2 * blocks; ++i) {
    const int half = static_cast<int>(i % 2);
    __m256 end[R], bracket[R];
    half_ends<R>(codes + i / 2 * kBlock * width, half, marks + i / 2 * 3 * kBlock + half * 8, width, planes, rows, terms, shift,
                 end, bracket);
    for (int r = 0; r < R; ++r) f(8 * i, r, end[r], bracket[r]);
  }
}

template <int R>
void scan_rows(const int8_t* codes, const uint16_t* marks, int64_t blocks, int64_t width, const int8_t* planes, int rows,
               const Terms* terms, const int32_t* shift, float* upper, int64_t stride) {
  each_end<R>(codes, marks, blocks, width, planes, rows, terms, shift, [&](int64_t i, int r, __m256 end, __m256) {
    _mm256_storeu_ps(upper + r * stride + i, end);
  });
}

float top(const float* upper, int64_t n) {
  __m256 a = all(-__builtin_inff()), b = a;
  for (int64_t i = 0; i < n; i += 16) {  // vmaxps gives its second operand where one is NaN
    a = _mm256_max_ps(_mm256_loadu_ps(upper + i), a);
    b = _mm256_max_ps(_mm256_loadu_ps(upper + i + 8), b);
  }
  return max_of(_mm256_max_ps(a, b));
}

// Weights of R rows and what they add up to: 8 keys of a row take an exponential of 12 instructions and 5 others.
template <int R>
struct Weighing {
  __m256 sums[R], brackets[R];  // of weights, and of weights times brackets

  Weighing() {
    for (int r = 0; r < R; ++r) sums[r] = brackets[r] = _mm256_setzero_ps();
  }

  // `good` is all ones where an end counts.
  __m256 add(int r, __m256 good, __m256 end, __m256 bracket, float level) {
    const __m256 weight = _mm256_and_ps(exp8<true>(_mm256_sub_ps(end, all(level))), good);
    sums[r] = _mm256_add_ps(sums[r], weight);
    brackets[r] = _mm256_fmadd_ps(weight, _mm256_and_ps(bracket, good), brackets[r]);
    return _mm256_max_ps(weight, all(kLeastWeight));
  }

  void end(double* sure) const {
    for (int r = 0; r < R; ++r)
      sure[r] += sure_mass(static_cast<double>(sum_of(sums[r])), static_cast<double>(sum_of(brackets[r])));
  }
};

template <int R>
bool weigh_rows(float* upper, int64_t stride, const uint16_t* marks, int64_t blocks, const Terms* terms, const float* level,
                double* sure) {
  const __m256 infinity = all(__builtin_inff());
  __m256 unbounded = _mm256_setzero_ps();
  Weighing<R> w;
  for (int64_t i = 0; i < blocks * kBlock; i += 8) {
    const uint16_t* m = marks + i / kBlock * 3 * kBlock + i % kBlock;
    for (int r = 0; r < R; ++r) {
      float* to = upper + r * stride + i;
      const __m256 end = _mm256_loadu_ps(to);
      const __m256 bounded = _mm256_cmp_ps(end, infinity, _CMP_LT_OQ);
      const __m256 hidden = _mm256_cmp_ps(end, all(-__builtin_inff()), _CMP_EQ_OQ);
      unbounded = _mm256_or_ps(unbounded, _mm256_cmp_ps(end, infinity, _CMP_NLT_UQ));
      const __m256 weight = w.add(r, _mm256_andnot_ps(hidden, bounded), end, bracket8(terms[r], m), level[r]);
      _mm256_storeu_ps(to, _mm256_andnot_ps(hidden, _mm256_blendv_ps(infinity, weight, bounded)));
    }
  }
  w.end(sure);
  return lanes(unbounded) != 0;
}

// The scan and its weights in one pass: while these are worked out, the next codes come in.
template <int R>
bool scan_weights_rows(const int8_t* codes, const uint16_t* marks, int64_t blocks, int64_t width, const int8_t* planes,
                       int rows, const Terms* terms, const int32_t* shift, const float* level, float* weights,
                       int64_t stride, float* top, double* sure) {
  const __m256 infinity = all(__builtin_inff()), every = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
  __m256 most[R], unbounded = _mm256_setzero_ps();
  for (int r = 0; r < R; ++r) most[r] = all(-__builtin_inff());
  Weighing<R> w;
  each_end<R>(codes, marks, blocks, width, planes, rows, terms, shift, [&](int64_t i, int r, __m256 end, __m256 bracket) {
    most[r] = _mm256_max_ps(end, most[r]);
    unbounded = _mm256_or_ps(unbounded, _mm256_cmp_ps(end, infinity, _CMP_NLT_UQ));
    _mm256_storeu_ps(weights + r * stride + i, w.add(r, every, end, bracket, level[r]));
  });
  for (int r = 0; r < R; ++r) top[r] = max_of(most[r]);
  w.end(sure);
  return lanes(unbounded) == 0;
}

#include "scan.inc"

// Sums of the weights below four thresholds: 13 instructions for 8 keys.
inline void sums_below(const float* weights, int64_t n, const float* theta, double* sums) {
  __m256 s[4], t[4];
  for (int j = 0; j < 4; ++j) s[j] = _mm256_setzero_ps(), t[j] = all(theta[j]), sums[j] = 0.0;
  for (int64_t i = 0; i < n;) {
    const int64_t until = least(n, i + 8 * kFlush);
    for (; i < until; i += 8) {
      const __m256 w = _mm256_loadu_ps(weights + i);
      for (int j = 0; j < 4; ++j) s[j] = _mm256_add_ps(s[j], _mm256_and_ps(_mm256_cmp_ps(w, t[j], _CMP_LT_OQ), w));
    }
    for (int j = 0; j < 4; ++j) sums[j] += static_cast<double>(sum_of(s[j])), s[j] = _mm256_setzero_ps();
  }
}

// Keep of `weights` those from low to high, and add the smaller ones up; returns how many were kept.
inline int64_t between(const float* weights, int64_t n, int32_t low, int32_t high, float* kept, double* below) {
  const __m256 lo = all(bit_cast<float>(low)), hi = all(bit_cast<float>(high)), zero = _mm256_setzero_ps();
  __m256d sums = _mm256_setzero_pd(), more = sums;
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 8) {
    const __m256 w = _mm256_loadu_ps(weights + i);
    const __m256 under = _mm256_cmp_ps(w, lo, _CMP_LT_OQ);
    const __m256 small = _mm256_and_ps(under, w);
    sums = _mm256_add_pd(sums, _mm256_cvtps_pd(_mm256_castps256_ps128(small)));
    more = _mm256_add_pd(more, _mm256_cvtps_pd(_mm256_extractf128_ps(small, 1)));
    const __m256 within = _mm256_and_ps(_mm256_cmp_ps(w, hi, _CMP_LT_OQ), _mm256_cmp_ps(w, zero, _CMP_GT_OQ));
    for (int bits = lanes(_mm256_andnot_ps(under, within)); bits; bits &= bits - 1) kept[count++] = weights[i + __builtin_ctz(static_cast<unsigned>(bits))];
  }
  *below = sum_of(_mm256_add_pd(sums, more));
  return count;
}

#include "bracket.inc"

int64_t pick(const float* weights, int64_t stride, int64_t first, int64_t n, int rows, const Threshold* threshold,
             int32_t* index, uint16_t* members) {
  int64_t count = 0, i = 0;
  for (; i + 8 <= n; i += 8) {
    int of_row[kMaxRows], any = 0;
    for (int row = 0; row < rows; ++row) {
      const __m256 w = _mm256_loadu_ps(weights + row * stride + first + i), theta = all(threshold[row].theta);
      of_row[row] = lanes(_mm256_cmp_ps(w, theta, _CMP_GT_OQ));
      const int64_t ties = threshold[row].ties - first - i;
      if (ties > 0) of_row[row] |= lanes(_mm256_cmp_ps(w, theta, _CMP_EQ_OQ)) & ((1 << least(ties, 8)) - 1);
      any |= of_row[row];
    }
    for (; any; any &= any - 1) {
      const int lane = __builtin_ctz(static_cast<unsigned>(any));
      int of = 0;
      for (int row = 0; row < rows; ++row) of |= (of_row[row] >> lane & 1) << row;
      index[count] = static_cast<int32_t>(first + i + lane);
      members[count++] = static_cast<uint16_t>(of);
    }
  }
  return count + kScalarKernels.pick(weights, stride, first + i, n - i, rows, threshold, index + count, members + count);
}

// Lane j: the sum of a[j]. 7 hadds of 3 instructions each.
inline __m256 sum_each(const __m256* a) {
  const __m256 x = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
  const __m256 y = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]), _mm256_hadd_ps(a[6], a[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(x, y, 0x20), _mm256_permute2f128_ps(x, y, 0x31));
}

// 16 components as two vectors: bfloat16 as the even ones and the odd ones (a shift and a mask), others as halves.
template <Dtype T>
inline void expand(const uint8_t* from, int64_t left, __m256* a, __m256* b) {
  alignas(32) uint8_t whole[64];
  if (left < kChunk) {
    std::memset(whole, 0, sizeof(whole));
    std::memcpy(whole, from, static_cast<size_t>(left * size_of(T)));
    from = whole;
  }
  if constexpr (T == Dtype::Float32) {
    *a = _mm256_loadu_ps(reinterpret_cast<const float*>(from));
    *b = _mm256_loadu_ps(reinterpret_cast<const float*>(from) + 8);
  } else {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    if constexpr (T == Dtype::BFloat16) {
      *a = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
      *b = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u))));
    } else {
      *a = _mm256_cvtph_ps(_mm256_castsi256_si128(bits));
      *b = _mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1));
    }
  }
}

// Where component i of a chunk lies after `expand`.
template <Dtype T>
inline int64_t expanded(int64_t i) {
  if constexpr (T == Dtype::BFloat16) return i / 2 + (i & 1) * 8;
  return i;
}

using Vector = __m256;
inline Vector zero() { return _mm256_setzero_ps(); }
inline Vector read(const float* from) { return _mm256_loadu_ps(from); }
inline void write(float* to, Vector x) { _mm256_storeu_ps(to, x); }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
inline Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
inline Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
inline Vector broadcast(float x) { return _mm256_set1_ps(x); }
inline Vector exponential(Vector x, float shift) { return exp8(_mm256_sub_ps(x, all(shift))); }

// Which of 8 sets of rows hold a row, as bits.
inline uint32_t holding(const uint16_t* members, int row) {
  const __m128i bit = _mm_set1_epi16(static_cast<int16_t>(1u << row));
  const __m128i on = _mm_cmpeq_epi16(_mm_and_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(members)), bit), bit);
  return static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(on, _mm_setzero_si128())));
}

inline Vector keep(Vector x, uint32_t mine) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i on = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int32_t>(mine)), bit), bit);
  return _mm256_and_ps(_mm256_castsi256_ps(on), x);
}

inline float largest(Vector x, uint32_t mine) {
  const __m256 low = all(-__builtin_inff());
  const __m256 on = keep(_mm256_castsi256_ps(_mm256_set1_epi32(-1)), mine);
  return max_of(_mm256_blendv_ps(low, x, on));
}

constexpr bool kPairs = false;
template <int R, class Ahead>
void dots_of_pairs(const uint8_t* const*, int64_t, const uint16_t*, int64_t, Vector*, const Ahead&);

#include "gathering.inc"

}  // namespace

const Kernels kAvx2Kernels{code_key, code_query, center_products, scan, top, weigh, scan_weights, shrink, cut, pick, gather,
                           logit_roundings};

}  // namespace tailbound
