#include "rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "coding.h"

namespace tailbound {
namespace {

constexpr double kRound32 = 0x1p-20;  // 16 units of float32: 6 roundings up to the middle, the ends, and some to spare
constexpr double kWide32 = 0x1p100;    // sums and products below it stay inside float32
constexpr double kFloor32 = 0x1p-90;  // underflow in float32: below 2^-126 times a product of integers below 2^31

}  // namespace

Tile::Tile(const Kernels& k, const Store& s, const Request& r, int64_t p, int64_t first, int count)
    : kernels(k), store(s), request(r), pair(p), rows(count), row(static_cast<size_t>(count)), padded((s.width + 15) / 16 * 16) {
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
    out.epsilon = r.epsilons ? r.epsilons[out.head] : r.epsilon;
    out.sink = r.sink ? r.sink[(out.batch * r.heads + out.head) * r.queries + out.query]
                      : -std::numeric_limits<double>::infinity();
  }
}

void Tile::plan(int i) {
  Row& r = row[static_cast<size_t>(i)];
  const int64_t width = store.width;
  double* q = query.data() + i * width;
  const uint8_t* from = request.query + (r.batch * request.query_batch_stride + r.head * request.query_head_stride +
                                         r.query * request.query_row_stride) * size_of(store.dtype);
  r.finite = widen(store.dtype, from, width, q);
  if (!r.finite) std::fill_n(q, width, 0.0);
  std::vector<double> scratch(static_cast<size_t>(2 * width));
  const CodedQuery coded = kernels.code_query(q, width, scratch.data(), planes.data() + 8 * i, 8 * rows, &words[2 * i]);
  r.norm = coded.norm;
  r.unit = coded.unit;
  r.coding = coded.error;

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
  r.plain = top < 0x1p100 && key < 0x1p100 && product < 0x1p100 && r.norm < 0x1p100 && r.norm * key < 0x1p100 &&
            value < 0x1p110 && r.eta < 0x1p-8 && store.bounds[pair * 4 + 3] == 0.0 &&
            request.softcap == 0.0;
}

void Tile::terms(int64_t page, Terms* out) const {
  const float* center = store.page_center(pair, page);
  const int64_t width = store.width;
  double products[kMaxRows + 1];
  kernels.center_products(center, width, query.data(), rows, products);
  const double center_norm = up(std::sqrt(products[rows]) * (1.0 + gamma(static_cast<double>(width) + 16.0)));
  const double key = store.bounds[pair * 4 + 2];
  for (int i = 0; i < rows; ++i) {
    const Row& r = row[static_cast<size_t>(i)];
    const double base = products[i] * request.scale;
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
