#include "attend.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "answer.h"
#include "rows.h"
#include "threads.h"

namespace tailbound {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kSumError = kSumRoundings * kUnit32 * (1.0 + 0x1p-10);

// Keys that one thread scans: some pages of one pair.
struct Segment {
  int64_t pair, first, last;  // positions, first at a page or at the start
  float top[kMaxRows];
  double sure[kMaxRows];
  float least[kMaxRows];
  bool infinite;
  int64_t picked;
};

struct Piece {
  int64_t pair, begin, count;  // of the pair's reads
};

// Partial results of one thread for one pair.
struct Share {
  float shift[kMaxRows];
  double wide_shift[kMaxRows];
  double mass[kMaxRows];
  int32_t kept[kMaxRows];
  bool used = false, wide = false;
  std::vector<double> sums;
};

// Buffers that grow with the number of keys, kept between calls: fresh pages cost more than what is done with them.
struct Workspace {
  std::vector<float> weights, scratch;
  std::vector<int32_t> index;
  std::vector<Terms> terms;

  // Without touching what is already there.
  template <class T>
  static T* need(std::vector<T>& buffer, int64_t count) {
    if (buffer.size() < static_cast<size_t>(count)) buffer.resize(static_cast<size_t>(count));
    return buffer.data();
  }
};

// Which keys (pair, position) were seen and read by several tiles: each counts once.
struct Once {
  int64_t tiles;
  std::vector<uint8_t> seen, read;
};

class Sweep {
 public:
  Sweep(const Kernels& kernels, const Store& store, const Request& request, Workspace& space, int64_t first, int rows,
        int threads)
      : k_(kernels), s_(store), r_(request), rows_(rows), threads_(threads) {
    origin_ = r_.start / kBlock * kBlock;
    stride_ = (r_.stop - origin_ + kBlock - 1) / kBlock * kBlock;
    for (int64_t p = 0; p < s_.pairs(); ++p) tiles_.emplace_back(new Tile(s_, r_, p, first, rows));
    scans_ = r_.epsilon > 0.0 && r_.stop - r_.start > r_.dense_below;
    weighs_ = scans_ || r_.mask != nullptr;
    pages_ = (r_.stop + s_.page - 1) / s_.page - r_.start / s_.page;
    if (weighs_) {
      weights_ = Workspace::need(space.weights, s_.pairs() * rows_ * stride_);
      index_ = Workspace::need(space.index, s_.pairs() * stride_);
    }
    if (scans_) {
      scratch_ = Workspace::need(space.scratch, threads * (2 * stride_ + 64));
      terms_ = Workspace::need(space.terms, s_.pairs() * pages_ * rows_);
    }
    level_.resize(static_cast<size_t>(s_.pairs() * rows_));
    rest_.assign(level_.size(), 0.0);
    ends_.assign(level_.size(), 0);
    threshold_.assign(level_.size(), Threshold{0.0f, 0});
    dense_.assign(static_cast<size_t>(s_.pairs()), !scans_);
  }

  int64_t run(int64_t* counts, Once& once) {
    run_team(threads_, [&](const Team& team) { work(team); });
    const int64_t bad = count(counts);
    if (once.tiles > 1) note(once);
    return bad;
  }

 private:
  void work(const Team& team) {
    for (int64_t i = team.thread; i < s_.pairs() * rows_; i += team.count)
      tiles_[i / rows_]->plan(k_, static_cast<int>(i % rows_));
    if (team.thread == 0) split(team.count);
    team.barrier.wait();
    if (weighs_) {
      each_segment(team, [&](Segment& part) { scans_ ? scan(part) : reveal(part); });
      team.barrier.wait();
    }
    if (scans_) {
      each_segment(team, [&](Segment& part) { weigh(part); });
      team.barrier.wait();
      for (int64_t i = team.thread; i < s_.pairs() * rows_; i += team.count)
        cut(i / rows_, static_cast<int>(i % rows_), scratch_ + team.thread * (2 * stride_ + 64));
      team.barrier.wait();
    }
    if (weighs_) {
      each_segment(team, [&](Segment& part) {
        const int64_t at = part.pair * stride_;
        part.picked = k_.pick(weights(part.pair, 0), stride_, part.first - origin_, part.last - part.first, rows_,
                              &threshold_[part.pair * rows_], index_ + at + part.first - origin_);
      });
      team.barrier.wait();
    }
    if (team.thread == 0) share_out(team.count);
    team.barrier.wait();
    for (const Piece& piece : pieces_[team.thread]) read(piece, shares_[team.thread * s_.pairs() + piece.pair]);
    team.barrier.wait();
    for (int64_t i = team.thread; i < s_.pairs() * rows_; i += team.count)
      ends_[i] = finish_row(i / rows_, static_cast<int>(i % rows_));
  }

