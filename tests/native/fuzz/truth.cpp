// Inner products are exact, the rest is x87's long double with a stated error: a promise counts as broken only where the
// truth, less its own error, is beyond what was promised. That error is far below anything a certificate is short of,
// except with a soft cap or a sink at logits beyond 1e15, whose difference from a logit is rounded.
#include "truth.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "attend.h"
#include "exact.h"

namespace tailbound::fuzz {
namespace {

using Real = long double;
constexpr Real kReal = 0x1p-62L;  // four units of long double
constexpr Real kLowest = -11000.0L;  // exp of less is below long double's normal range

template <class... Parts>
std::string text(const char* format, Parts... parts) {
  char line[256];
  std::snprintf(line, sizeof line, format, parts...);
  return line;
}

std::vector<float> load_all(Dtype dtype, const uint8_t* from, int64_t n) {
  std::vector<float> out(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) out[static_cast<size_t>(i)] = load(dtype, from, i);
  return out;
}

bool all_finite(const float* x, int64_t n) {
  return std::all_of(x, x + n, [](float one) { return finite(one); });
}

struct Row {
  std::vector<float> query, key, value;
  std::vector<int64_t> seen;  // visible keys
  std::vector<Real> weight;   // of each, exp(logit - the largest)
  std::vector<Real> error;    // relative, of each weight
  Real sink = 0.0L, sink_error = 0.0L;
};

// |logit - the one returned| <= *error.
Real logit_of(const RowQuestion& q, const Exact& dot, Real* error) {
  const Real s = dot.rounded() * q.scale;
  *error = std::fabs(s) * kReal;
  if (q.softcap == 0.0) return s;
  const Real cap = q.softcap, x = s / cap;
  const Real slope = std::min(1.0L, 4.0L * std::exp(-2.0L * std::fabs(x) + 1.0L));
  *error = *error * slope + 4.0L * cap * kReal;
  return cap * std::tanh(x);
}

void weigh(const RowQuestion& q, Row& row) {
  const size_t n = row.seen.size();
  std::vector<Exact> dots(n);
  for (size_t i = 0; i < n; ++i)
    for (int64_t d = 0; d < q.width; ++d)
      dots[i].add_product(row.query[static_cast<size_t>(d)], row.key[static_cast<size_t>(row.seen[i] * q.width + d)]);
  row.weight.assign(n, 0.0L);
  row.error.assign(n, 0.0L);
  std::vector<Real> exponent(n);
  if (q.softcap == 0.0 && !q.has_sink) {
    size_t top = 0;
    for (size_t i = 1; i < n; ++i)
      if (q.scale != 0.0 && dots[i].minus(dots[top]).negative() == (q.scale < 0.0)) top = i;
    for (size_t i = 0; i < n; ++i) {
      exponent[i] = std::min(0.0L, dots[i].minus(dots[top]).rounded() * q.scale);
    }
  } else {
    Real most = q.has_sink ? static_cast<Real>(q.sink) : -INFINITY;
    for (size_t i = 0; i < n; ++i) {
      exponent[i] = logit_of(q, dots[i], &row.error[i]);
      most = std::max(most, exponent[i]);
    }
    for (size_t i = 0; i < n; ++i) exponent[i] -= most;
    if (q.has_sink) row.sink = std::exp(std::max(static_cast<Real>(q.sink) - most, kLowest));
    if (q.has_sink) row.sink_error = std::fabs(static_cast<Real>(q.sink) - most) * kReal + kReal;
    if (std::isinf(q.sink)) row.sink = row.sink_error = 0.0L;
  }
  for (size_t i = 0; i < n; ++i) {
    row.error[i] += std::fabs(exponent[i]) * kReal + 4.0L * kReal;
    row.weight[i] = exponent[i] < kLowest ? 0.0L : std::exp(exponent[i]);
  }
}

std::string check_tail(const RowAnswer& a, const Row& row) {
  Real rest = 0.0L, head = row.sink * std::exp(row.sink_error);
  for (size_t i = 0; i < row.seen.size(); ++i) {
    if (a.kept_set[row.seen[i]]) {
      head += std::max(row.weight[i], std::exp(kLowest)) * std::exp(row.error[i]);
    } else {
      rest += row.weight[i] * std::exp(-row.error[i]);
    }
  }
  const Real tail = rest > 0.0L ? rest / (rest + head) * (1.0L - 4096.0L * kReal) : 0.0L;
  if (!(static_cast<Real>(a.tv) >= tail)) return text("tv %.17g below the truth %.17Lg", a.tv, tail);
  return "";
}

std::string check_output(const RowQuestion& q, const RowAnswer& a, const Row& row) {
  const size_t n = row.seen.size();
  Real mass = row.sink, blur = row.sink * row.sink_error;
  for (size_t i = 0; i < n; ++i) {
    mass += row.weight[i];
    blur += row.weight[i] * row.error[i];
  }
  if (!(blur < mass * 1e-6L)) return "";  // nothing is known of the truth
  Real away = 0.0L, own = 0.0L;
  for (int64_t d = 0; d < q.value_width; ++d) {
    Real sum = 0.0L, size = 0.0L, unsure = 0.0L;
    for (size_t i = 0; i < n; ++i) {
      const Real v = row.value[static_cast<size_t>(row.seen[i] * q.value_width + d)];
      sum += row.weight[i] * v;
      size += row.weight[i] * std::fabs(v);
      unsure += row.weight[i] * row.error[i] * std::fabs(v);
    }
    const Real mean = sum / mass, spread = size / mass;
    const Real doubt = 1.01L * (unsure + blur * spread) / mass + 8192.0L * kReal * spread;
    const Real gap = static_cast<Real>(load(q.dtype, a.output, d)) - mean;
    away += gap * gap;
    own += doubt * doubt;
  }
  const Real least = std::sqrt(away) * (1.0L - 4096.0L * kReal) - std::sqrt(own);
  if (!(static_cast<Real>(a.error) >= least)) return text("output_error %.17g below the truth %.17Lg", a.error, least);
  return "";
}

// Whether a float64 on the way may overflow: such a row may say that it is not finite.
bool may_overflow(const RowQuestion& q, const Row& row) {
  Real size = 0.0L, largest = 0.0L;
  for (float x : row.query) size += std::fabs(static_cast<Real>(x));
  for (int64_t i : row.seen)
    for (int64_t d = 0; d < q.width; ++d)
      largest = std::max(largest, std::fabs(static_cast<Real>(row.key[static_cast<size_t>(i * q.width + d)])));
  return size * largest * std::max(1.0L, std::fabs(static_cast<Real>(q.scale))) > 0x1p1000L;
}

}  // namespace

std::string broken_promise(const RowQuestion& q, const RowAnswer& a) {
  Row row;
  int64_t kept = 0;
  for (int64_t i = 0; i < q.keys; ++i) {
    if (q.visible[i]) row.seen.push_back(i);
    if (a.kept_set[i] > 1) return text("kept says %d of key %lld", a.kept_set[i], static_cast<long long>(i));
    if (a.kept_set[i] && !q.visible[i]) return text("key %lld has weight and is hidden", static_cast<long long>(i));
    kept += a.kept_set[i];
  }
  if (row.seen.empty()) {
    const bool zero = std::all_of(a.output, a.output + q.value_width * size_of(q.dtype), [](uint8_t b) { return b == 0; });
    return a.status == kEmpty && a.tv == 0.0 && a.error == 0.0 && a.kept == 0 && zero ? "" : "a row that sees nothing is not EMPTY";
  }
  row.query = load_all(q.dtype, q.query, q.width);
  row.key = load_all(q.dtype, q.key, q.keys * q.width);
  row.value = load_all(q.dtype, q.value, q.keys * q.value_width);
  bool good = all_finite(row.query.data(), q.width);
  for (int64_t i : row.seen)
    good = good && all_finite(&row.key[static_cast<size_t>(i * q.width)], q.width) &&
           all_finite(&row.value[static_cast<size_t>(i * q.value_width)], q.value_width);
  if (a.status == kNonfinite) {
    if (good && !may_overflow(q, row)) return "NONFINITE, and all that it sees is finite";
    return a.tv == 1.0 && a.error == INFINITY ? "" : "NONFINITE with a certificate";
  }
  if (!good) return text("status %d, and it sees something that is not finite", a.status);
  if (a.kept != kept) return text("kept %d, and the set has %lld", a.kept, static_cast<long long>(kept));
  const bool every = kept == static_cast<int64_t>(row.seen.size());
  if (a.status != (every ? kDense : kCertified)) return text("status %d with %lld keys kept", a.status, static_cast<long long>(kept));
  if ((a.tv == 0.0) != every) return text("tv %.17g with %lld keys kept", a.tv, static_cast<long long>(kept));
  if (!(a.tv <= q.epsilon)) return text("tv %.17g above epsilon %.17g", a.tv, q.epsilon);
  weigh(q, row);
  const std::string said = check_tail(a, row);
  return said.empty() ? check_output(q, a, row) : said;
}

}  // namespace tailbound::fuzz
