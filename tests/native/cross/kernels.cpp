// The kernels up to the weights, of the level above scalar, against the scalar oracle and against what kernels.h promises. Integers and codes
// are equal bit for bit; floats in float32 are held to float64, within the roundings named in docs/engine.md, and those in
// float64 to long double. Lengths run over every tail of a vector.
#include <algorithm>
#include <cstring>
#include <limits>

#include "checks.h"

using namespace tailbound;
using checks::begin;
using checks::expect;
using checks::kWidths;
using checks::Random;
using Real = double;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr Real kUnitRoundoff = 0x1p-24;
constexpr uint16_t kOne = 0x3f80;  // 1 in bfloat16

const Kernels& oracle = kScalarKernels;

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

double number(Random& random, int kind) {
  switch (kind) {
    case 0: return random.normal();
    case 1: return random.normal() * 1e-25;
    case 2: return random.normal() * 1e25;
    case 3: return random.below(8) ? 0.01 * random.normal() : 1e4 * random.normal();
    case 4: return static_cast<double>(static_cast<float>(random.normal() * 1e-40));  // denormal in float32
    case 5: return 0.0;
    default: return random.below(2) ? 1.0 : -1.0;
  }
}

void codes(const Kernels& k) {
  Random random(2);
  begin("code_key");
  for (int64_t width : kWidths)
    for (int kind = 0; kind < 7; ++kind)
      for (int64_t lane : {int64_t{0}, int64_t{7}, int64_t{15}}) {
        std::vector<double> key(static_cast<size_t>(width)), scratch(static_cast<size_t>(3 * width));
        std::vector<float> center(key.size());
        for (double& x : key) x = static_cast<double>(static_cast<float>(number(random, kind)));
        for (float& x : center) x = kind == 6 ? 0.0f : static_cast<float>(0.5 * number(random, kind));
        std::vector<int8_t> a(static_cast<size_t>(kBlock * width), 0), b = a;
        std::vector<uint16_t> marks_a(3 * kBlock, 0), marks_b = marks_a;
        k.code_key(key.data(), center.data(), width, scratch.data(), a.data(), lane, marks_a.data());
        oracle.code_key(key.data(), center.data(), width, scratch.data(), b.data(), lane, marks_b.data());
        expect(same_bits(a, b) && same_bits(marks_a, marks_b), "width %d, kind %d, lane %d", int(width), kind, int(lane));
      }
  begin("code_query");
  for (int64_t width : kWidths)
    for (int kind = 0; kind < 7; ++kind) {
      std::vector<double> query(static_cast<size_t>(width)), scratch(static_cast<size_t>(2 * width));
      for (double& x : query) x = static_cast<double>(static_cast<float>(number(random, kind)));
      const int64_t stride = 8 * 3;
      std::vector<int8_t> a(static_cast<size_t>((width + 3) / 4 * stride), 0), b = a;
      std::vector<int32_t> words_a(2), words_b(2);
      const CodedQuery x = k.code_query(query.data(), width, scratch.data(), a.data() + 8, stride, words_a.data());
      const CodedQuery y = oracle.code_query(query.data(), width, scratch.data(), b.data() + 8, stride, words_b.data());
      const bool same = std::memcmp(&x, &y, sizeof(x)) == 0;
      expect(same && same_bits(a, b) && same_bits(words_a, words_b), "width %d, kind %d", int(width), kind);
    }
  begin("center_products");
  for (int64_t width : kWidths)
    for (int kind : {0, 1, 2, 3, 6}) {
      const int rows = 3;
      std::vector<double> queries(static_cast<size_t>(rows * width));
      std::vector<float> center(static_cast<size_t>(width));
      for (double& x : queries) x = number(random, kind);
      for (float& x : center) x = static_cast<float>(number(random, kind));
      double out[rows + 1];
      k.center_products(center.data(), width, queries.data(), rows, out);
      using Exact = long double;
      for (int row = 0; row <= rows; ++row) {
        Exact sum = 0, size = 0;
        for (size_t d = 0; d < center.size(); ++d) {
          const Exact product = Exact(center[d]) * (row < rows ? Exact(queries[static_cast<size_t>(row) * center.size() + d]) : Exact(center[d]));
          sum += product;
          size += std::fabs(product);
        }
        expect(std::fabs(Exact(out[row]) - sum) <= Exact(width + 2) * 0x1p-52 * size, "width %d, kind %d", int(width), kind);
      }
    }
}

