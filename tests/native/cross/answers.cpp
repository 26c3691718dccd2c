// Whole answers without Python: indexes are built and asked at the level above scalar and at scalar, and each certificate is
// held against attention in long double on the tensors as stored. The laws are those of tests/laws.py: tv is never below the
// mass of the visible keys without weight, output_error never below the distance, kept counts the kept set, tv <= epsilon.
#include <algorithm>
#include <cstring>
#include <limits>

#include "append.h"
#include "attend.h"
#include "checks.h"

using namespace tailbound;
using checks::expect;
using checks::Random;
using Real = long double;

namespace {

// Python allots these (engine/store.py).
struct Buffers {
  Store store{};
  std::vector<uint8_t> key, value;
  std::vector<int8_t> codes;
  std::vector<uint16_t> marks;
  std::vector<float> center;
  std::vector<double> value_center, bounds;

  Buffers(Dtype dtype, int64_t batch, int64_t kv_heads, int64_t room, int64_t width, int64_t value_width) {
    int64_t page = 256;
    while (page < 2 * width) page *= 2;
    const int64_t capacity = (room + page - 1) / page * page, pairs = batch * kv_heads;
    key.resize(static_cast<size_t>(pairs * capacity * width * size_of(dtype)));
    value.resize(static_cast<size_t>(pairs * capacity * value_width * size_of(dtype)));
    codes.resize(static_cast<size_t>(pairs * capacity * width));
    marks.resize(static_cast<size_t>(pairs * capacity / kBlock * 3 * kBlock));
    center.resize(static_cast<size_t>(pairs * capacity / page * width));
    value_center.resize(static_cast<size_t>(pairs * value_width));
    bounds.resize(static_cast<size_t>(pairs * 4));
    store = {dtype, batch, kv_heads, capacity, width, value_width, page, key.data(), value.data(), codes.data(), marks.data(),
             center.data(), value_center.data(), bounds.data()};
  }
};

struct Case {
  const char* name;
  Dtype dtype;
  int64_t kv_heads, group, queries, keys, width, value_width;
  double query_size, key_size, epsilon;
  bool causal = false, ties = false;
  double softcap = 0.0;
  int64_t poisoned = -1;  // a key that holds a NaN
};

double sized(Random& random, double size) { return size * random.normal(); }

struct Answers {
  std::vector<uint8_t> output, kept_set, status;
  std::vector<double> tv, error;
  std::vector<int32_t> kept;
};

Answers ask(Level level, const Buffers& b, const Case& c, const std::vector<uint8_t>& query, int threads) {
  const size_t rows = static_cast<size_t>(c.kv_heads * c.group * c.queries);
  Answers a;
  a.output.resize(rows * static_cast<size_t>(c.value_width * size_of(c.dtype)));
  a.kept_set.resize(rows * static_cast<size_t>(c.keys));
  a.status.resize(rows), a.tv.resize(rows), a.error.resize(rows), a.kept.resize(rows);
  int64_t counts[5];
  Request r{};
  r.query = query.data();
  r.query_row_stride = c.width, r.query_head_stride = c.width * c.queries, r.query_batch_stride = r.query_head_stride * c.kv_heads * c.group;
  r.heads = c.kv_heads * c.group, r.queries = c.queries;
  r.start = 0, r.stop = c.keys;
  r.epsilon = c.epsilon, r.scale = 1.0 / std::sqrt(static_cast<double>(c.width)), r.softcap = c.softcap, r.causal = c.causal;
  r.dense_below = 256, r.dense_share = 0.6;
  r.output = a.output.data(), r.tv = a.tv.data(), r.error = a.error.data(), r.kept = a.kept.data(), r.status = a.status.data();
  r.kept_set = a.kept_set.data(), r.counts = counts;
  attend(kernels(level), level, b.store, r, threads);
  expect(counts[0] == 1 + static_cast<int64_t>(level), "%s: isa is %d", c.name, int(counts[0]));
  return a;
}

// Logits and weights of a row, and its exact output, are worked out once and judge every level.
void judge(const Case& c, const Buffers& b, const std::vector<uint8_t>& query, const std::vector<std::pair<const char*, Answers>>& all) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.width));
  const int64_t heads = c.kv_heads * c.group;
  for (int64_t head = 0; head < heads; ++head)
    for (int64_t t = 0; t < c.queries; ++t) {
      const int64_t row = head * c.queries + t, pair = head / c.group;
      const int64_t limit = c.causal ? c.keys - c.queries + t + 1 : c.keys;
      std::vector<Real> weight(static_cast<size_t>(limit)), exact(static_cast<size_t>(c.value_width), 0);
      Real most = -std::numeric_limits<Real>::infinity(), whole = 0;
      for (int64_t i = 0; i < limit; ++i) {
        Real dot = 0;
        for (int64_t d = 0; d < c.width; ++d) dot += Real(load(c.dtype, query.data(), row * c.width + d)) * Real(load(c.dtype, b.store.key_row(pair, i), d));
        dot *= Real(scale);
        if (c.softcap != 0.0) dot = Real(c.softcap) * std::tanh(dot / Real(c.softcap));
        weight[static_cast<size_t>(i)] = dot;
        most = std::max(most, dot);
      }
      for (Real& w : weight) whole += w = std::exp(w - most);
      for (int64_t i = 0; i < limit; ++i)
        for (int64_t d = 0; d < c.value_width; ++d) exact[static_cast<size_t>(d)] += weight[static_cast<size_t>(i)] / whole * Real(load(c.dtype, b.store.value_row(pair, i), d));
      for (const auto& [who, a] : all) {
        const size_t r = static_cast<size_t>(row);
        if (c.poisoned >= 0 && c.poisoned < limit) {
          expect(a.status[r] == kNonfinite && a.tv[r] == 1.0 && std::isinf(a.error[r]), "%s, %s: row %d is certified beside a NaN", c.name, who, int(row));
          continue;
        }
        Real lost = 0, away = 0;
        int64_t kept = 0;
        for (int64_t i = 0; i < c.keys; ++i) {
          const bool in = a.kept_set[r * static_cast<size_t>(c.keys) + static_cast<size_t>(i)] != 0;
          kept += in;
          if (i < limit && !in) lost += weight[static_cast<size_t>(i)];
        }
        for (int64_t d = 0; d < c.value_width; ++d) {
          const Real off = Real(load(c.dtype, a.output.data(), row * c.value_width + d)) - exact[static_cast<size_t>(d)];
          away += off * off;
        }
        away = std::sqrt(away);
        expect(Real(a.tv[r]) >= lost / whole, "%s, %s: row %d, tv %.17g below the truth, %.17Lg", c.name, who, int(row), a.tv[r], lost / whole);
        expect(Real(a.error[r]) >= away, "%s, %s: row %d, output_error %.9g below the truth, %.9Lg", c.name, who, int(row), a.error[r], away);
        expect(a.tv[r] <= c.epsilon && kept == a.kept[r], "%s, %s: row %d, tv %.9g, kept %d of %d", c.name, who, int(row), a.tv[r], int(a.kept[r]), int(kept));
        expect(a.status[r] == (kept == limit ? kDense : kCertified), "%s, %s: row %d, status %d", c.name, who, int(row), int(a.status[r]));
      }
    }
}

