// The oracle that every faster level is held to. Unvectorised on purpose.
#include "kernels.h"

#include <stdexcept>

namespace tailbound {
namespace {

int32_t dot_int8(const int8_t* a, const int8_t* b, size_t n) {
  int32_t sum = 0;
  for (size_t i = 0; i < n; ++i) sum += static_cast<int32_t>(a[i]) * static_cast<int32_t>(b[i]);
  return sum;
}

}  // namespace

const Kernels kScalarKernels{dot_int8};

const Kernels& kernels(Level level) {
  switch (level) {
    case Level::Scalar: return kScalarKernels;
#ifdef TAILBOUND_HAS_AVX2
    case Level::Avx2: return kAvx2Kernels;
#endif
    default: throw std::logic_error(std::string("no kernels were built for ") + name(level));
  }
}

}  // namespace tailbound