// Blocks of one page with random codes and marks, and rows that ask.
struct Page {
  int64_t blocks, width;
  int rows;
  std::vector<int8_t> codes, planes;
  std::vector<uint16_t> marks;
  std::vector<int32_t> words;
  std::vector<Terms> terms;

  Page(Random& random, int64_t b, int64_t w, int r, bool extreme) : blocks(b), width(w), rows(r) {
    const auto at_random = [&](int most) {
      return static_cast<int8_t>(!extreme ? random.below(2 * most + 1) - most : random.below(2) ? most : -most);
    };
    codes.resize(static_cast<size_t>(blocks * kBlock * width) + 64);
    for (int8_t& c : codes) c = at_random(127);
    planes.assign(static_cast<size_t>((width + 3) / 4 * rows * 8), 0);
    words.assign(static_cast<size_t>(2 * rows), 0);
    for (int row = 0; row < rows; ++row)
      for (int64_t d = 0; d < width; ++d)
        for (int plane = 0; plane < 2; ++plane) {
          const int8_t word = at_random(plane ? 32 : 63);
          planes[static_cast<size_t>((d / 4 * rows + row) * 8 + 4 * plane + d % 4)] = word;
          words[static_cast<size_t>(2 * row + plane)] += word;
        }
    marks.resize(static_cast<size_t>(blocks * 3 * kBlock));
    for (uint16_t& m : marks) m = bfloat16_up(random.uniform(0.25, 2.0) * 1e-3);
    for (int row = 0; row < rows; ++row)
      terms.push_back({static_cast<float>(3.0 * random.normal()), static_cast<float>(random.uniform(0.1, 2.0) * 1e-3),
                       static_cast<float>(random.uniform(0.5, 30.0)), static_cast<float>(random.uniform(0.01, 1.0)),
                       static_cast<float>(random.uniform(0.5, 2.0) * 1e-3)});
  }

  int64_t keys() const { return blocks * kBlock; }
  const uint16_t* mark(int64_t key) const { return marks.data() + key / kBlock * 3 * kBlock + key % kBlock; }

  Real bracket(int row, int64_t key) const {
    const Terms& t = terms[static_cast<size_t>(row)];
    return Real(t.residual) * bfloat16_float(mark(key)[kBlock]) + Real(t.extent) * bfloat16_float(mark(key)[2 * kBlock]) + Real(t.error);
  }

  Real upper(int row, int64_t key, Real* size) const {
    int64_t product = 0;
    const int8_t* block = codes.data() + key / kBlock * kBlock * width;
    for (int64_t d = 0; d < width; ++d) {
      const int8_t* word = planes.data() + (d / 4 * rows + row) * 8 + d % 4;
      product += int64_t{block[code_place(width, key % kBlock, d)]} * (64 * word[0] + word[4]);
    }
    const Terms& t = terms[static_cast<size_t>(row)];
    const Real scaled = Real(t.unit) * Real(product) * Real(bfloat16_float(mark(key)[0]));
    *size = std::fabs(Real(t.base)) + std::fabs(scaled) + bracket(row, key);
    return Real(t.base) + scaled + bracket(row, key);
  }

  std::vector<float> scan(const Kernels& k, int64_t stride) const {
    std::vector<float> out(static_cast<size_t>(rows * stride), kNan);
    k.scan(codes.data(), marks.data(), blocks, width, planes.data(), words.data(), rows, terms.data(), out.data(), stride);
    return out;
  }
};

