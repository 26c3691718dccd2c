// AVX-512 with VNNI. Bytes per key and instructions per 16 keys stand above each kernel; R rows share every load.
// No std:: templates here: their instantiations would be shared with units that every machine runs.
#include <immintrin.h>

#include "coding.h"
#include "kernels.h"
#include "numbers.h"
#include "settle.h"

namespace tailbound {
namespace {

constexpr int64_t kChunk = 32;   // components expanded at once
constexpr int64_t kBatch = 16;   // keys gathered at once
constexpr int64_t kAhead = 4096; // bytes of codes that are asked for early
struct Word {
  int8_t bytes[4];
};

constexpr int64_t kFlush = 256;  // keys whose sums stay in float32
constexpr int64_t kMaxChunks = 128;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

int32_t dot_int8(const int8_t* a, const int8_t* b, size_t n) {
  // vpdpwssd on widened codes: exact for -128 too, which vpdpbusd with a sign trick is not.
  __m512i sums = _mm512_setzero_si512();
  for (size_t i = 0; i < n; i += 32) {
    const __mmask32 in = n - i >= 32 ? ~__mmask32{0} : (__mmask32{1} << (n - i)) - 1;
    const __m512i x = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(in, a + i));
    const __m512i y = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(in, b + i));
    sums = _mm512_dpwssd_epi32(sums, x, y);
  }
  return _mm512_reduce_add_epi32(sums);
}

inline __m512 marks16(const uint16_t* marks) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(marks));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// exp(x) for x <= 0 or so: relative error below 2^-19 for |x| <= 88, argument reduction included.
inline __m512 exp16(__m512 x) {
  const __m512 log2e = _mm512_set1_ps(1.44269504088896341f);
  const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(x, log2e), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 part = _mm512_fmsub_ps(x, log2e, whole);
  __m512 p = _mm512_set1_ps(1.33954956e-3f);
  p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(9.67028748e-3f));
  p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(5.55036584e-2f));
  p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(2.40222312e-1f));
  p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(6.93147203e-1f));
  p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(1.00000001f));
  return _mm512_scalef_ps(p, whole);
}

// sum += code (unsigned) times words (four signed bytes, the same in each lane), products of four added up. GCC copies the
// accumulator of the intrinsic twice and keeps no broadcast in the instruction: a scan in cache took 2.5 times as long.
inline void add_products(__m512i& sum, __m512i code, const int8_t* words) {
#if defined(__GNUC__)
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(code), "m"(*reinterpret_cast<const Word*>(words)));
#else
  int32_t bytes;
  std::memcpy(&bytes, words, 4);
  sum = _mm512_dpbusd_epi32(sum, code, _mm512_set1_epi32(bytes));
#endif
}

template <int R>
inline void add_group(__m512i* coarse, __m512i* fine, __m512i codes, const int8_t* planes) {
  const __m512i code = _mm512_xor_si512(codes, _mm512_set1_epi8(static_cast<char>(0x80)));
  for (int r = 0; r < R; ++r) {
    add_products(coarse[r], code, planes + 8 * r);
    add_products(fine[r], code, planes + 8 * r + 4);
  }
}