  template <class F>
  void each_segment(const Team& team, F f) {
    for (Segment& part : segments_[team.thread]) f(part);
  }

  // Equal shares of all keys of all pairs, cut at pages.
  void split(int threads) {
    const int64_t page = s_.page, first_page = r_.start / page, pages = (r_.stop + page - 1) / page - first_page;
    const int64_t all = pages * s_.pairs();
    segments_.assign(static_cast<size_t>(threads), {});
    for (int t = 0; t < threads; ++t)
      for (int64_t at = all * t / threads; at < all * (t + 1) / threads;) {
        const int64_t pair = at / pages, until = std::min((pair + 1) * pages, all * (t + 1) / threads);
        Segment part{};
        part.pair = pair;
        part.first = std::max(r_.start, (first_page + at % pages) * page);
        part.last = std::min(r_.stop, (first_page + at % pages + until - at) * page);
        std::fill_n(part.top, kMaxRows, -kInfinity);
        std::fill_n(part.least, kMaxRows, kInfinity);
        segments_[t].push_back(part);
        at = until;
      }
  }

  float* weights(int64_t pair, int row) { return weights_ + (pair * rows_ + row) * stride_; }

  template <class F>
  void each_page(const Segment& part, F f) {
    for (int64_t at = part.first; at < part.last;) {
      const int64_t until = std::min(part.last, (at / s_.page + 1) * s_.page);
      f(at / s_.page, at, until);
      at = until;
    }
  }

  Terms* terms_of(int64_t pair, int64_t page) { return terms_ + (pair * pages_ + page - r_.start / s_.page) * rows_; }

  void scan(Segment& part) {
    const Tile& tile = *tiles_[part.pair];
    each_page(part, [&](int64_t page, int64_t first, int64_t last) {
      Terms* terms = terms_of(part.pair, page);
      tile.terms(page, terms);
      const int64_t block = first / kBlock, blocks = (last + kBlock - 1) / kBlock - block;
      float* upper = weights(part.pair, 0) + block * kBlock - origin_;
      k_.scan(s_.block_codes(part.pair, block), s_.block_marks(part.pair, block), blocks, s_.width, tile.planes.data(),
              tile.words.data(), rows_, terms, upper, stride_);
      for (int row = 0; row < rows_; ++row) {
        float* mine = upper + row * stride_;
        // Lanes of the first and last block that hold no key.
        for (int64_t i = block * kBlock; i < first; ++i) mine[i - block * kBlock] = -kInfinity;
        for (int64_t i = last; i < (block + blocks) * kBlock; ++i) mine[i - block * kBlock] = -kInfinity;
        hide(tile, row, first, last, mine - block * kBlock);
        if (r_.softcap != 0.0) cap(mine, blocks * kBlock);
        float top = k_.top(mine, blocks * kBlock);
        if (top == kInfinity) top = finite_top(mine, blocks * kBlock);
        part.top[row] = std::max(part.top[row], top);
      }
    });
  }

  static float finite_top(const float* upper, int64_t n) {
    float largest = -kInfinity;
    for (int64_t i = 0; i < n; ++i)
      if (upper[i] < kInfinity) largest = std::max(largest, upper[i]);
    return largest;
  }

  // Without a scan: 1 for keys that a row sees, 0 for others.
  void reveal(Segment& part) {
    const int64_t block = part.first / kBlock * kBlock, end = (part.last + kBlock - 1) / kBlock * kBlock;
    for (int row = 0; row < rows_; ++row) {
      float* mine = weights(part.pair, row) - origin_;
      for (int64_t i = block; i < end; ++i) mine[i] = i >= part.first && i < part.last ? 1.0f : -kInfinity;
      hide(*tiles_[part.pair], row, part.first, part.last, mine);
      for (int64_t i = block; i < end; ++i) mine[i] = mine[i] == 1.0f ? 1.0f : 0.0f;
    }
  }

