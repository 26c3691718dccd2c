#include "index.h"

#include <algorithm>
#include <cstring>

namespace tailbound::harness {
namespace {

std::unique_ptr<uint8_t[]> filled(int64_t bytes, uint8_t garbage) {
  std::unique_ptr<uint8_t[]> out(new uint8_t[static_cast<size_t>(bytes)]);
  std::fill_n(out.get(), bytes, garbage);
  return out;
}

}  // namespace

Index::Index(const Shape& shape, int64_t room, uint8_t garbage) : garbage_(garbage) {
  store_ = Store{};
  store_.dtype = shape.dtype;
  store_.batch = shape.batch;
  store_.kv_heads = shape.kv_heads;
  store_.width = shape.width;
  store_.value_width = shape.value_width;
  store_.page = shape.page;
  const int64_t capacity = std::max<int64_t>(1, (room + shape.page - 1) / shape.page) * shape.page;
  use(fresh(capacity), capacity);
  std::fill_n(store_.value_center, store_.pairs() * store_.value_width, 0.0);
  std::fill_n(store_.bounds, store_.pairs() * 4, 0.0);
}

Index::Buffers Index::fresh(int64_t capacity) const {
  const Store& s = store_;
  const int64_t keys = s.pairs() * capacity;
  return {filled(keys * s.key_bytes(), garbage_),
          filled(keys * s.value_bytes(), garbage_),
          filled(keys * s.width, garbage_),
          filled(keys * 3 * 2, garbage_),
          filled(keys / s.page * s.width * 4, garbage_),
          filled(s.pairs() * s.value_width * 8, garbage_),
          filled(s.pairs() * 4 * 8, garbage_)};
}

void Index::use(Buffers buffers, int64_t capacity) {
  buffers_ = std::move(buffers);
  store_.capacity = capacity;
  store_.key = buffers_.key.get();
  store_.value = buffers_.value.get();
  store_.codes = reinterpret_cast<int8_t*>(buffers_.codes.get());
  store_.marks = reinterpret_cast<uint16_t*>(buffers_.marks.get());
  store_.center = reinterpret_cast<float*>(buffers_.center.get());
  store_.value_center = reinterpret_cast<double*>(buffers_.value_center.get());
  store_.bounds = reinterpret_cast<double*>(buffers_.bounds.get());
}

void Index::reserve(int64_t count) {
  if (stop_ + count <= store_.capacity) return;
  const Store old = store_;
  const int64_t page = old.page, dead = start_ / page, begun = (stop_ + page - 1) / page;
  const int64_t needed = length() + start_ % page + count;
  const int64_t room = std::max(needed, length() == 0 ? 0 : old.capacity * 5 / 4);
  const int64_t capacity = (room + page - 1) / page * page;
  Buffers held = std::move(buffers_);
  use(fresh(capacity), capacity);
  std::copy_n(old.value_center, old.pairs() * old.value_width, store_.value_center);
  std::copy_n(old.bounds, old.pairs() * 4, store_.bounds);
  const int64_t keys = (begun - dead) * page;
  for (int64_t p = 0; keys > 0 && p < old.pairs(); ++p) {
    std::copy_n(old.key_row(p, dead * page), keys * old.key_bytes(), store_.key_row(p, 0));
    std::copy_n(old.value_row(p, dead * page), keys * old.value_bytes(), store_.value_row(p, 0));
    std::copy_n(old.block_codes(p, dead * page / kBlock), keys * old.width, store_.block_codes(p, 0));
    std::copy_n(old.block_marks(p, dead * page / kBlock), keys * 3, store_.block_marks(p, 0));
    std::copy_n(old.page_center(p, dead), (begun - dead) * old.width, store_.page_center(p, 0));
  }
  start_ -= dead * page;
  stop_ -= dead * page;
}

void Index::append(const Kernels& kernels, const Rows& key, const Rows& value, int64_t count, int threads) {
  if (count == 0) return;
  reserve(count);
  tailbound::append(kernels, store_, key, value, start_, stop_, count, threads);
  stop_ += count;
}

Answer::Answer(const Index& index, int64_t heads, int64_t queries, bool with_kept, uint8_t garbage)
    : rows(index.store().batch * heads * queries), keys(index.length()) {
  const size_t n = static_cast<size_t>(rows);
  output = filled(rows * index.store().value_bytes(), garbage);
  tv.reset(new double[n]);
  error.reset(new double[n]);
  kept.reset(new int32_t[n]);
  status = filled(rows, garbage);
  if (with_kept) kept_set = filled(rows * keys, garbage);
  std::fill_n(tv.get(), n, -1.0);
  std::fill_n(error.get(), n, -1.0);
  std::fill_n(kept.get(), n, -1);
}

void Answer::aim(Request& request, const Index& index) const {
  request.start = index.start();
  request.stop = index.stop();
  request.output = output.get();
  request.tv = tv.get();
  request.error = error.get();
  request.kept = kept.get();
  request.status = status.get();
  request.kept_set = kept_set.get();
  request.counts = const_cast<int64_t*>(counts);
}

// Rows that are not finite are only marked: their output is anyone's.
bool Answer::same(const Answer& other, const Store& store) const {
  const size_t n = static_cast<size_t>(rows), width = static_cast<size_t>(store.value_bytes());
  if (std::memcmp(tv.get(), other.tv.get(), n * 8) || std::memcmp(error.get(), other.error.get(), n * 8) ||
      std::memcmp(kept.get(), other.kept.get(), n * 4) || std::memcmp(status.get(), other.status.get(), n))
    return false;
  for (size_t i = 0; i < n; ++i)
    if (status[i] != kNonfinite && std::memcmp(output.get() + i * width, other.output.get() + i * width, width)) return false;
  return true;
}

}  // namespace tailbound::harness