// A block of 16 keys, D components: D / 4 loads and 2 R vpdpbusd each. Two or three blocks at once were slower.
template <int R>
void scan_rows(const int8_t* codes, const uint16_t* marks, int64_t blocks, int64_t width, const int8_t* planes, int rows,
               const Terms* terms, const int32_t* shift, float* upper, int64_t stride) {
  const int64_t groups = width / 4, tail = width % 4;
  for (int64_t block = 0; block < blocks; ++block, codes += kBlock * width, marks += 3 * kBlock, upper += kBlock) {
    __m512i coarse[R], fine[R];
    for (int r = 0; r < R; ++r) {
      coarse[r] = _mm512_set1_epi32(shift[2 * r]);
      fine[r] = _mm512_set1_epi32(shift[2 * r + 1]);
    }
    for (int64_t g = 0; g < groups; ++g) {
      _mm_prefetch(reinterpret_cast<const char*>(codes + g * 64 + kAhead), _MM_HINT_T0);
      add_group<R>(coarse, fine, _mm512_loadu_si512(codes + g * 64), planes + g * 8 * rows);
    }
    if (tail) {
      alignas(64) int8_t last[64] = {};
      for (int lane = 0; lane < kBlock; ++lane)
        for (int64_t d = 0; d < tail; ++d) last[4 * lane + d] = codes[groups * 64 + lane * tail + d];
      add_group<R>(coarse, fine, _mm512_load_si512(last), planes + groups * 8 * rows);
    }
    const __m512 step = marks16(marks), residual = marks16(marks + kBlock), extent = marks16(marks + 2 * kBlock);
    for (int r = 0; r < R; ++r) {
      const Terms& t = terms[r];
      const __m512 product = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(coarse[r], 6), fine[r]));
      const __m512 scaled = _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(t.unit), product), step);
      const __m512 middle = _mm512_add_ps(_mm512_set1_ps(t.base), scaled);
      const __m512 bracket = _mm512_fmadd_ps(_mm512_set1_ps(t.residual), residual,
                                             _mm512_fmadd_ps(_mm512_set1_ps(t.extent), extent, _mm512_set1_ps(t.error)));
      _mm512_storeu_ps(upper + r * stride, _mm512_add_ps(middle, bracket));
    }
  }
}

#include "scan.inc"

float top(const float* upper, int64_t n) {
  __m512 a = _mm512_set1_ps(-__builtin_inff()), b = a;
  int64_t i = 0;
  // vmaxps gives its second operand where one is NaN.
  for (; i + 32 <= n; i += 32) {
    a = _mm512_max_ps(_mm512_loadu_ps(upper + i), a);
    b = _mm512_max_ps(_mm512_loadu_ps(upper + i + 16), b);
  }
  for (; i < n; i += 16) a = _mm512_max_ps(_mm512_loadu_ps(upper + i), a);
  return _mm512_reduce_max_ps(_mm512_max_ps(a, b));
}

// 16 keys: 2 exponentials of 10 instructions, 12 others.
bool weigh(float* upper, const uint16_t* marks, int64_t blocks, const Terms& t, float level, double* sure,
           float* least) {
  const __m512 infinity = _mm512_set1_ps(__builtin_inff()), zero = _mm512_setzero_ps();
  const __m512 more = _mm512_set1_ps(1.0f + 0x1p-16f), tiny = _mm512_set1_ps(kLeastWeight);
  const __m512 base = _mm512_set1_ps(level), two = _mm512_set1_ps(-2.0f);
  __m512 sums = zero, smallest = infinity;
  __mmask16 infinite = 0;
  for (int64_t block = 0; block < blocks; ++block, upper += kBlock, marks += 3 * kBlock) {
    const __m512 end = _mm512_loadu_ps(upper);
    const __mmask16 bounded = _mm512_cmp_ps_mask(end, infinity, _CMP_LT_OQ);
    const __mmask16 hidden = _mm512_cmp_ps_mask(end, _mm512_sub_ps(zero, infinity), _CMP_EQ_OQ);
    infinite = static_cast<__mmask16>(infinite | ~bounded);
    const __m512 from = _mm512_sub_ps(end, base);
    const __m512 bracket = _mm512_fmadd_ps(_mm512_set1_ps(t.residual), marks16(marks + kBlock),
                                           _mm512_fmadd_ps(_mm512_set1_ps(t.extent), marks16(marks + 2 * kBlock),
                                                           _mm512_set1_ps(t.error)));
    const __m512 weight = _mm512_max_ps(_mm512_mul_ps(exp16(from), more), tiny);
    const __m512 lower = exp16(_mm512_fmadd_ps(two, bracket, from));
    const __mmask16 good = static_cast<__mmask16>(bounded & ~hidden);
    sums = _mm512_mask_add_ps(sums, good, sums, lower);
    smallest = _mm512_mask_min_ps(smallest, good, smallest, bracket);
    _mm512_storeu_ps(upper, _mm512_mask_mov_ps(_mm512_maskz_mov_ps(static_cast<__mmask16>(~hidden), infinity), good, weight));
  }
  *sure += static_cast<double>(_mm512_reduce_add_ps(sums)) * (1.0 - 0x1p-14);
  const float here = _mm512_reduce_min_ps(smallest);
  *least = here < *least ? here : *least;
  return infinite != 0;
}

