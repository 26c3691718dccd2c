// What the kernels promise one another (csrc/kernels.h, settle.h, answer.h), for a test to call one at a time. Built by
// controls.py beside a copy of the sources; never part of the module.
#include <algorithm>
#include <vector>

#include "answer.h"
#include "coding.h"
#include "kernels.h"
#include "rows.h"
#include "settle.h"

using namespace tailbound;

#define PROMISE extern "C" __attribute__((visibility("default")))

namespace {

// A store of one KV head with float32 keys and values in one page, coded around `center`.
struct Small {
  std::vector<float> key, value, center;
  std::vector<int8_t> codes;
  std::vector<uint16_t> marks;
  std::vector<double> value_center, bounds;
  Store store;

  Small(const Kernels& kernels, const float* keys, const float* values, int64_t n, int64_t width, int64_t value_width,
        const float* middle)
      : key(keys, keys + n * width), value(values, values + n * value_width), center(middle, middle + width) {
    const int64_t page = 1024;
    key.resize(static_cast<size_t>(page * width));
    value.resize(static_cast<size_t>(page * value_width));
    codes.assign(static_cast<size_t>(page * width), 0);
    marks.assign(static_cast<size_t>(page * 3), 0);
    value_center.assign(static_cast<size_t>(value_width), 0.0);
    bounds.assign(4, 0.0);
    store = Store{Dtype::Float32, 1, 1, page, width, value_width, page, reinterpret_cast<uint8_t*>(key.data()),
                  reinterpret_cast<uint8_t*>(value.data()), codes.data(), marks.data(), center.data(), value_center.data(),
                  bounds.data()};
    std::vector<double> wide(static_cast<size_t>(4 * width + value_width));
    for (int64_t i = 0; i < n; ++i) {
      widen(Dtype::Float32, store.key_row(0, i), width, wide.data());
      kernels.code_key(wide.data(), center.data(), width, wide.data() + width, store.block_codes(0, i / kBlock), i % kBlock,
                       store.block_marks(0, i / kBlock));
      bounds[2] = std::max(bounds[2], up(norm_up(wide.data(), width) + flush_norm(static_cast<double>(width))));
      widen(Dtype::Float32, store.value_row(0, i), value_width, wide.data());
      bounds[1] = std::max(bounds[1], norm_up(wide.data(), value_width));
    }
  }
};

const Kernels& table(int level) { return kernels(static_cast<Level>(level)); }

Request request_for(const float* query, int64_t n, double scale) {
  Request r{};
  r.query = reinterpret_cast<const uint8_t*>(query);
  r.heads = r.queries = 1;
  r.stop = n;
  r.scale = scale;
  return r;
}

}  // namespace

// Upper ends of the logits of n keys: at least scale * q.k.
PROMISE void upper_ends(int level, const float* query, const float* keys, int64_t n, int64_t width, double scale,
                        const float* center, float* upper) {
  const Kernels& k = table(level);
  const std::vector<float> none(static_cast<size_t>(n), 0.0f);
  const Small small(k, keys, none.data(), n, width, 1, center);
  const Request request = request_for(query, n, scale);
  Tile tile(k, small.store, request, 0, 0, 1);
  tile.plan(0);
  Terms terms;
  tile.terms(0, &terms);
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  std::vector<float> all(static_cast<size_t>(blocks * kBlock));
  k.scan(small.codes.data(), small.marks.data(), blocks, width, tile.planes.data(), tile.words.data(), 1, &terms, all.data(),
         blocks * kBlock);
  std::copy_n(all.begin(), n, upper);
}

// Weights of n keys (a multiple of 16) with these upper ends: at least exp(upper - level).
PROMISE void weights_of(int level, float* upper, int64_t n, float to) {
  const std::vector<uint16_t> marks(static_cast<size_t>(3 * n), 0);
  const Terms none{0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
  double sure = 0.0;
  table(level).weigh(upper, n, marks.data(), n / kBlock, 1, &none, &to, &sure);
}

// Weights times a factor: at least that.
PROMISE void shrunk(int level, float* weights, int64_t n, float factor) { table(level).shrink(weights, n, factor); }

// The end of a cut: `rest` is at least the sum of the weights below the threshold, of which `below` is a float32 sum.
PROMISE float settled(const float* weights, int64_t n, float* middle, int64_t count, double below, double budget, double* rest) {
  return settle(weights, n, middle, count, below, budget, rest).theta;
}

// Head mass of all n keys, relative to exp(shift), and the error in nats that a row grants to its logits and weights.
PROMISE double gathered(int level, const float* query, const float* keys, const float* values, int64_t n, int64_t width,
                        int64_t value_width, double scale, float* shift, double* sums, double* granted) {
  const Kernels& k = table(level);
  const std::vector<float> center(static_cast<size_t>(width), 0.0f);
  const Small small(k, keys, values, n, width, value_width, center.data());
  const Request request = request_for(query, n, scale);
  Tile tile(k, small.store, request, 0, 0, 1);
  tile.plan(0);
  double mass = 0.0;
  int32_t kept = 0;
  std::fill_n(sums, value_width, 0.0);
  Gather g{};
  g.store = &small.store;
  g.count = n;
  g.rows = 1;
  g.query = tile.scaled.data();
  g.exact = tile.exact.data();
  g.scale = static_cast<float>(scale);
  g.query_stride = tile.padded;
  g.limit = &n;
  g.shift = shift;
  g.mass = &mass;
  g.sums = sums;
  g.kept = &kept;
  k.gather(g);
  *granted = tile.row[0].eta;
  return mass;
}

// tv of two parts whose masses are exact: at least tail / (mass + tail).
PROMISE double tv_of(double shift, double tail, double other, double mass) {
  double sums[2][1] = {{0.0}, {mass}}, center = 0.0, bounds[4] = {1.0, 1.0, 1.0, 0.0};
  float output = 0.0f;
  Store store{};
  store.dtype = Dtype::Float32;
  store.value_width = 1;
  store.value_center = &center;
  store.bounds = bounds;
  Partial parts[2] = {{shift, 0.0, tail, sums[0], 0}, {other, mass, 0.0, sums[1], 1}};
  return answer(parts, 2, 0.0, false, {0.0, 0.0, kTiny}, store, 0, reinterpret_cast<uint8_t*>(&output)).tv;
}

#ifdef TAILBOUND_HAS_AVX512BF16
// Roundings charged for a logit of bfloat16 pairs. Arithmetic that every machine has.
PROMISE double roundings_of_pairs(int64_t width) { return kAvx512Bf16Kernels.logit_roundings(width); }
#endif