  void hide(const Tile& tile, int row, int64_t first, int64_t last, float* upper) const {
    const Row& r = tile.row[row];
    for (int64_t i = std::max(first, r.limit); i < last; ++i) upper[i] = -kInfinity;
    if (!r_.mask) return;
    const uint8_t* mask = r_.mask + r.batch * r_.mask_strides[0] + r.head * r_.mask_strides[1] + r.query * r_.mask_strides[2];
    for (int64_t i = first; i < last; ++i)
      if (!mask[(i - r_.start) * r_.mask_strides[3]]) upper[i] = -kInfinity;
  }

  // Slope at most 1: the bracket below an upper end holds after the cap as well.
  void cap(float* upper, int64_t n) const {
    const double most = r_.softcap, error = 32.0 * kUnit * most;
    for (int64_t i = 0; i < n; ++i)
      if (upper[i] != -kInfinity) upper[i] = float_up(most * std::tanh(static_cast<double>(upper[i]) / most) + error);
  }

  void weigh(Segment& part) {
    float level[kMaxRows];
    for (int row = 0; row < rows_; ++row) level[row] = level_of(part.pair, row);
    each_page(part, [&](int64_t page, int64_t first, int64_t last) {
      const Terms* terms = terms_of(part.pair, page);
      const int64_t block = first / kBlock, blocks = (last + kBlock - 1) / kBlock - block;
      for (int row = 0; row < rows_; ++row) {
        const bool infinite = k_.weigh(weights(part.pair, row) + block * kBlock - origin_, s_.block_marks(part.pair, block),
                                       blocks, terms[row], level[row], &part.sure[row], &part.least[row]);
        part.infinite = part.infinite || infinite;
      }
    });
  }

  // The largest finite upper end of a row: what its weights refer to.
  float level_of(int64_t pair, int row) {
    float level = -kInfinity;
    for (const auto& parts : segments_)
      for (const Segment& part : parts)
        if (part.pair == pair) level = std::max(level, part.top[row]);
    return level > -kInfinity ? level : 0.0f;
  }

  void cut(int64_t pair, int row, float* scratch) {
    const Row& r = tiles_[pair]->row[row];
    const int64_t i = pair * rows_ + row;
    const float level = level_of(pair, row);
    level_[i] = level;
    double sure = 0.0;
    float least = kInfinity;
    for (const auto& parts : segments_)
      for (const Segment& part : parts)
        if (part.pair == pair) {
          sure += part.sure[row];
          least = std::min(least, part.least[row]);
        }
    if (r_.sink) sure += std::exp(std::min(r.sink - static_cast<double>(level), 700.0)) * (1.0 - 0x1p-30);
    const double slack = 2.0 * r.eta + 4.0 * kSumError + 0x1p-20;
    // Of the mass U left out at upper ends, at most U times `narrowest` is counted in `sure` at lower ends. So the head's
    // is at least sure - narrowest U, and U <= epsilon / (1 - epsilon) of it is asked for.
    const double narrowest = std::exp(-2.0 * static_cast<double>(least)) * (1.0 + 0x1p-30);
    const double share = r_.epsilon / (1.0 - r_.epsilon + r_.epsilon * std::min(narrowest, 1.0));
    const double budget = share * sure * std::max(0.0, 1.0 - slack);
    threshold_[i] = k_.cut(weights(pair, row), stride_, budget, scratch, &rest_[i]);
  }

  // What is read of each pair, and which thread reads it: equal shares of all reads.
  void share_out(int threads) {
    shares_.resize(static_cast<size_t>(threads * s_.pairs()));
    pieces_.assign(static_cast<size_t>(threads), {});
    read_.assign(static_cast<size_t>(s_.pairs()), r_.stop - r_.start);
    wide_.assign(static_cast<size_t>(s_.pairs()), 0);
    for (int64_t p = 0; p < s_.pairs(); ++p)
      for (int row = 0; row < rows_; ++row) wide_[p] = wide_[p] || !tiles_[p]->row[row].plain;
    if (weighs_) {
      std::vector<int64_t> picked(static_cast<size_t>(s_.pairs()), 0);
      for (const auto& parts : segments_)
        for (const Segment& part : parts) {
          // Close the gaps between what the segments picked.
          int32_t* index = index_ + part.pair * stride_;
          std::copy_n(index + part.first - origin_, part.picked, index + picked[part.pair]);
          picked[part.pair] += part.picked;
          wide_[part.pair] = wide_[part.pair] || part.infinite;
        }
      for (int64_t p = 0; p < s_.pairs(); ++p) {
        read_[p] = picked[p];
        if (scans_ && static_cast<double>(picked[p]) > r_.dense_share * static_cast<double>(r_.stop - r_.start)) be_dense(p);
      }
    }
    int64_t all = 0, at = 0;
    for (int64_t count : read_) all += count;
    int t = 0;
    for (int64_t p = 0; p < s_.pairs(); ++p) {
      for (int64_t begin = 0; begin < read_[p];) {
        while (at >= all * (t + 1) / threads) ++t;
        const int64_t count = std::min(read_[p] - begin, all * (t + 1) / threads - at);
        pieces_[t].push_back({p, begin, count});
        begin += count;
        at += count;
      }
    }
  }