// Sums of the weights below four thresholds: 9 instructions for 16 keys.
inline void sums_below(const float* weights, int64_t n, const float* theta, double* sums) {
  __m512 s[4], t[4];
  for (int j = 0; j < 4; ++j) s[j] = _mm512_setzero_ps(), t[j] = _mm512_set1_ps(theta[j]);
  for (int j = 0; j < 4; ++j) sums[j] = 0.0;
  for (int64_t i = 0; i < n;) {
    const int64_t until = least(n, i + 16 * kFlush);
    for (; i < until; i += 16) {
      const __m512 w = _mm512_loadu_ps(weights + i);
      for (int j = 0; j < 4; ++j) s[j] = _mm512_mask_add_ps(s[j], _mm512_cmp_ps_mask(w, t[j], _CMP_LT_OQ), s[j], w);
    }
    for (int j = 0; j < 4; ++j) sums[j] += static_cast<double>(_mm512_reduce_add_ps(s[j])), s[j] = _mm512_setzero_ps();
  }
}

// Keep of `weights` those from low to high, and add the smaller ones up; returns how many were kept. In place is allowed.
inline int64_t between(const float* weights, int64_t n, int32_t low, int32_t high, float* kept, double* below) {
  const __m512 lo = _mm512_set1_ps(bit_cast<float>(low)), hi = _mm512_set1_ps(bit_cast<float>(high));
  const __m512 zero = _mm512_setzero_ps();
  __m512d sums = _mm512_setzero_pd(), more = _mm512_setzero_pd();
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 w = _mm512_loadu_ps(weights + i);
    const __mmask16 under = _mm512_cmp_ps_mask(w, lo, _CMP_LT_OQ);
    const __mmask16 within = static_cast<__mmask16>(_mm512_cmp_ps_mask(w, hi, _CMP_LT_OQ) & ~under &
                                                    _mm512_cmp_ps_mask(w, zero, _CMP_GT_OQ));
    const __m512 small = _mm512_maskz_mov_ps(under, w);
    sums = _mm512_add_pd(sums, _mm512_cvtps_pd(_mm512_castps512_ps256(small)));
    more = _mm512_add_pd(more, _mm512_cvtps_pd(_mm512_extractf32x8_ps(small, 1)));
    _mm512_storeu_ps(kept + count, _mm512_maskz_compress_ps(within, w));
    count += __builtin_popcount(within);
  }
  *below = _mm512_reduce_add_pd(_mm512_add_pd(sums, more));
  return count;
}

#include "bracket.inc"

int64_t pick(const float* weights, int64_t stride, int64_t first, int64_t n, int rows, const Threshold* threshold,
             int32_t* index) {
  int64_t count = 0;
  __m512i position = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(first)),
                                      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  for (int64_t i = 0; i < n; i += 16, position = _mm512_add_epi32(position, _mm512_set1_epi32(16))) {
    const __mmask16 in = static_cast<__mmask16>(n - i >= 16 ? 0xffff : (1u << (n - i)) - 1u);
    __mmask16 any = 0;
    for (int row = 0; row < rows; ++row) {
      const __m512 w = _mm512_maskz_loadu_ps(in, weights + row * stride + first + i);
      const __m512 theta = _mm512_set1_ps(threshold[row].theta);
      const __m512i ties = _mm512_set1_epi32(static_cast<int32_t>(threshold[row].ties));
      const __mmask16 equal = _mm512_mask_cmp_epi32_mask(_mm512_cmp_ps_mask(w, theta, _CMP_EQ_OQ), position, ties, _MM_CMPINT_LT);
      any = static_cast<__mmask16>(any | equal | _mm512_cmp_ps_mask(w, theta, _CMP_GT_OQ));
    }
    any = static_cast<__mmask16>(any & in);
    if (!any) continue;
    // Through a register: a compressing store is slow on some processors. There is room: counts never pass positions.
    const __m512i chosen = _mm512_maskz_compress_epi32(any, position);
    const int picked = __builtin_popcount(any);
    _mm512_mask_storeu_epi32(index + count, static_cast<__mmask16>((1u << picked) - 1u), chosen);
    count += picked;
  }
  return count;
}

