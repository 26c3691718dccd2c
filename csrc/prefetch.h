// Ask for memory early. GCC takes a function of nothing but _mm_prefetch for one without effects, and drops its calls.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(_M_ARM64)
#include <arm64_neon.h>
#endif

#include <cstdint>

namespace tailbound {

// Into the second level: a key and a value are asked for long before, and the first level has few lines in flight.
inline void fetch_line(const void* from) {
#if defined(__GNUC__) && defined(__aarch64__)
  asm volatile("prfm pldl2keep, %a0" : : "p"(from));
#elif defined(__GNUC__)
  asm volatile("prefetcht1 %0" : : "m"(*static_cast<const char*>(from)));
#elif defined(_M_ARM64)
  __prefetch(from);
#else
  _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1);
#endif
}

inline void fetch(const uint8_t* from, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) fetch_line(from + line);
}

}  // namespace tailbound
