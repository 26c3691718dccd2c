// The kernels behind the weights, of the level above scalar: the cut, picking and the gather, against what kernels.h promises,
// in float64 (docs/engine.md), and against scalar where there is one right answer.
#include <algorithm>
#include <limits>

#include "checks.h"
#include "numbers.h"

using namespace tailbound;
using checks::begin;
using checks::expect;
using checks::kWidths;
using checks::Random;
using Real = double;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const Kernels& oracle = kScalarKernels;

void cuts(const Kernels& k) {
  begin("cut");
  Random random(6);
  for (int64_t n : {16, 32, 48, 64, 80, 96, 112, 128, 144, 272, 1024, 2048, 2064, 4096, 8208})
    for (int kind = 0; kind < 7; ++kind)
      for (double share : {0.0, 1e-6, 0.01, 0.3, 0.999, 2.0}) {
        std::vector<float> w(static_cast<size_t>(n));
        for (size_t i = 0; i < w.size(); ++i) {
          const double at = static_cast<double>(i) / static_cast<double>(n);
          w[i] = kind == 0   ? static_cast<float>(random.uniform(0.0, 1.0))
                 : kind == 1 ? static_cast<float>(std::exp(random.uniform(-86, 0)))
                 : kind == 2 ? 0.125f
                 : kind == 3 ? static_cast<float>(std::exp(-40 * at))
                 : kind == 4 ? (random.below(3) ? 0.5f : 0.25f)
                 : kind == 5 ? (random.below(4) ? 0.0f : 1e-3f)
                             : (random.below(50) ? 1e-20f : kInf);
          w[i] = w[i] > 0.0f ? std::max(w[i], kLeastWeight) : 0.0f;
        }
        Real whole = 0;
        for (float x : w) whole += x < kInf ? Real(x) : 0;
        const double budget = share * static_cast<double>(whole), rounding = 288 * 0x1p-24 + static_cast<double>(n) * 0x1p-52;
        std::vector<float> scratch(static_cast<size_t>(2 * n + 64));
        double rest = -1.0;
        const Threshold t = k.cut(w.data(), n, budget, scratch.data(), &rest);
        Real out = 0, next = std::numeric_limits<Real>::infinity();
        bool lost = false;
        for (int64_t i = 0; i < n; ++i) {
          const float x = w[static_cast<size_t>(i)];
          if (has_weight(x, i, t)) {
            if (x > 0.0f && x < kInf) next = std::min(next, Real(x));
          } else {
            out += Real(x);
            lost = lost || x == kInf;
          }
        }
        const Real few = Real(budget) * (1 - 4 * Real(rounding));
        // The search compares with the budget itself, and `rest` is rounded up: it may be above by the sums' rounding.
        expect(!lost && Real(rest) >= out && rest <= budget * (1 + 2 * rounding) && out + next > few, "n = %d, kind %d, budget %.9g: rest %.9g, truth %.9g",
               int(n), kind, budget, rest, out);
      }
}

void picks(const Kernels& k) {
  begin("pick");
  Random random(7);
  for (int64_t n = 0; n <= 70; ++n)
    for (int rows : {1, 2, 3, 5, 16})
      for (int64_t first : {int64_t{0}, int64_t{5}, int64_t{16}}) {
        const int64_t stride = 96;
        std::vector<float> w(static_cast<size_t>(rows * stride));
        for (float& x : w) x = static_cast<float>(random.below(40)) / 8;
        std::vector<Threshold> t;
        for (int row = 0; row < rows; ++row) t.push_back({static_cast<float>(random.below(6)) / 8 + 4.0f, random.below(96)});
        std::vector<int32_t> a(96, -1), b(96, -1);
        std::vector<uint16_t> of_a(96, 0), of_b(96, 0);
        const int64_t x = k.pick(w.data(), stride, first, n, rows, t.data(), a.data(), of_a.data());
        const int64_t y = oracle.pick(w.data(), stride, first, n, rows, t.data(), b.data(), of_b.data());
        const bool same = x == y && std::equal(a.begin(), a.begin() + x, b.begin()) && of_a == of_b;
        expect(same, "n = %d, rows %d: %d and %d", int(n), rows, int(x), int(y));
      }
}