// Lane j: the sum of a[j]. 45 instructions.
inline __m512 sum_each(const __m512* a) {
  __m512 t[8], u[4];
  for (int i = 0; i < 8; ++i)
    t[i] = _mm512_add_ps(_mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]), _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]));
  for (int i = 0; i < 4; ++i) {
    const __m512d x = _mm512_castps_pd(t[2 * i]), y = _mm512_castps_pd(t[2 * i + 1]);
    u[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  const __m512 v = _mm512_add_ps(_mm512_shuffle_f32x4(u[0], u[1], 0x88), _mm512_shuffle_f32x4(u[0], u[1], 0xdd));
  const __m512 w = _mm512_add_ps(_mm512_shuffle_f32x4(u[2], u[3], 0x88), _mm512_shuffle_f32x4(u[2], u[3], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(v, w, 0x88), _mm512_shuffle_f32x4(v, w, 0xdd));
}

// 32 components as two vectors: bfloat16 as the even ones and the odd ones (a shift and a mask), others as halves.
template <Dtype T>
inline void expand(const uint8_t* from, int64_t left, __m512* a, __m512* b) {
  if constexpr (T == Dtype::Float32) {
    const float* x = reinterpret_cast<const float*>(from);
    if (left >= 32) {
      *a = _mm512_loadu_ps(x);
      *b = _mm512_loadu_ps(x + 16);
    } else {
      const uint32_t in = (1u << left) - 1u;
      *a = _mm512_maskz_loadu_ps(static_cast<__mmask16>(in), x);
      *b = _mm512_maskz_loadu_ps(static_cast<__mmask16>(in >> 16), x + 16);
    }
  } else {
    const __m512i bits = left >= 32 ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16((1u << left) - 1u, from);
    if constexpr (T == Dtype::BFloat16) {
      *a = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
      *b = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u))));
    } else {
      *a = _mm512_cvtph_ps(_mm512_castsi512_si256(bits));
      *b = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(bits, 1));
    }
  }
}

// Where component i of a chunk lies after `expand`.
template <Dtype T>
inline int64_t expanded(int64_t i) {
  if constexpr (T == Dtype::BFloat16) return i / 2 + (i & 1) * 16;
  return i;
}

using Vector = __m512;
inline Vector zero() { return _mm512_setzero_ps(); }
inline Vector read(const float* from) { return _mm512_loadu_ps(from); }
inline void write(float* to, Vector x) { _mm512_storeu_ps(to, x); }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
inline Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
inline Vector broadcast(float x) { return _mm512_set1_ps(x); }
inline float sum_of(Vector x) { return _mm512_reduce_add_ps(x); }
inline Vector exponential(Vector x, float shift) { return exp16(_mm512_sub_ps(x, _mm512_set1_ps(shift))); }

// Which of 16 logits belong to a row, as bits; `in` are those that exist.
inline uint32_t members(const Gather& g, int row, const int32_t* at, uint32_t in) {
  const __m512i where = _mm512_loadu_si512(at);
  const __mmask16 there = static_cast<__mmask16>(in);
  if (!g.weights) {
    const __m512i limit = _mm512_set1_epi32(static_cast<int32_t>(g.limit[row] - g.origin));
    return _mm512_mask_cmp_epi32_mask(there, where, limit, _MM_CMPINT_LT);
  }
  const __m512 w = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), there, where, g.weights + row * g.stride, 4);
  const __m512 theta = _mm512_set1_ps(g.threshold[row].theta);
  const __m512i ties = _mm512_set1_epi32(static_cast<int32_t>(g.threshold[row].ties));
  const __mmask16 equal = _mm512_mask_cmp_epi32_mask(_mm512_mask_cmp_ps_mask(there, w, theta, _CMP_EQ_OQ), where, ties, _MM_CMPINT_LT);
  return static_cast<uint32_t>(equal) | _mm512_mask_cmp_ps_mask(there, w, theta, _CMP_GT_OQ);
}

inline Vector keep(Vector x, uint32_t mine) { return _mm512_maskz_mov_ps(static_cast<__mmask16>(mine), x); }
inline float largest(Vector x, uint32_t mine) { return _mm512_mask_reduce_max_ps(static_cast<__mmask16>(mine), x); }

#include "gathering.inc"

}  // namespace

const Kernels kAvx512VnniKernels{dot_int8, code_key, scan, top, weigh, cut, pick, gather, logit_roundings};

}  // namespace tailbound
