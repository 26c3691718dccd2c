// An index in C++: the buffers of engine/store.py around the kernels, without Python. Every buffer is allocated to the
// byte, so that AddressSanitizer sees one read too many, and filled with garbage that a caller picks, as torch.empty may.
#pragma once

#include <cstdint>
#include <memory>

#include "append.h"
#include "attend.h"

namespace tailbound::harness {

struct Shape {
  Dtype dtype;
  int64_t batch, kv_heads, width, value_width, page;
};

class Index {
 public:
  Index(const Shape& shape, int64_t room, uint8_t garbage);

  // Make room as Store.reserve does, and write `count` keys behind those held.
  void append(const Kernels& kernels, const Rows& key, const Rows& value, int64_t count, int threads);
  void crop(int64_t length) { stop_ = start_ + length; }
  void drop_front(int64_t count) { start_ += count; }

  const Store& store() const { return store_; }
  int64_t start() const { return start_; }
  int64_t stop() const { return stop_; }
  int64_t length() const { return stop_ - start_; }

 private:
  using Bytes = std::unique_ptr<uint8_t[]>;
  struct Buffers {
    Bytes key, value, codes, marks, center, value_center, bounds;
  };

  Buffers fresh(int64_t capacity) const;
  void use(Buffers buffers, int64_t capacity);
  void reserve(int64_t count);

  uint8_t garbage_;
  Buffers buffers_;
  Store store_;
  int64_t start_ = 0, stop_ = 0;
};

// What an answer is written to, and the request that asks for it: all but what the caller sets.
struct Answer {
  Answer(const Index& index, int64_t heads, int64_t queries, bool kept_set, uint8_t garbage);

  int64_t rows, keys;
  std::unique_ptr<uint8_t[]> output;
  std::unique_ptr<double[]> tv, error;
  std::unique_ptr<int32_t[]> kept;
  std::unique_ptr<uint8_t[]> status, kept_set;
  int64_t counts[5] = {};

  // The fields of a request that say where the answer goes and which keys are held.
  void aim(Request& request, const Index& index) const;
  // The same bits in output and certificate.
  bool same(const Answer& other, const Store& store) const;
};

}  // namespace tailbound::harness
