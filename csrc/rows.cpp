#include "rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "coding.h"

namespace tailbound {
namespace {

constexpr double kWordMax = 63.0 * 64.0 + 31.0;
constexpr double kRound32 = 0x1p-20;  // 16 units of float32: 6 roundings up to the middle, the ends, and some to spare
constexpr double kWide32 = 0x1p100;    // sums and products below it stay inside float32
constexpr double kFloor32 = 0x1p-90;  // underflow in float32: below 2^-126 times a product of integers below 2^31

// In float64, eight sums.
template <class T>
double dot(const T* a, const float* b, int64_t n) {
  double sums[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int j = 0; j < 8; ++j) sums[j] += static_cast<double>(a[i + j]) * static_cast<double>(b[i + j]);
  for (; i < n; ++i) sums[0] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

}  // namespace

Tile::Tile(const Store& s, const Request& r, int64_t p, int64_t first, int count)
    : store(s), request(r), pair(p), rows(count), row(static_cast<size_t>(count)), padded((s.width + 15) / 16 * 16) {
  query.resize(static_cast<size_t>(rows * s.width));
  scaled.assign(static_cast<size_t>(rows * padded), 0.0f);
  exact = scaled;
  words.assign(static_cast<size_t>(2 * rows), 0);
  planes.assign(static_cast<size_t>((s.width + 3) / 4 * 4 * rows * 2), 0);
  const int64_t group = r.heads / s.kv_heads;
  for (int i = 0; i < rows; ++i) {
    Row& out = row[static_cast<size_t>(i)];
    const int64_t flat = first + i;
    out.batch = p / s.kv_heads;
    out.head = p % s.kv_heads * group + flat / r.queries;
    out.query = flat % r.queries;
    out.limit = r.causal ? std::max(r.start, r.stop - r.queries + out.query + 1) : r.stop;
    out.visible = out.limit - r.start;
    out.sink = r.sink ? r.sink[(out.batch * r.heads + out.head) * r.queries + out.query]
                      : -std::numeric_limits<double>::infinity();
  }
}

void Tile::plan(const Kernels& kernels, int i) {
  Row& r = row[static_cast<size_t>(i)];
  const int64_t width = store.width;
  double* q = query.data() + i * width;
  const uint8_t* from = request.query + (r.batch * request.query_batch_stride + r.head * request.query_head_stride +
                                         r.query * request.query_row_stride) * size_of(store.dtype);
  r.finite = true;
  for (int64_t d = 0; d < width; ++d) {
    const float x = load(store.dtype, from, d);
    r.finite = r.finite && finite(x);
    q[d] = static_cast<double>(x);
  }
  if (!r.finite) std::fill_n(q, width, 0.0);
  r.norm = norm_up(q, width);

  // Words of H q (bounds/interval.py).
  std::vector<double> turned(q, q + width), word(static_cast<size_t>(width));
  rotate(turned.data(), width);
  double largest = 0.0;
  for (double x : turned) largest = std::max(largest, std::fabs(x));
  r.unit = largest / kWordMax;
  if (!(r.unit > 0.0)) r.unit = 1.0;
  for (int64_t d = 0; d < width; ++d) {
    const double w = std::min(std::max(round_even(turned[d] / r.unit), -kWordMax), kWordMax);
    word[d] = turned[d] - r.unit * w;
    const int whole = static_cast<int>(w), coarse = (whole + 32) >> 6;
    int8_t* plane = planes.data() + ((d / 4 * rows + i) * 2) * 4 + d % 4;
    plane[0] = static_cast<int8_t>(coarse);
    plane[4] = static_cast<int8_t>(whole - 64 * coarse);
    words[static_cast<size_t>(2 * i)] += coarse;
    words[static_cast<size_t>(2 * i + 1)] += whole - 64 * coarse;
  }
  const double own = up(r.norm * gamma(static_cast<double>(width) + 2) * std::sqrt(2.0 * static_cast<double>(width)) * kMore);
  const double parts = up(norm_up(turned.data(), width) * gamma(4));
  r.coding = up(up(norm_up(word.data(), width) + own) + parts);

  // What of the interval is the same on all pages (docs/engine.md).
  const double magnitude = std::fabs(request.scale), wide = static_cast<double>(width);
  const double denormal = up(flush_norm(wide) * magnitude);
  // |t w| is at most the norm of H q, which is at most sqrt(2) |q|, and |e|.
  r.spoken = up(up(up(1.5 * r.norm) + r.coding) * magnitude);
  // A unit below float32's normal range may be read as zero: |w| |z| h of it is lost.
  const double lost = 0x1p-126 * kWordMax * std::sqrt(wide) * kMore;
  r.error_of_center = up(up(r.norm * up(gamma(wide + 16) * magnitude)) + denormal);
  r.error = up(up(up(up(r.norm + store.bounds[pair * 4 + 2]) + flush_norm(wide)) * denormal) + kFloor32);
  r.terms.base = r.terms.error = 0.0f;
  r.terms.unit = static_cast<float>(request.scale * r.unit);
  r.terms.residual = float_up(up(r.norm * magnitude) * (1.0 + kRound32));
  r.terms.extent = float_up(up(up(up(r.coding * magnitude) + up(r.spoken * kRound32)) + lost) * (1.0 + kRound32));

  // The gather's own error, and whether float32 can hold what it computes.
  const double scale = request.scale, key = store.bounds[pair * 4 + 2], size = std::fabs(scale);
  double top = 0.0;
  for (int64_t d = 0; d < width; ++d) {
    const double x = q[d] * scale;
    top = std::max(top, std::fabs(x));
    scaled[static_cast<size_t>(i * padded + d)] = static_cast<float>(x);
    exact[static_cast<size_t>(i * padded + d)] = static_cast<float>(q[d]);
  }
  const double flush = flush_norm(static_cast<double>(width));
  const double product = up(r.norm * up(size * key));
  const double flushed = up(up(up(r.norm + key) + flush) * up(flush * size)) + up(flush * key);
  const double rounded = up(product * (gamma32(kernels.logit_roundings(width)) + gamma(static_cast<double>(width) + 4)));
  r.eta = up(up(rounded + flushed) + static_cast<double>(width) * kInputFlush * std::max(1.0, size) + kFloor + kWeightRelative);
  const double value = store.bounds[pair * 4 + 1];
  r.plain = top < 0x1p100 && key < 0x1p100 && product < 0x1p100 && r.norm < 0x1p100 && r.norm * key < 0x1p100 && value < 0x1p110 && r.eta < 0x1p-8 &&
            store.bounds[pair * 4 + 3] == 0.0 && request.softcap == 0.0;
}

void Tile::terms(int64_t page, Terms* out) const {
  const float* center = store.page_center(pair, page);
  const int64_t width = store.width;
  const double center_norm = up(std::sqrt(dot(center, center, width)) * (1.0 + gamma(static_cast<double>(width) + 16.0)));
  const double key = store.bounds[pair * 4 + 2];
  for (int i = 0; i < rows; ++i) {
    const Row& r = row[static_cast<size_t>(i)];
    const double base = dot(query.data() + i * width, center, width) * request.scale;
    const double error = std::fabs(base) * kRound32 + r.error_of_center * center_norm + r.error;
    out[i] = r.terms;
    out[i].base = static_cast<float>(base);
    out[i].error = float_up(up(error * (1.0 + kRound32)) * kMore);
    // No finite end where float32 could overflow: an end of -inf would be taken for a hidden key. |h z| is below
    // 1.5 |k - c|, |z| below 2^13.
    const double product = r.spoken * std::max(0x1p13, 1.5 * (key + center_norm));
    if (!(std::fabs(base) < kWide32 && product < kWide32)) out[i].error = std::numeric_limits<float>::infinity();
  }
}

}  // namespace tailbound
