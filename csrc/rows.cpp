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

}  // namespace

Tile::Tile(const Store& s, const Request& r, int64_t p, int64_t first, int count)
    : store(s), request(r), pair(p), rows(count), row(static_cast<size_t>(count)), padded((s.width + 15) / 16 * 16) {
  query.resize(static_cast<size_t>(rows * s.width));
  scaled.assign(static_cast<size_t>(rows * padded), 0.0f);
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
  }
  const double own = up(r.norm * gamma(static_cast<double>(width) + 2) * std::sqrt(2.0 * static_cast<double>(width)) * kMore);
  const double parts = up(norm_up(turned.data(), width) * gamma(4));
  r.coding = up(up(norm_up(word.data(), width) + own) + parts);

  // The gather's own error, and whether float32 can hold what it computes.
  const double scale = request.scale, key = store.bounds[pair * 4 + 2], size = std::fabs(scale);
  double top = 0.0;
  for (int64_t d = 0; d < width; ++d) {
    const double x = q[d] * scale;
    top = std::max(top, std::fabs(x));
    scaled[static_cast<size_t>(i * padded + d)] = static_cast<float>(x);
  }
  const double flush = flush_norm(static_cast<double>(width));
  const double product = up(r.norm * up(size * key));
  const double flushed = up(up(up(r.norm + key) + flush) * up(flush * size)) + up(flush * key);
  const double rounded = up(product * (gamma32(kernels.logit_roundings(width)) + gamma(static_cast<double>(width) + 4)));
  r.eta = up(up(rounded + flushed) + static_cast<double>(width) * kInputFlush + kFloor + kWeightRelative);
  const double value = store.bounds[pair * 4 + 1];
  r.plain = top < 0x1p100 && key < 0x1p100 && product < 0x1p100 && value < 0x1p110 && r.eta < 0x1p-8 &&
            store.bounds[pair * 4 + 3] == 0.0 && request.softcap == 0.0;
}

void Tile::terms(int64_t page, Terms* out) const {
  const float* center = store.page_center(pair, page);
  const int64_t width = store.width;
  std::vector<double> wide(center, center + width);
  const double center_norm = norm_up(wide.data(), width), flush = flush_norm(static_cast<double>(width));
  const double scale = request.scale, size = std::fabs(scale), key = store.bounds[pair * 4 + 2];
  for (int i = 0; i < rows; ++i) {
    const Row& r = row[static_cast<size_t>(i)];
    const double* q = query.data() + i * width;
    double dot = 0.0;
    for (int64_t d = 0; d < width; ++d) dot += q[d] * wide[d];
    const double base = dot * scale, unit = scale * r.unit;
    // |t w| is at most the norm of H q, which is at most sqrt(2) |q|, and |e|.
    const double spoken = up(up(1.5 * r.norm) + r.coding);
    const double base_error = up(up(r.norm * center_norm) * gamma(static_cast<double>(width) + 4)) * size;
    const double flushed = up(up(up(r.norm + key) + up(center_norm + flush)) * up(flush * size));
    const double more = 1.0 + kRound32;
    out[i].base = static_cast<float>(base);
    out[i].unit = static_cast<float>(unit);
    out[i].residual = float_up(up(r.norm * size) * more);
    // A unit below float32's normal range may be read as zero: |w| |z| h of it is lost.
    const double lost = 0x1p-126 * kWordMax * std::sqrt(static_cast<double>(width)) * kMore;
    out[i].extent = float_up(up(up(up(r.coding + up(spoken * kRound32)) * size) + lost) * more);
    out[i].error = float_up(up(up(up(std::fabs(base) * kRound32) + up(base_error)) + up(flushed + kFloor32)) * more);
    // No finite end where float32 could overflow: an end of -inf would be taken for a hidden key. |h z| is below
    // 1.5 |k - c|, |z| below 2^13.
    const double product = spoken * size * std::max(0x1p13, 1.5 * (key + center_norm));
    if (!(std::fabs(base) < kWide32 && product < kWide32)) out[i].error = std::numeric_limits<float>::infinity();
  }
}

}  // namespace tailbound
