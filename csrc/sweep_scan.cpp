// First half of a sweep: which keys must be read. Nothing here touches a key or a value.
#include <algorithm>
#include <cmath>

#include "sweep.h"

namespace tailbound {

Sweep::Sweep(const Kernels& kernels, const Store& store, const Request& request, Workspace& space, int64_t first, int rows,
             int threads)
    : k_(kernels), s_(store), r_(request), rows_(rows), threads_(threads) {
  origin_ = r_.start / kBlock * kBlock;
  stride_ = (r_.stop - origin_ + kBlock - 1) / kBlock * kBlock;
  for (int64_t p = 0; p < s_.pairs(); ++p) tiles_.emplace_back(new Tile(k_, s_, r_, p, first, rows));
  const bool sparse = r_.epsilons ? std::any_of(r_.epsilons, r_.epsilons + r_.heads, [](double e) { return e > 0.0; }) : r_.epsilon > 0.0;
  scans_ = sparse && r_.stop - r_.start > r_.dense_below;
  weighs_ = scans_ || r_.mask != nullptr;
  pages_ = (r_.stop + s_.page - 1) / s_.page - r_.start / s_.page;
  if (weighs_) {
    weights_ = Workspace::need(space.weights, s_.pairs() * rows_ * stride_);
    index_ = Workspace::need(space.index, s_.pairs() * stride_);
    members_ = Workspace::need(space.members, s_.pairs() * stride_);
  }
  if (scans_) {
    scratch_ = Workspace::need(space.scratch, threads * (2 * stride_ + 64));
    terms_ = Workspace::need(space.terms, s_.pairs() * pages_ * rows_);
    levels_ = Workspace::need(space.levels, s_.pairs() * pages_ * rows_);
  }
  level_.resize(static_cast<size_t>(s_.pairs() * rows_));
  rest_.assign(level_.size(), 0.0);
  ends_.assign(level_.size(), 0);
  threshold_.assign(level_.size(), Threshold{0.0f, 0});
}

int64_t Sweep::run(int64_t* counts, Once& once) {
  run_team(threads_, [&](const Team& team) { work(team); });
  const int64_t bad = count(counts);
  if (once.tiles > 1) note(once);
  return bad;
}

void Sweep::work(const Team& team) {
  each_row(team, [&](int64_t pair, int row) { tiles_[pair]->plan(row); });
  if (team.thread == 0) split(team.count);
  team.barrier.wait();
  if (weighs_) {
    each_segment(team, [&](Segment& part) { scans_ ? scan(part) : reveal(part); });
    team.barrier.wait();
  }
  if (scans_) {
    each_row(team, [&](int64_t pair, int row) { cut(pair, row, scratch_ + team.thread * (2 * stride_ + 64)); });
    team.barrier.wait();
  }
  if (weighs_) {
    each_segment(team, [&](Segment& part) {
      const int64_t from = part.first - origin_, at = part.pair * stride_ + from;
      part.picked = k_.pick(weights(part.pair, 0), stride_, from, part.last - part.first, rows_,
                            &threshold_[part.pair * rows_], index_ + at, members_ + at);
    });
    team.barrier.wait();
  }
  if (team.thread == 0) share_out(team.count);
  team.barrier.wait();
  for (const Piece& piece : pieces_[team.thread]) read(piece, shares_[team.thread * s_.pairs() + piece.pair]);
  team.barrier.wait();
  each_row(team, [&](int64_t pair, int row) { ends_[pair * rows_ + row] = finish_row(pair, row); });
}

// Equal shares of all keys of all pairs, cut at pages.
void Sweep::split(int threads) {
  const int64_t page = s_.page, first_page = r_.start / page, pages = pages_, all = pages * s_.pairs();
  segments_.assign(static_cast<size_t>(threads), {});
  for (int t = 0; t < threads; ++t)
    for (int64_t at = all * t / threads; at < all * (t + 1) / threads;) {
      const int64_t pair = at / pages, until = std::min((pair + 1) * pages, all * (t + 1) / threads);
      Segment part{};
      part.pair = pair;
      part.first = std::max(r_.start, (first_page + at % pages) * page);
      part.last = std::min(r_.stop, (first_page + at % pages + until - at) * page);
      std::fill_n(part.least, kMaxRows, kInfinity);
      segments_[t].push_back(part);
      at = until;
    }
}

// Upper ends of a page become weights while the next page's codes come in: in one pass where the level is known well
// enough.
void Sweep::scan(Segment& part) {
  const Tile& tile = *tiles_[part.pair];
  int64_t seen_by_all = r_.mask || r_.softcap != 0.0 ? 0 : r_.stop;
  for (const Row& row : tile.row) seen_by_all = std::min(seen_by_all, row.limit);
  ends_first(part, [&](int64_t page, int64_t first, int64_t last) {
    Terms* terms = terms_of(part.pair, page);
    tile.terms(page, terms);
    const bool whole = first % kBlock == 0 && last % kBlock == 0 && last <= seen_by_all;
    if (!whole || !scan_weights(part, page, first, last, terms)) scan_page(part, page, first, last, terms);
    note_least(part, first, last, terms);
  });
}

// The smallest bracket of each row's intervals, or less.
void Sweep::note_least(Segment& part, int64_t first, int64_t last, const Terms* terms) const {
  int16_t least[kBlock];  // bfloat16 numbers above 0 have the order of their bits
  std::fill_n(least, kBlock, int16_t{0x7f80});
  for (int64_t block = first / kBlock; block * kBlock < last; ++block) {
    const uint16_t* residuals = s_.block_marks(part.pair, block) + kBlock;
    const int64_t from = std::max<int64_t>(first - block * kBlock, 0), until = std::min(last - block * kBlock, kBlock);
    if (until - from < kBlock) {
      for (int64_t i = from; i < until; ++i) least[i] = std::min(least[i], static_cast<int16_t>(residuals[i]));
    } else {
      for (int64_t i = 0; i < kBlock; ++i) least[i] = std::min(least[i], static_cast<int16_t>(residuals[i]));
    }
  }
  const float residual = bfloat16_float(static_cast<uint16_t>(*std::min_element(least, least + kBlock)));
  for (int row = 0; row < rows_; ++row)
    part.least[row] = std::min(part.least[row], (terms[row].residual * residual + terms[row].error) * (1.0f - 0x1p-20f));
}

// False: a row has no level yet, or one that is too low; nothing has changed but the page's weights.
bool Sweep::scan_weights(Segment& part, int64_t page, int64_t first, int64_t last, const Terms* terms) {
  const Tile& tile = *tiles_[part.pair];
  if (!std::all_of(part.seen, part.seen + rows_, [](bool seen) { return seen; })) return false;
  const int64_t block = first / kBlock;
  float top[kMaxRows];
  double sure[kMaxRows] = {};
  if (!k_.scan_weights(s_.block_codes(part.pair, block), s_.block_marks(part.pair, block), (last - first) / kBlock, s_.width,
                       tile.planes.data(), tile.words.data(), rows_, terms, part.level,
                       weights(part.pair, 0) + first - origin_, stride_, top, sure))
    return false;
  for (int row = 0; row < rows_; ++row)
    if (!(top[row] <= part.level[row] + kLevelSlack)) return false;
  for (int row = 0; row < rows_; ++row) {
    part.sure[row] += sure[row];
    page_level(part.pair, page)[row] = part.level[row];
    raise(part, row, top[row]);
  }
  return true;
}

void Sweep::scan_page(Segment& part, int64_t page, int64_t first, int64_t last, const Terms* terms) {
  const Tile& tile = *tiles_[part.pair];
  const int64_t block = first / kBlock, blocks = (last + kBlock - 1) / kBlock - block;
  const uint16_t* marks = s_.block_marks(part.pair, block);
  float* upper = weights(part.pair, 0) + block * kBlock - origin_;
  k_.scan(s_.block_codes(part.pair, block), marks, blocks, s_.width, tile.planes.data(), tile.words.data(), rows_, terms,
          upper, stride_);
  for (int row = 0; row < rows_; ++row) {
    float* mine = upper + row * stride_;
    // Lanes of the first and last block that hold no key.
    for (int64_t i = block * kBlock; i < first; ++i) mine[i - block * kBlock] = -kInfinity;
    for (int64_t i = last; i < (block + blocks) * kBlock; ++i) mine[i - block * kBlock] = -kInfinity;
    hide(tile, row, first, last, mine - block * kBlock);
    if (r_.softcap != 0.0) cap(mine, blocks * kBlock);
    float top = k_.top(mine, blocks * kBlock);
    if (top == kInfinity) top = finite_top(mine, blocks * kBlock);
    raise(part, row, top);
    page_level(part.pair, page)[row] = part.level[row];
  }
  part.infinite |= k_.weigh(upper, stride_, marks, blocks, rows_, terms, part.level, part.sure);
}

// To a level of at least `top`. Before the first finite end any level serves.
void Sweep::raise(Segment& part, int row, float top) {
  if (!(top > -kInfinity) || (part.seen[row] && top <= part.level[row])) return;
  if (part.seen[row])
    part.sure[row] *= std::exp(static_cast<double>(part.level[row]) - static_cast<double>(top)) * (1.0 - 0x1p-30);
  part.level[row] = top;
  part.seen[row] = true;
}

float Sweep::finite_top(const float* upper, int64_t n) {
  float largest = -kInfinity;
  for (int64_t i = 0; i < n; ++i)
    if (upper[i] < kInfinity) largest = std::max(largest, upper[i]);
  return largest;
}

// Without a scan: 1 for keys that a row sees, 0 for others.
void Sweep::reveal(Segment& part) {
  const int64_t block = part.first / kBlock * kBlock, end = (part.last + kBlock - 1) / kBlock * kBlock;
  for (int row = 0; row < rows_; ++row) {
    float* mine = weights(part.pair, row) - origin_;
    for (int64_t i = block; i < end; ++i) mine[i] = i >= part.first && i < part.last ? 1.0f : -kInfinity;
    hide(*tiles_[part.pair], row, part.first, part.last, mine);
    for (int64_t i = block; i < end; ++i) mine[i] = mine[i] == 1.0f ? 1.0f : 0.0f;
  }
}

void Sweep::hide(const Tile& tile, int row, int64_t first, int64_t last, float* upper) const {
  const Row& r = tile.row[row];
  for (int64_t i = std::max(first, r.limit); i < last; ++i) upper[i] = -kInfinity;
  if (!r_.mask) return;
  const uint8_t* mask = r_.mask + r.batch * r_.mask_strides[0] + r.head * r_.mask_strides[1] + r.query * r_.mask_strides[2];
  for (int64_t i = first; i < last; ++i)
    if (!mask[(i - r_.start) * r_.mask_strides[3]]) upper[i] = -kInfinity;
}

// Slope at most 1: the bracket below an upper end holds after the cap as well.
void Sweep::cap(float* upper, int64_t n) const {
  const double most = r_.softcap, error = 32.0 * kUnit * most;
  for (int64_t i = 0; i < n; ++i)
    if (upper[i] != -kInfinity) upper[i] = float_up(most * std::tanh(static_cast<double>(upper[i]) / most) + error);
}

// The largest finite upper end of a row: what its weights refer to.
float Sweep::level_of(int64_t pair, int row) {
  float level = -kInfinity;
  for (const auto& parts : segments_)
    for (const Segment& part : parts)
      if (part.pair == pair && part.seen[row]) level = std::max(level, part.level[row]);
  return level > -kInfinity ? level : 0.0f;
}

// Weights of pages that refer to a lower level.
void Sweep::align(int64_t pair, int row, float level) {
  for (int64_t page = r_.start / s_.page; page * s_.page < r_.stop; ++page) {
    const float from = page_level(pair, page)[row];
    if (from == level) continue;
    const int64_t first = std::max(page * s_.page, origin_), last = std::min((page + 1) * s_.page, origin_ + stride_);
    const double factor = std::exp(static_cast<double>(from) - static_cast<double>(level)) * (1.0 + 0x1p-20);
    k_.shrink(weights(pair, row) + first - origin_, last - first, std::max(float_up(factor), kLeastWeight));
  }
}

void Sweep::cut(int64_t pair, int row, float* scratch) {
  const Row& r = tiles_[pair]->row[row];
  const int64_t i = pair * rows_ + row;
  const float level = level_of(pair, row);
  level_[i] = level;
  align(pair, row, level);
  double sure = 0.0;
  float least = kInfinity;
  for (const auto& parts : segments_)
    for (const Segment& part : parts)
      if (part.pair == pair) {
        if (part.sure[row] > 0.0)
          sure += part.sure[row] * std::exp(static_cast<double>(part.level[row]) - static_cast<double>(level)) * (1.0 - 0x1p-30);
        least = std::min(least, part.least[row]);
      }
  if (r_.sink) sure += std::exp(std::min(r.sink - static_cast<double>(level), 700.0)) * (1.0 - 0x1p-30);
  const double slack = 2.0 * r.eta + 4.0 * kSumError + 0x1p-20;
  // Of the mass U left out at upper ends, at most U times `narrowest` is counted in `sure` at lower ends. So the head's
  // is at least sure - narrowest U, and U <= epsilon / (1 - epsilon) of it is asked for.
  const double narrowest = std::exp(-2.0 * static_cast<double>(least)) * (1.0 + 0x1p-30);
  const double share = r.epsilon / (1.0 - r.epsilon + r.epsilon * std::min(narrowest, 1.0));
  const double budget = share * sure * std::max(0.0, 1.0 - slack);
  threshold_[i] = k_.cut(weights(pair, row), stride_, budget, scratch, &rest_[i]);
}

}  // namespace tailbound