void scans(const Kernels& k) {
  Random random(3);
  begin("scan, integers");
  for (int64_t width : kWidths)
    for (int rows : {1, 2, 3, 4, 5, 7, 8, 16})
      for (bool extreme : {false, true}) {
        Page page(random, 1 + random.below(3), width, rows, extreme);
        for (size_t i = 0; i < page.marks.size(); ++i) page.marks[i] = i / kBlock % 3 == 0 ? kOne : 0;
        for (Terms& t : page.terms) t = {0.0f, 1.0f, 0.0f, 0.0f, 0.0f};
        const int64_t stride = page.keys() + 16;
        const std::vector<float> a = page.scan(k, stride), b = page.scan(oracle, stride);
        for (int row = 0; row < rows; ++row)
          for (int64_t i = 0; i < stride; ++i) {  // beyond the page nothing is written
            const float x = a[static_cast<size_t>(row * stride + i)], y = b[static_cast<size_t>(row * stride + i)];
            expect(i < page.keys() ? x == y : std::isnan(x), "width %d, row %d of %d, key %d: %.9g, not %.9g", int(width), row, rows,
                   int(i), double(x), double(y));
          }
      }
  begin("scan");
  for (int64_t width : kWidths)
    for (int rows : {1, 3, 4, 6}) {
      Page page(random, 1 + random.below(5), width, rows, random.below(2) == 1);
      const std::vector<float> a = page.scan(k, page.keys());
      for (int row = 0; row < rows; ++row)
        for (int64_t i = 0; i < page.keys(); ++i) {
          Real size = 0;
          const Real truth = page.upper(row, i, &size), off = std::fabs(Real(a[static_cast<size_t>(row * page.keys() + i)]) - truth);
          expect(off <= 7 * kUnitRoundoff * size, "width %d, row %d, key %d: off by %.3g units", int(width), row, int(i),
                 double(off / (kUnitRoundoff * size)));
        }
    }
}

void tops(const Kernels& k) {
  begin("top");
  Random random(4);
  for (int64_t n = 16; n <= 160; n += 16)
    for (int kind = 0; kind < 6; ++kind)
      for (int64_t place = 0; place < n; ++place) {
        std::vector<float> x(static_cast<size_t>(n));
        for (float& e : x) e = kind == 5 ? -kInf : static_cast<float>(random.normal() - 3.0);
        x[static_cast<size_t>(place)] = kind == 0 ? 9.0f : kind == 1 ? kInf : kind == 2 ? kNan : kind == 3 ? -kInf : -9.0f;
        expect(k.top(x.data(), n) == oracle.top(x.data(), n), "n = %d, kind %d, place %d", int(n), kind, int(place));
      }
}

// What a weight must be, for an end and a level: at least exp(end - level), and not much more.
bool right_weight(float weight, float end, float level) {
  if (end == -kInf) return weight == 0.0f;
  if (!(end < kInf)) return weight == kInf;
  const Real least = std::exp(Real(end) - Real(level));
  return Real(weight) >= least && weight >= 0x1p-126f && Real(weight) <= std::max(least * (1 + 0x1p-14), Real(kLeastWeight));
}

