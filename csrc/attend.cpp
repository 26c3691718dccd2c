#include "attend.h"

#include <algorithm>

#include "sweep.h"

namespace tailbound {

int64_t attend(const Kernels& kernels, Level level, const Store& store, const Request& request, int threads) {
  std::fill_n(request.counts, 5, int64_t{0});
  request.counts[0] = 1 + static_cast<int64_t>(level);
  request.counts[1] = threads;
  const int64_t rows = request.heads / std::max<int64_t>(store.kv_heads, 1) * request.queries;
  thread_local Workspace space;
  int64_t bad = 0;
  Once once{(rows + kMaxRows - 1) / kMaxRows, {}, {}};
  if (once.tiles > 1) {
    once.seen.assign(static_cast<size_t>(store.pairs() * (request.stop - request.start)), 0);
    once.read = once.seen;
  }
  for (int64_t first = 0; first < rows; first += kMaxRows) {
    const int count = static_cast<int>(std::min<int64_t>(kMaxRows, rows - first));
    bad += Sweep(kernels, store, request, space, first, count, threads).run(request.counts, once);
  }
  if (once.tiles > 1) {
    request.counts[2] = std::count(once.seen.begin(), once.seen.end(), 1);
    request.counts[3] = std::count(once.read.begin(), once.read.end(), 1);
  }
  return bad;
}

}  // namespace tailbound
