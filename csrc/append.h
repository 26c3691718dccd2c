// Writing keys and values into a store: copies, centres, codes, and the ball of the values (engine/coding.py in C++).
#pragma once

#include "kernels.h"

namespace tailbound {

// A tensor (batch, KV heads, keys, width) of the store's dtype, rows contiguous; strides in elements.
struct Rows {
  const uint8_t* data;
  int64_t batch_stride, head_stride, row_stride;
};

// Append `count` keys at position `stop` of a store that has room for them; `start` is its first position.
void append(const Kernels& kernels, const Store& store, const Rows& key, const Rows& value, int64_t start, int64_t stop,
            int64_t count, int threads);

}  // namespace tailbound