void gathers(const Kernels& k) {
  begin("gather");
  Random random(8);
  for (int kind = 0; kind < 420; ++kind) {
    const Dtype dtype = static_cast<Dtype>(kind % 3);
    const int64_t width = kWidths[static_cast<size_t>(random.below(static_cast<int64_t>(kWidths.size())))];
    const int64_t value_width = kWidths[static_cast<size_t>(random.below(static_cast<int64_t>(kWidths.size())))];
    const int rows = static_cast<int>(1 + random.below(kind % 5 ? 6 : 16));
    const int64_t capacity = 768, count = kind % 7 == 0 ? 300 + random.below(400) : 1 + random.below(36);
    const bool picked = kind % 2, far = kind % 11 == 0;
    Store s{};
    s.dtype = dtype, s.batch = s.kv_heads = 1, s.capacity = capacity, s.width = width, s.value_width = value_width, s.page = 256;
    std::vector<uint8_t> keys(static_cast<size_t>(capacity * width * size_of(dtype))), values(static_cast<size_t>(capacity * value_width * size_of(dtype)));
    s.key = keys.data(), s.value = values.data();
    Real longest = 0, value_size = 0;
    for (int64_t i = 0; i < capacity; ++i) {
      Real norm = 0;
      for (int64_t d = 0; d < width; ++d) {
        store(dtype, s.key_row(0, i), d, random.normal() * (far ? 6.0 : 1.0));
        norm += Real(load(dtype, s.key_row(0, i), d)) * Real(load(dtype, s.key_row(0, i), d));
      }
      longest = std::max(longest, std::sqrt(norm));
      for (int64_t d = 0; d < value_width; ++d) {
        store(dtype, s.value_row(0, i), d, random.below(40) ? random.normal() : 3e-7);
        value_size = std::max(value_size, std::fabs(Real(load(dtype, s.value_row(0, i), d))));
      }
    }
    const int64_t padded = (width + 15) / 16 * 16, origin = 16, room = capacity - origin;
    std::vector<float> query(static_cast<size_t>(rows * padded), 0.0f), exact = query;
    const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(width)));
    std::vector<Real> norm(static_cast<size_t>(rows), 0);
    for (int row = 0; row < rows; ++row)
      for (int64_t d = 0; d < width; ++d) {
        const size_t at = static_cast<size_t>(row * padded + d);
        exact[at] = bfloat16_float(to_bfloat16(static_cast<float>(random.normal())));
        query[at] = scale * exact[at];
        norm[static_cast<size_t>(row)] += Real(exact[at]) * Real(exact[at]);
      }
    std::vector<uint16_t> of(static_cast<size_t>(count));
    for (uint16_t& rows_of : of) rows_of = static_cast<uint16_t>(random.below(int64_t{1} << rows));
    std::vector<int64_t> limit;
    for (int row = 0; row < rows; ++row) limit.push_back(origin + random.below(count + 8));
    std::vector<int32_t> index;
    for (int64_t i = 0; i < count; ++i) index.push_back(static_cast<int32_t>(i * (room / count) + random.below(room / count)));
    std::vector<float> shift(static_cast<size_t>(rows), -kInf);
    std::vector<double> mass(static_cast<size_t>(rows), 0.0), sums(static_cast<size_t>(rows * value_width), 0.0);
    std::vector<int32_t> kept(static_cast<size_t>(rows), 0);
    Gather g{};
    g.store = &s, g.index = picked ? index.data() : nullptr, g.first = origin, g.count = count, g.rows = rows;
    g.query = query.data(), g.exact = exact.data(), g.scale = scale, g.query_stride = padded;
    g.members = picked ? of.data() : nullptr, g.origin = origin, g.limit = limit.data();
    g.shift = shift.data(), g.mass = mass.data(), g.sums = sums.data(), g.kept = kept.data();
    k.gather(g);
    for (int row = 0; row < rows; ++row) {
      const size_t r = static_cast<size_t>(row);
      Real total = 0;
      std::vector<Real> sum(static_cast<size_t>(value_width), 0);
      int32_t members = 0;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = picked ? origin + index[static_cast<size_t>(i)] : origin + i;
        if (picked ? !(of[static_cast<size_t>(i)] >> row & 1) : at >= limit[r]) continue;
        ++members;
        Real logit = 0;
        for (int64_t d = 0; d < width; ++d) logit += Real(exact[r * static_cast<size_t>(padded) + static_cast<size_t>(d)]) * Real(load(dtype, s.key_row(0, at), d));
        const Real weight = std::exp(Real(scale) * logit - Real(shift[r]));
        total += weight;
        for (int64_t d = 0; d < value_width; ++d) sum[static_cast<size_t>(d)] += weight * Real(load(dtype, s.value_row(0, at), d));
      }
      expect(kept[r] == members, "kept: %d, not %d", int(kept[r]), int(members));
      if (!members) continue;
      const Real eta = Real(gamma32(k.logit_roundings(width))) * Real(scale) * std::sqrt(norm[r]) * longest + Real(kWeightRelative);
      const Real relative = std::exp(eta) - 1 + Real(gamma32(kSumRoundings)) + 0x1p-40, lost = Real(members) * Real(kLeastWeight);
      expect(std::fabs(Real(mass[r]) - total) <= relative * total + lost, "mass: %.9g, not %.9g", mass[r], total);
      for (int64_t d = 0; d < value_width; ++d) {
        const Real off = std::fabs(Real(sums[r * static_cast<size_t>(value_width) + static_cast<size_t>(d)]) - sum[static_cast<size_t>(d)]);
        expect(off <= (relative * total + lost) * value_size, "sum %d of %d: off by %.3g of %.3g", int(d), int(value_width), off, total);
      }
    }
  }
  begin("logit_roundings");  // a chain of fused multiply-adds a chunk, and more than the tree behind it
  for (int64_t width : kWidths) expect(k.logit_roundings(width) >= static_cast<double>((width + 15) / 16) + 5.0, "width %d", int(width));
}

}  // namespace

int main(int count, char** names) { return checks::run({{"cuts", cuts}, {"picks", picks}, {"gathers", gathers}}, count, names); }
