// AVX-512 with VNNI.
#include "avx512.inc"

namespace tailbound {

const Kernels kAvx512VnniKernels{code_key, code_query, center_products, scan, top, weigh, scan_weights, shrink, cut, pick, gather,
                                 logit_roundings};

}  // namespace tailbound
