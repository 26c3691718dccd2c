// A case from bytes: shapes, strides, dtype, level, and tensors full of numbers, ordinary and not.
#pragma once

#include <memory>
#include <vector>

#include "bytes.h"
#include "index.h"
#include "level.h"

namespace tailbound::fuzz {

// What holds for all of a case.
struct Scene {
  harness::Shape shape;
  int64_t group;
  Level level;
  int threads;
  uint8_t garbage, other_garbage;
  bool flush_building, flush_attending;  // denormals read and written as zero
  uint64_t direction;  // a seed: a direction that keys and queries may share
};

Scene scene_from(Bytes& bytes);

// A tensor (batch, heads, rows, width) in memory of its own, to the byte.
struct Tensor {
  std::unique_ptr<uint8_t[]> memory;
  int64_t batch_stride, head_stride, row_stride;  // elements

  Rows rows() const { return {memory.get(), batch_stride, head_stride, row_stride}; }
  const uint8_t* row(Dtype dtype, int64_t batch, int64_t head, int64_t i) const {
    return memory.get() + (batch * batch_stride + head * head_stride + i * row_stride) * size_of(dtype);
  }
};

// Strides, a kind of numbers, a magnitude and some special numbers, from bytes. `shift` drops the last bytes of the memory,
// on purpose: 0 but for a control.
Tensor tensor_from(Bytes& bytes, const Scene& scene, int64_t heads, int64_t rows, int64_t width, int64_t shift = 0);

// A bool tensor (batch, heads, queries, keys) by strides, 0 among them.
struct Mask {
  std::unique_ptr<uint8_t[]> memory;
  int64_t strides[4];

  bool at(int64_t b, int64_t h, int64_t t, int64_t i) const {
    return memory[static_cast<size_t>(b * strides[0] + h * strides[1] + t * strides[2] + i * strides[3])] != 0;
  }
};

Mask mask_from(Bytes& bytes, int64_t batch, int64_t heads, int64_t queries, int64_t keys);

// 2^e for an e that is mostly near 0, and sometimes anywhere in a dtype's range.
double magnitude_from(Bytes& bytes);

}  // namespace tailbound::fuzz