  // Every key that a row sees gets its weight. Without a mask or an infinite end a plain sweep does it.
  void be_dense(int64_t pair) {
    dense_[pair] = 1;
    for (int row = 0; row < rows_; ++row) {
      threshold_[pair * rows_ + row] = Threshold{0.0f, 0};
      rest_[pair * rows_ + row] = 0.0;
    }
    int64_t count = 0;
    int32_t* index = index_ + pair * stride_;
    for (int64_t i = 0; i < stride_; ++i) {
      bool any = false;
      for (int row = 0; row < rows_; ++row) any = any || weights(pair, row)[i] > 0.0f;
      if (any) index[count++] = static_cast<int32_t>(i);
    }
    read_[pair] = count;
  }

  void read(const Piece& piece, Share& share) {
    const Tile& tile = *tiles_[piece.pair];
    const int64_t width = s_.value_width;
    if (!share.used) {
      share.used = true;
      share.wide = wide_[piece.pair];
      share.sums.assign(static_cast<size_t>(rows_ * width), 0.0);
      for (int row = 0; row < rows_; ++row) {
        share.shift[row] = scans_ && !share.wide ? level_[piece.pair * rows_ + row] : -kInfinity;
        share.wide_shift[row] = -std::numeric_limits<double>::infinity();
        share.mass[row] = 0.0;
        share.kept[row] = 0;
      }
    }
    if (share.wide) {
      for (int row = 0; row < rows_; ++row) read_wide(piece, share, row);
      return;
    }
    int64_t limit[kMaxRows];
    for (int row = 0; row < rows_; ++row) limit[row] = tile.row[row].limit;
    Gather g{};
    g.store = &s_;
    g.pair = piece.pair;
    g.index = weighs_ ? index_ + piece.pair * stride_ + piece.begin : nullptr;
    g.first = r_.start + piece.begin;
    g.count = piece.count;
    g.rows = rows_;
    g.query = tile.scaled.data();
    g.query_stride = tile.padded;
    g.weights = weighs_ ? weights(piece.pair, 0) : nullptr;
    g.stride = stride_;
    g.origin = origin_;
    g.threshold = &threshold_[piece.pair * rows_];
    g.limit = limit;
    g.shift = share.shift;
    g.mass = share.mass;
    g.sums = share.sums.data();
    g.kept = share.kept;
    k_.gather(g);
  }

  bool sees(int64_t pair, int row, int64_t position) {
    if (!weighs_) return position < tiles_[pair]->row[row].limit;
    const int64_t i = position - origin_;
    return has_weight(weights(pair, row)[i], i, threshold_[pair * rows_ + row]);
  }

  // In float64, with its own shift: soft-capped logits, magnitudes beyond float32, keys without an interval.
  void read_wide(const Piece& piece, Share& share, int row) {
    for (int64_t i = 0; i < piece.count; ++i) {
      const int64_t at = weighs_ ? origin_ + index_[piece.pair * stride_ + piece.begin + i] : r_.start + piece.begin + i;
      if (!sees(piece.pair, row, at)) continue;
      add_wide(piece.pair, row, at, share.wide_shift[row], share.mass[row], share.sums.data() + row * s_.value_width);
      ++share.kept[row];
    }
  }