int64_t sparse_rows = 0;

void run(const Case& c, Level level, uint64_t seed) {
  Random random(seed);
  const int64_t bytes = size_of(c.dtype);
  std::vector<uint8_t> query(static_cast<size_t>(c.kv_heads * c.group * c.queries * c.width * bytes));
  std::vector<uint8_t> key(static_cast<size_t>(c.kv_heads * c.keys * c.width * bytes)), value(static_cast<size_t>(c.kv_heads * c.keys * c.value_width * bytes));
  for (int64_t i = 0; i < static_cast<int64_t>(query.size()) / bytes; ++i) store(c.dtype, query.data(), i, sized(random, c.query_size));
  for (int64_t i = 0; i < static_cast<int64_t>(key.size()) / bytes; ++i) store(c.dtype, key.data(), i, sized(random, c.key_size));
  for (int64_t i = 0; i < static_cast<int64_t>(value.size()) / bytes; ++i) store(c.dtype, value.data(), i, sized(random, 1.0));
  if (c.ties)
    for (int64_t i = 1; i < c.kv_heads * c.keys; ++i) std::memcpy(key.data() + i * c.width * bytes, key.data(), static_cast<size_t>(c.width * bytes));
  if (c.poisoned >= 0) store(c.dtype, key.data(), c.poisoned * c.width, std::numeric_limits<double>::quiet_NaN());
  Buffers mine(c.dtype, 1, c.kv_heads, c.keys, c.width, c.value_width), right(c.dtype, 1, c.kv_heads, c.keys, c.width, c.value_width);
  const int64_t some = c.keys * 2 / 3;  // appended in two parts
  for (const auto& [b, at] : {std::pair<Buffers*, Level>{&mine, level}, {&right, Level::Scalar}})
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, some}, {some, c.keys - some}}) {
      const Rows k{key.data() + first * c.width * bytes, 0, c.keys * c.width, c.width};
      const Rows v{value.data() + first * c.value_width * bytes, 0, c.keys * c.value_width, c.value_width};
      append(kernels(at), b->store, k, v, 0, first, count, 2);
    }
  expect(mine.codes == right.codes && mine.marks == right.marks, "%s: codes differ", c.name);
  std::vector<std::pair<const char*, Answers>> all;
  all.emplace_back(name(level), ask(level, mine, c, query, 1));
  all.emplace_back("two threads", ask(level, mine, c, query, 2));
  all.emplace_back("scalar", ask(Level::Scalar, right, c, query, 1));
  for (int32_t kept : all[0].second.kept) sparse_rows += kept < c.keys;
  judge(c, mine, query, all);
}

}  // namespace