void weights(const Kernels& k) {
  Random random(5);
  begin("weigh");
  for (int rows = 1; rows <= 9; ++rows)
    for (int64_t blocks = 1; blocks <= 9; ++blocks)
      for (int kind = 0; kind < 5; ++kind) {
        Page page(random, blocks, 4, rows, false);
        const int64_t n = page.keys();
        std::vector<float> ends(static_cast<size_t>(rows * n)), level(static_cast<size_t>(rows));
        for (float& l : level) l = static_cast<float>(random.uniform(-1, 1) * (kind == 3 ? 1e4 : 10));
        for (int row = 0; row < rows; ++row)
          for (int64_t i = 0; i < n; ++i) {
            float& end = ends[static_cast<size_t>(row * n + i)];
            end = level[static_cast<size_t>(row)] + static_cast<float>(random.uniform(kind == 1 ? -200 : -20, 8));
            if (end - level[static_cast<size_t>(row)] > kLevelSlack) end = level[static_cast<size_t>(row)];
            if (kind == 2 && random.below(5) == 0) end = -kInf;
            if (kind == 4 && random.below(9) == 0) end = random.below(2) ? kNan : kInf;
          }
        std::vector<float> a = ends, b = ends;
        std::vector<double> sure(static_cast<size_t>(rows), 0.0), right = sure;
        const bool infinite = k.weigh(a.data(), n, page.marks.data(), blocks, rows, page.terms.data(), level.data(), sure.data());
        expect(infinite == oracle.weigh(b.data(), n, page.marks.data(), blocks, rows, page.terms.data(), level.data(), right.data()),
               "rows %d, blocks %d, kind %d: infinite is %d", rows, int(blocks), kind, int(infinite));
        for (int row = 0; row < rows; ++row) {
          Real most = 0;
          for (int64_t i = 0; i < n; ++i) {
            const size_t at = static_cast<size_t>(row * n + i);
            expect(right_weight(a[at], ends[at], level[static_cast<size_t>(row)]), "kind %d: %.9g for %.9g at %.9g", kind, double(a[at]),
                   double(ends[at]), double(level[static_cast<size_t>(row)]));
            if (std::fabs(ends[at]) < kInf)
              most += std::exp(Real(ends[at]) - 2 * page.bracket(row, i) - Real(level[static_cast<size_t>(row)]));
          }
          const double mine = sure[static_cast<size_t>(row)];
          expect(Real(mine) <= most && mine >= 0.95 * right[static_cast<size_t>(row)], "kind %d, sure: %.9g, truth %.9g", kind, mine, most);
        }
      }
  begin("scan_weights");
  for (int64_t width : kWidths)
    for (int rows : {1, 2, 3, 4, 5, 8, 13})
      for (int kind = 0; kind < 3; ++kind) {
        Page page(random, 1 + random.below(9), width, rows, false);
        if (kind == 1) page.terms[static_cast<size_t>(rows - 1)].error = kInf;
        if (kind == 2) page.marks[static_cast<size_t>(random.below(page.blocks) * 3 * kBlock + kBlock + random.below(kBlock))] = 0x7fc0;
        const int64_t n = page.keys();
        const std::vector<float> ends = page.scan(k, n);
        std::vector<float> level(static_cast<size_t>(rows)), found(level), w(ends.size());
        for (int row = 0; row < rows; ++row) level[static_cast<size_t>(row)] = k.top(ends.data() + row * n, n);
        if (kind)
          for (float& l : level) l = l < kInf ? l : 0.0f;
        std::vector<double> sure(static_cast<size_t>(rows), 0.0);
        const bool good = k.scan_weights(page.codes.data(), page.marks.data(), page.blocks, width, page.planes.data(), page.words.data(),
                                         rows, page.terms.data(), level.data(), w.data(), n, found.data(), sure.data());
        expect(good == (kind == 0), "width %d, rows %d, kind %d: %d", int(width), rows, kind, int(good));
        if (kind) continue;
        for (int row = 0; row < rows; ++row) {
          Real most = 0;
          for (int64_t i = 0; i < n; ++i) {
            const size_t at = static_cast<size_t>(row * n + i);
            expect(right_weight(w[at], ends[at], level[static_cast<size_t>(row)]), "%.9g for %.9g", double(w[at]), double(ends[at]));
            most += std::exp(Real(ends[at]) - 2 * page.bracket(row, i) - Real(level[static_cast<size_t>(row)]));
          }
          const size_t r = static_cast<size_t>(row);
          expect(found[r] == level[r], "top: %.9g, not %.9g", double(found[r]), double(level[r]));
          expect(Real(sure[r]) <= most && Real(sure[r]) >= 0.5 * most, "sure: %.9g, truth %.9g", sure[r], most);
        }
      }
  begin("shrink");
  for (int64_t n = 0; n <= 40; ++n)
    for (float factor : {1.0f, 0.7f, 1e-3f, 1e-30f}) {
      std::vector<float> before(static_cast<size_t>(n));
      for (float& w : before) w = random.below(4) == 0 ? 0.0f : static_cast<float>(std::exp(random.uniform(-86, 0)));
      std::vector<float> after = before;
      k.shrink(after.data(), n, factor);
      for (size_t i = 0; i < after.size(); ++i) {
        const Real least = Real(before[i]) * Real(factor);
        const bool good = before[i] == 0.0f ? after[i] == 0.0f
                                            : Real(after[i]) >= least && after[i] >= 0x1p-126f &&
                                                  Real(after[i]) <= std::max(least * (1 + 0x1p-20), Real(kLeastWeight));
        expect(good, "n = %d: %.9g times %.9g is %.9g", int(n), double(before[i]), double(factor), double(after[i]));
      }
    }
}

}  // namespace

int main(int count, char** names) {
  return checks::run({{"codes", codes}, {"scans", scans}, {"tops", tops}, {"weights", weights}}, count, names);
}
