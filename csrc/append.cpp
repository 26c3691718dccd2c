#include "append.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "threads.h"

namespace tailbound {
namespace {

constexpr int64_t kOwnCenter = 4;  // a page begun with fewer than a fourth of its keys takes the centre before it

struct Appending {
  const Kernels& kernels;
  const Store& s;
  const Rows& key;
  const Rows& value;
  int64_t start, stop, count;

  const uint8_t* row(const Rows& rows, int64_t pair, int64_t i) const {
    const int64_t at = pair / s.kv_heads * rows.batch_stride + pair % s.kv_heads * rows.head_stride + i * rows.row_stride;
    return rows.data + at * size_of(s.dtype);
  }

  void pair(int64_t p) const {
    std::vector<double> buffer(static_cast<size_t>(4 * s.width + 2 * s.value_width));
    double* k = buffer.data();
    double* scratch = k + s.width;
    double* v = scratch + 3 * s.width;
    double* away = v + s.value_width;
    std::vector<uint8_t> usable(static_cast<size_t>(count));
    int64_t good = 0;
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(row(key, p, i), s.key_bytes(), s.key_row(p, stop + i));
      std::copy_n(row(value, p, i), s.value_bytes(), s.value_row(p, stop + i));
      const bool k_good = widen(s.dtype, row(key, p, i), s.width, k);
      const bool v_good = widen(s.dtype, row(value, p, i), s.value_width, v);
      usable[static_cast<size_t>(i)] = k_good && v_good;
      good += k_good && v_good;
    }
    double* center = s.value_center + p * s.value_width;
    double* bounds = s.bounds + p * 4;
    if (start == stop) {
      std::fill_n(center, s.value_width, 0.0);
      std::fill_n(bounds, 4, 0.0);
      for (int64_t i = 0; i < count; ++i) {
        if (!usable[static_cast<size_t>(i)]) continue;
        widen(s.dtype, row(value, p, i), s.value_width, v);
        for (int64_t d = 0; d < s.value_width; ++d) center[d] += v[d];
      }
      for (int64_t d = 0; d < s.value_width; ++d) center[d] /= static_cast<double>(std::max<int64_t>(good, 1));
    }
    if (good < count) bounds[3] = 1.0;
    const double key_flush = flush_norm(static_cast<double>(s.width));
    const double value_flush = flush_norm(static_cast<double>(s.value_width));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = stop + i, lane = at % kBlock, number = at / s.page;
      if (at % s.page == 0) begin_page(p, number, i, usable, k, scratch);
      uint16_t* marks = s.block_marks(p, at / kBlock);
      int8_t* codes = s.block_codes(p, at / kBlock);
      const bool is_good = usable[static_cast<size_t>(i)];
      widen(s.dtype, row(key, p, i), s.width, k);
      if (!is_good) std::fill_n(k, s.width, 0.0);
      kernels.code_key(k, s.page_center(p, number), s.width, scratch, codes, lane, marks);
      if (!is_good) {
        marks[kBlock + lane] = 0x7fc0;  // NaN: must be read, and spoils the rows that see it
        continue;
      }
      widen(s.dtype, row(value, p, i), s.value_width, v);
      for (int64_t d = 0; d < s.value_width; ++d) away[d] = v[d] - center[d];
      const double distance = up(norm_up(away, s.value_width) * (1.0 + gamma(2)));
      bounds[0] = std::max(bounds[0], up(distance + value_flush));
      bounds[1] = std::max(bounds[1], up(norm_up(v, s.value_width) + value_flush));
      bounds[2] = std::max(bounds[2], up(norm_up(k, s.width) + key_flush));
    }
  }

  void begin_page(int64_t p, int64_t number, int64_t first, const std::vector<uint8_t>& usable, double* sum,
                  double* k) const {
    float* center = s.page_center(p, number);
    const int64_t here = std::min(s.page, count - first);
    if (here < s.page / kOwnCenter && number * s.page > start) {
      std::copy_n(s.page_center(p, number - 1), s.width, center);
      return;
    }
    std::fill_n(sum, s.width, 0.0);
    int64_t good = 0;
    for (int64_t i = first; i < first + here; ++i) {
      if (!usable[static_cast<size_t>(i)]) continue;
      ++good;
      widen(s.dtype, row(key, p, i), s.width, k);
      for (int64_t d = 0; d < s.width; ++d) sum[d] += k[d];
    }
    for (int64_t d = 0; d < s.width; ++d) {
      const float mean = static_cast<float>(sum[d] / static_cast<double>(std::max<int64_t>(good, 1)));
      center[d] = finite(mean) ? mean : 0.0f;
    }
  }
};

}  // namespace

void append(const Kernels& kernels, const Store& store, const Rows& key, const Rows& value, int64_t start, int64_t stop,
            int64_t count, int threads) {
  if (count == 0) return;
  const Appending work{kernels, store, key, value, start, stop, count};
  const bool small = store.pairs() * count < 64;
  run_team(small ? 1 : threads, [&](const Team& team) {
    for (int64_t p = team.thread; p < store.pairs(); p += team.count) work.pair(p);
  });
}

}  // namespace tailbound