int main() {
  const Level level = checks::level_above();
  std::printf("%s and scalar against long double\n", name(level));
  constexpr Dtype f32 = Dtype::Float32, bf16 = Dtype::BFloat16, f16 = Dtype::Float16;
  const std::vector<Case> cases = {
      {"plain", f32, 2, 2, 1, 700, 32, 24, 3.0, 1.0, 0.05},
      {"bfloat16", bf16, 1, 4, 1, 1000, 64, 64, 3.0, 1.0, 0.01},
      {"float16", f16, 1, 3, 2, 520, 40, 17, 3.0, 1.0, 0.1},
      {"odd widths", f32, 1, 2, 3, 389, 13, 5, 4.0, 1.0, 0.02},
      {"one component", bf16, 1, 2, 2, 300, 1, 1, 4.0, 1.0, 0.2},
      {"five queries, causal", f32, 1, 1, 5, 600, 16, 8, 4.0, 1.0, 0.05, true},
      {"ties", f32, 1, 2, 1, 530, 8, 4, 1.0, 1.0, 0.3, false, true},
      {"large logits", f32, 1, 2, 1, 400, 16, 8, 100.0, 100.0, 0.01},
      {"tiny keys", f32, 1, 2, 1, 400, 16, 8, 1.0, 1e-25, 0.3},
      {"denormal keys", f32, 1, 2, 1, 300, 16, 8, 1.0, 1e-40, 0.3},
      {"huge keys, tiny queries", f32, 1, 2, 1, 400, 16, 8, 1e-24, 1e25, 0.05},
      {"huge both", f32, 1, 2, 1, 300, 16, 8, 1e25, 1e25, 0.05},
      {"bfloat16 extremes", bf16, 1, 1, 1, 300, 8, 4, 1e15, 3e37, 0.05},
      {"soft cap", f32, 1, 2, 1, 400, 24, 8, 4.0, 2.0, 0.05, false, false, 8.0},
      {"few keys", f32, 1, 2, 2, 17, 32, 16, 2.0, 1.0, 0.1},
      {"one key", f16, 1, 1, 1, 1, 7, 3, 1.0, 1.0, 0.1},
      {"epsilon 0", bf16, 1, 2, 1, 300, 32, 8, 1.0, 1.0, 0.0},
      {"a NaN", f32, 1, 2, 2, 400, 16, 8, 2.0, 1.0, 0.05, true, false, 0.0, 399},
      {"wide", bf16, 1, 1, 1, 300, 520, 8, 2.0, 1.0, 0.1},
  };
  for (const Case& c : cases) {
    checks::begin(c.name);
    for (uint64_t seed = 1; seed <= 3; ++seed) run(c, level, seed);
  }
  checks::begin("keys left out");
  expect(sparse_rows >= 20, "only %d rows left a key out: the laws of tv had nothing to judge", int(sparse_rows));
  return checks::verdict();
}
