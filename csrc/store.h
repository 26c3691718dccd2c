// The buffers of one layer's index, owned by torch. engine/store.py is their description.
#pragma once

#include <cstdint>

#include "numbers.h"

namespace tailbound {

constexpr int64_t kBlock = 16;  // keys whose codes lie side by side

struct Store {
  Dtype dtype;
  int64_t batch, kv_heads, capacity, width, value_width, page;
  uint8_t* key;
  uint8_t* value;
  int8_t* codes;
  uint16_t* marks;
  float* center;
  double* value_center;
  double* bounds;

  int64_t pairs() const { return batch * kv_heads; }
  int64_t key_bytes() const { return width * size_of(dtype); }
  int64_t value_bytes() const { return value_width * size_of(dtype); }
  uint8_t* key_row(int64_t pair, int64_t i) const { return key + (pair * capacity + i) * key_bytes(); }
  uint8_t* value_row(int64_t pair, int64_t i) const { return value + (pair * capacity + i) * value_bytes(); }
  int8_t* block_codes(int64_t pair, int64_t block) const { return codes + (pair * capacity + block * kBlock) * width; }
  uint16_t* block_marks(int64_t pair, int64_t block) const { return marks + (pair * (capacity / kBlock) + block) * 3 * kBlock; }
  float* page_center(int64_t pair, int64_t number) const { return center + (pair * (capacity / page) + number) * width; }
};

// Where component d of key `lane` lies in a block's codes.
inline int64_t code_place(int64_t width, int64_t lane, int64_t d) {
  const int64_t whole = width & ~int64_t{3};
  return d < whole ? (d / 4) * 4 * kBlock + lane * 4 + d % 4 : whole * kBlock + lane * (width - whole) + (d - whole);
}

}  // namespace tailbound
