// AVX-512 with VNNI and BF16.
#include "avx512.inc"

namespace tailbound {

const Kernels kAvx512Bf16Kernels{code_key, code_query, center_products, scan, top, weigh, scan_weights, shrink, cut, pick, gather,
                                 logit_roundings};

}  // namespace tailbound
