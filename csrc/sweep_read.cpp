// Second half of a sweep: the keys that were picked are read, and rows become answers.
#include <algorithm>
#include <cmath>

#include "sweep.h"

namespace tailbound {

// What is read of each pair, and which thread reads it: equal shares of all reads.
void Sweep::share_out(int threads) {
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
        const int64_t from = part.first - origin_, to = picked[part.pair], pair = part.pair * stride_;
        if (from != to) {
          std::copy_n(index_ + pair + from, part.picked, index_ + pair + to);
          std::copy_n(members_ + pair + from, part.picked, members_ + pair + to);
        }
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

// Every key that a row sees gets its weight.
void Sweep::be_dense(int64_t pair) {
  for (int row = 0; row < rows_; ++row) {
    threshold_[pair * rows_ + row] = Threshold{0.0f, 0};
    rest_[pair * rows_ + row] = 0.0;
  }
  read_[pair] = k_.pick(weights(pair, 0), stride_, 0, stride_, rows_, &threshold_[pair * rows_], index_ + pair * stride_,
                         members_ + pair * stride_);
}

void Sweep::read(const Piece& piece, Share& share) {
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
  g.exact = tile.exact.data();
  g.scale = static_cast<float>(r_.scale);
  g.query_stride = tile.padded;
  g.members = weighs_ ? members_ + piece.pair * stride_ + piece.begin : nullptr;
  g.origin = origin_;
  g.limit = limit;
  g.shift = share.shift;
  g.mass = share.mass;
  g.sums = share.sums.data();
  g.kept = share.kept;
  k_.gather(g);
}

// In float64, with its own shift: soft-capped logits, magnitudes beyond float32, keys without an interval.
void Sweep::read_wide(const Piece& piece, Share& share, int row) {
  for (int64_t i = 0; i < piece.count; ++i) {
    const int64_t at = weighs_ ? origin_ + index_[piece.pair * stride_ + piece.begin + i] : r_.start + piece.begin + i;
    if (!sees(piece.pair, row, at)) continue;
    add_wide(piece.pair, row, at, share.wide_shift[row], share.mass[row], share.sums.data() + row * s_.value_width);
    ++share.kept[row];
  }
}

void Sweep::add_wide(int64_t pair, int row, int64_t at, double& shift, double& mass, double* sums) {
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

Accuracy Sweep::accuracy(int64_t pair, int row, bool wide) const {
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

int64_t Sweep::count(int64_t* counts) {
  int64_t bad = 0;
  for (int64_t p = 0; p < s_.pairs(); ++p) {
    for (int row = 0; row < rows_; ++row) {
      bad += ends_[p * rows_ + row] == kSpoilt;
      if (ends_[p * rows_ + row] == kReread) read_[p] = r_.stop - r_.start;
    }
    counts[2] += seen(p);
    counts[3] += read_[p];
    counts[4] += read_[p] * (s_.key_bytes() + s_.value_bytes());
    if (scans_) counts[4] += stride_ * (s_.width + 6) + pages_ * s_.width * 4;
  }
  return bad;
}

void Sweep::note(Once& once) {
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

int64_t Sweep::seen(int64_t pair) {
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

int64_t Sweep::visible(int64_t pair, int row) {
  if (!r_.mask) return tiles_[pair]->row[row].visible;
  int64_t count = 0;
  for (int64_t i = 0; i < stride_; ++i) count += weights(pair, row)[i] > 0.0f;
  return count;
}

Sweep::End Sweep::finish_row(int64_t pair, int row) {
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
  if (verdict.finite && verdict.tv > r.epsilon) {  // the bracket was too wide after all, or the level far above all logits
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
Verdict Sweep::read_all(int64_t pair, int row, uint8_t* output) {
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

void Sweep::write_kept(int64_t pair, int row, uint8_t* to) {
  for (int64_t at = r_.start; at < r_.stop; ++at) to[at - r_.start] = sees(pair, row, at);
}

}  // namespace tailbound
