// One tile of queries over all KV heads: phases that all threads go through together, a barrier after each.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "answer.h"
#include "attend.h"
#include "rows.h"
#include "threads.h"

namespace tailbound {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kSumError = kSumRoundings * kUnit32 * (1.0 + 0x1p-10);

// Keys that one thread scans: some pages of one pair.
struct Segment {
  int64_t pair, first, last;  // positions, first at a page or at the start
  float level[kMaxRows];  // what its latest weights refer to: the largest finite end so far, if one was seen
  bool seen[kMaxRows];
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
  std::vector<float> weights, scratch, levels;
  std::vector<int32_t> index;
  std::vector<uint16_t> members;
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
        int threads);

  // Answer the tile's rows and add to the counts; returns how many rows are not finite.
  int64_t run(int64_t* counts, Once& once);

 private:
  // How a row ended: certified or dense as planned, not finite, or read densely after all.
  enum End : uint8_t { kPlanned, kSpoilt, kReread };

  template <class F>
  void each_segment(const Team& team, F f) {
    for (Segment& part : segments_[team.thread]) f(part);
  }

  // A thread's share of all rows lies where its segments do: what it wrote is in its own cache.
  template <class F>
  void each_row(const Team& team, F f) {
    const int64_t all = s_.pairs() * rows_;
    for (int64_t i = all * team.thread / team.count; i < all * (team.thread + 1) / team.count; ++i)
      f(i / rows_, static_cast<int>(i % rows_));
  }

  float* weights(int64_t pair, int row) { return weights_ + (pair * rows_ + row) * stride_; }

  // All pages of a segment, its last and its first before the others: what weighs most is often there.
  template <class F>
  void ends_first(const Segment& part, F f) {
    const int64_t first = part.first / s_.page, last = (part.last - 1) / s_.page;
    const auto page = [&](int64_t number) {
      f(number, std::max(part.first, number * s_.page), std::min(part.last, (number + 1) * s_.page));
    };
    page(last);
    for (int64_t number = first; number < last; ++number) page(number);
  }

  Terms* terms_of(int64_t pair, int64_t page) { return terms_ + (pair * pages_ + page - r_.start / s_.page) * rows_; }

  float* page_level(int64_t pair, int64_t page) { return levels_ + (pair * pages_ + page - r_.start / s_.page) * rows_; }

  bool sees(int64_t pair, int row, int64_t position) {
    if (!weighs_) return position < tiles_[pair]->row[row].limit;
    const int64_t i = position - origin_;
    return has_weight(weights(pair, row)[i], i, threshold_[pair * rows_ + row]);
  }

  Partial partial(Share& share, int row) {
    const bool wide = share.wide;
    return {wide ? share.wide_shift[row] : static_cast<double>(share.shift[row]), share.mass[row], 0.0,
            share.sums.data() + row * s_.value_width, share.kept[row]};
  }

  // What is read: sweep_scan.cpp.
  void work(const Team& team);
  void split(int threads);
  void scan(Segment& part);
  void note_least(Segment& part, int64_t first, int64_t last, const Terms* terms) const;
  bool scan_weights(Segment& part, int64_t page, int64_t first, int64_t last, const Terms* terms);
  void scan_page(Segment& part, int64_t page, int64_t first, int64_t last, const Terms* terms);
  static float finite_top(const float* upper, int64_t n);
  void reveal(Segment& part);
  void hide(const Tile& tile, int row, int64_t first, int64_t last, float* upper) const;
  void cap(float* upper, int64_t n) const;
  static void raise(Segment& part, int row, float top);
  float level_of(int64_t pair, int row);
  void align(int64_t pair, int row, float level);
  void cut(int64_t pair, int row, float* scratch);

  // Reading and answering: sweep_read.cpp.
  void share_out(int threads);
  void be_dense(int64_t pair);
  void read(const Piece& piece, Share& share);
  void read_wide(const Piece& piece, Share& share, int row);
  void add_wide(int64_t pair, int row, int64_t at, double& shift, double& mass, double* sums);
  Accuracy accuracy(int64_t pair, int row, bool wide) const;
  int64_t count(int64_t* counts);
  void note(Once& once);
  int64_t seen(int64_t pair);
  int64_t visible(int64_t pair, int row);
  End finish_row(int64_t pair, int row);
  Verdict read_all(int64_t pair, int row, uint8_t* output);
  void write_kept(int64_t pair, int row, uint8_t* to);

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
  uint16_t* members_ = nullptr;  // (pairs, stride)
  Terms* terms_ = nullptr;     // (pairs, pages, rows)
  float* levels_ = nullptr;    // (pairs, pages, rows): what the weights of a page refer to, before `align`
  std::vector<float> level_;
  std::vector<double> rest_;
  std::vector<Threshold> threshold_;
  std::vector<uint8_t> wide_;
  std::vector<int64_t> read_;
  std::vector<uint8_t> ends_;
  std::vector<std::vector<Segment>> segments_;
  std::vector<std::vector<Piece>> pieces_;
  std::vector<Share> shares_;
};

}  // namespace tailbound
