// AVX2. 16 products per step: 2 loads, 2 widenings, 1 vpmaddwd, 1 add.
// Codes are widened to 16 bits first: vpmaddubsw would save half the work but saturates at 32767, and two products of
// 127 * 127 already reach 32258 in one lane, two of -128 * -128 reach 32768.
#include <immintrin.h>

#include "kernels.h"

namespace tailbound {
namespace {

int32_t dot_int8(const int8_t* a, const int8_t* b, size_t n) {
  __m256i sums = _mm256_setzero_si256();
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a + i)));
    const __m256i y = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i)));
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(x, y));
  }
  const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  const __m128i quarter = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  int32_t sum = _mm_cvtsi128_si32(_mm_add_epi32(quarter, _mm_shuffle_epi32(quarter, 0xb1)));
  for (; i < n; ++i) sum += static_cast<int32_t>(a[i]) * static_cast<int32_t>(b[i]);
  return sum;
}

}  // namespace

// What has no kernel of this level yet is the scalar one.
const Kernels kAvx2Kernels = [] {
  Kernels table = kScalarKernels;
  table.dot_int8 = dot_int8;
  return table;
}();

}  // namespace tailbound