  void add_wide(int64_t pair, int row, int64_t at, double& shift, double& mass, double* sums) {
    const Tile& tile = *tiles_[pair];
    const double* q = tile.query.data() + row * s_.width;
    const uint8_t* key = s_.key_row(pair, at);
    const uint8_t* value = s_.value_row(pair, at);
    double logit = 0.0;
    for (int64_t d = 0; d < s_.width; ++d) logit += q[d] * static_cast<double>(load(s_.dtype, key, d));
    logit *= r_.scale;
    if (!finite(logit)) mass = std::numeric_limits<double>::quiet_NaN();  // the row is not finite, whatever its weight
    if (r_.softcap != 0.0) logit = r_.softcap * std::tanh(logit / r_.softcap);
    if (logit > shift) {
      const double factor = std::exp(shift - logit);
      shift = logit;
      mass *= factor;
      for (int64_t d = 0; d < s_.value_width; ++d) sums[d] *= factor;
    }
    const double weight = std::exp(logit - shift);
    mass += weight;
    for (int64_t d = 0; d < s_.value_width; ++d) sums[d] += weight * static_cast<double>(load(s_.dtype, value, d));
  }

  Accuracy accuracy(int64_t pair, int row, bool wide) const {
    const Row& r = tiles_[pair]->row[row];
    const double n = static_cast<double>(r_.stop - r_.start);
    if (!wide) return {r.eta + gamma(8.0 * n), kSumError + gamma(n), static_cast<double>(kLeastWeight)};
    const double size = std::fabs(r_.scale), key = s_.bounds[pair * 4 + 2], width = static_cast<double>(s_.width);
    const double flush = flush_norm(width);
    double eta = up(up(r.norm * key) * up(size * gamma(width + 4))) + up(up(up(r.norm + key) + flush) * up(flush * size)) + kFloor;
    if (r_.softcap != 0.0) eta = up(std::min(eta, 2.0 * r_.softcap) + 32.0 * kUnit * r_.softcap);
    // Every move to a larger shift rounds once more.
    return {up(eta + gamma(2048.0 + 8.0 * n)), gamma(n + 8), kTiny};
  }

  Partial partial(Share& share, int row) {
    const bool wide = share.wide;
    return {wide ? share.wide_shift[row] : static_cast<double>(share.shift[row]), share.mass[row], 0.0,
            share.sums.data() + row * s_.value_width, share.kept[row]};
  }

  // How a row ended: certified or dense as planned, not finite, or read densely after all.
  enum End : uint8_t { kPlanned, kSpoilt, kReread };

  int64_t count(int64_t* counts) {
    int64_t bad = 0;
    for (int64_t p = 0; p < s_.pairs(); ++p) {
      for (int row = 0; row < rows_; ++row) {
        bad += ends_[p * rows_ + row] == kSpoilt;
        if (ends_[p * rows_ + row] == kReread) read_[p] = r_.stop - r_.start;
      }
      counts[2] += seen(p);
      counts[3] += read_[p];
      counts[4] += read_[p] * (s_.key_bytes() + s_.value_bytes());
      if (scans_) {
        const int64_t pages = (r_.stop - 1) / s_.page - r_.start / s_.page + 1;
        counts[4] += stride_ * (s_.width + 6) + pages * s_.width * 4;
      }
    }
    return bad;
  }

  void note(Once& once) {
    const int64_t n = r_.stop - r_.start;
    for (int64_t p = 0; p < s_.pairs(); ++p) {
      uint8_t *saw = once.seen.data() + p * n, *got = once.read.data() + p * n;
      for (int row = 0; row < rows_; ++row) {
        const int64_t limit = r_.mask ? n : tiles_[p]->row[row].visible;
        for (int64_t i = 0; i < limit; ++i) saw[i] |= !r_.mask || weights(p, row)[r_.start + i - origin_] > 0.0f;
      }
      const bool every = read_[p] == n;
      if (every) std::fill_n(got, n, uint8_t{1});
      for (int64_t i = 0; i < (every ? 0 : read_[p]); ++i) got[index_[p * stride_ + i] + origin_ - r_.start] = 1;
    }
  }

  int64_t seen(int64_t pair) {
    if (!r_.mask) {
      int64_t most = 0;
      for (const Row& r : tiles_[pair]->row) most = std::max(most, r.visible);
      return most;
    }
    int64_t count = 0;
    for (int64_t i = 0; i < stride_; ++i) {
      bool any = false;
      for (int row = 0; row < rows_; ++row) any = any || weights(pair, row)[i] > 0.0f;
      count += any;
    }
    return count;
  }

  int64_t visible(int64_t pair, int row) {
    if (!r_.mask) return tiles_[pair]->row[row].visible;
    int64_t count = 0;
    for (int64_t i = 0; i < stride_; ++i) count += weights(pair, row)[i] > 0.0f;
    return count;
  }

