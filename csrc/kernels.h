// The kernels, one table per ISA level. A table is chosen once per call, outside every loop.
#pragma once

#include <cstddef>
#include <cstdint>

#include "level.h"

namespace tailbound {

struct Kernels {
  // Sum of a[i] * b[i], exact for n <= 131071 (128 * 128 * n stays inside int32 there).
  int32_t (*dot_int8)(const int8_t* a, const int8_t* b, size_t n);
};

constexpr size_t kDotInt8MaxLength = 131071;

extern const Kernels kScalarKernels;
#ifdef TAILBOUND_HAS_AVX2
extern const Kernels kAvx2Kernels;
#endif

const Kernels& kernels(Level level);

}  // namespace tailbound