  End finish_row(int64_t pair, int row) {
    const Row& r = tiles_[pair]->row[row];
    const int64_t at = (r.batch * r_.heads + r.head) * r_.queries + r.query, width = s_.value_width;
    uint8_t* output = r_.output + at * s_.value_bytes();
    const int64_t saw = visible(pair, row);
    if (r_.kept_set) write_kept(pair, row, r_.kept_set + at * (r_.stop - r_.start));
    if (saw == 0) {
      std::fill_n(output, s_.value_bytes(), uint8_t{0});
      r_.tv[at] = r_.error[at] = 0.0;
      r_.kept[at] = 0;
      r_.status[at] = kEmpty;
      return kPlanned;
    }
    std::vector<Partial> parts;
    std::vector<double> none(static_cast<size_t>(width), 0.0);
    int64_t kept = 0;
    bool wide = false;
    const int64_t i = pair * rows_ + row;
    parts.push_back({static_cast<double>(level_[i]), 0.0, rest_[i], none.data(), 0});
    for (size_t t = 0; t < pieces_.size(); ++t) {
      Share& share = shares_[t * s_.pairs() + pair];
      if (!share.used) continue;
      parts.push_back(partial(share, row));
      kept += share.kept[row];
      wide = wide || share.wide;
    }
    Verdict verdict{1.0, 0.0, false};
    if (r.finite)
      verdict = answer(parts.data(), static_cast<int>(parts.size()), r.sink, r_.sink != nullptr,
                       accuracy(pair, row, wide), s_, pair, output);
    End end = kPlanned;
    if (verdict.finite && verdict.tv > r_.epsilon) {  // the bracket was too wide after all
      end = kReread;
      kept = saw;
      verdict = read_all(pair, row, output);
    }
    r_.tv[at] = verdict.finite ? verdict.tv : 1.0;
    r_.error[at] = verdict.finite ? verdict.error : std::numeric_limits<double>::infinity();
    r_.kept[at] = static_cast<int32_t>(kept);
    r_.status[at] = !verdict.finite ? kNonfinite : kept == saw ? kDense : kCertified;
    return verdict.finite ? end : kSpoilt;
  }

  // One row, densely, in float64.
  Verdict read_all(int64_t pair, int row, uint8_t* output) {
    std::vector<double> sums(static_cast<size_t>(s_.value_width), 0.0);
    Partial part{-std::numeric_limits<double>::infinity(), 0.0, 0.0, sums.data(), 0};
    const Row& r = tiles_[pair]->row[row];
    threshold_[pair * rows_ + row] = Threshold{0.0f, 0};
    for (int64_t at = r_.start; at < r_.stop; ++at) {
      if (!sees(pair, row, at)) continue;
      add_wide(pair, row, at, part.shift, part.mass, part.sums);
      ++part.kept;
    }
    if (r_.kept_set) {
      const int64_t at = (r.batch * r_.heads + r.head) * r_.queries + r.query;
      write_kept(pair, row, r_.kept_set + at * (r_.stop - r_.start));
    }
    return answer(&part, 1, r.sink, r_.sink != nullptr, accuracy(pair, row, true), s_, pair, output);
  }

  void write_kept(int64_t pair, int row, uint8_t* to) {
    for (int64_t at = r_.start; at < r_.stop; ++at) to[at - r_.start] = sees(pair, row, at);
  }

  const Kernels& k_;
  const Store& s_;
  const Request& r_;
  const int rows_, threads_;
  int64_t origin_ = 0, stride_ = 0;  // weights and indices count positions from `origin_`, a block's first
  bool scans_ = false, weighs_ = false;
  std::vector<std::unique_ptr<Tile>> tiles_;
  int64_t pages_ = 0;
  float* weights_ = nullptr;   // (pairs, rows, stride)
  float* scratch_ = nullptr;   // (threads, 2 stride + 64)
  int32_t* index_ = nullptr;   // (pairs, stride)
  Terms* terms_ = nullptr;     // (pairs, pages, rows)
  std::vector<float> level_;
  std::vector<double> rest_;
  std::vector<Threshold> threshold_;
  std::vector<uint8_t> dense_, wide_;
  std::vector<int64_t> read_;
  std::vector<uint8_t> ends_;
  std::vector<std::vector<Segment>> segments_;
  std::vector<std::vector<Piece>> pieces_;
  std::vector<Share> shares_;
};

}  // namespace

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
