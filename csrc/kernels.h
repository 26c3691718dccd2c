// The kernels, one table per ISA level. A table is chosen once per call, outside every loop.
#pragma once

#include <cstddef>
#include <cstdint>

#include "level.h"
#include "store.h"

namespace tailbound {

constexpr int kMaxRows = 16;  // queries that share one sweep over the keys

// What one query brings to the interval of a key of one page: with p = <w, z>, step h, residual r and extent x,
// upper = base + unit * p * h + (residual * r + extent * x + error), and the lower end is at least upper minus twice the
// bracket. docs/engine.md derives the sizes.
struct Terms {
  float base, unit, residual, extent, error;
};

// Which keys of a row have weight: those above theta, and those equal to it at positions before `ties`.
struct Threshold {
  float theta;
  int64_t ties;
};

// Exact attention over some keys of one KV head: rows share every read.
struct Gather {
  const Store* store;
  int64_t pair;
  const int32_t* index;   // positions from `origin`, ascending; null: `first` and on
  int64_t first, count;
  int rows;
  const float* query;     // (rows, padded width): scale * q, float32
  const float* exact;     // (rows, padded width): q
  float scale;
  int64_t query_stride;
  int64_t origin;
  const uint16_t* members;  // of each key of `index`, the rows that it has weight for, a bit each
  const int64_t* limit;   // without an index: row r sees positions before limit[r]
  float* shift;           // (rows) in: at least every logit, or -inf if unknown; out: what mass and sums refer to
  double* mass;           // (rows) added to
  double* sums;           // (rows, value width) added to
  int32_t* kept;          // (rows) added to
};

// Of a query's words (bounds/interval.py): |q|, the unit t, a bound on |H q - t w|. Words are at most kWordMax.
struct CodedQuery {
  double norm, unit, error;
};
constexpr double kWordMax = 63.0 * 64.0 + 31.0;

struct Kernels {
  // Code one key: D doubles and its page's centre to codes at a block's lane, and to marks (step, residual, extent).
  void (*code_key)(const double* key, const float* center, int64_t width, double* scratch, int8_t* codes, int64_t lane,
                   uint16_t* marks);

  // Code one query: D doubles to two planes of words (coarse at planes[d / 4 * stride + d % 4], fine 4 further), whose sums go
  // to words[0] and words[1]. scratch: 2 D doubles.
  CodedQuery (*code_query)(const double* query, int64_t width, double* scratch, int8_t* planes, int64_t stride,
                           int32_t* words);

  // Inner products of a page's centre with some queries (rows, D), and with itself; each in float64, in any order.
  void (*center_products)(const float* center, int64_t width, const double* queries, int rows, double* out);

  // Upper ends of all keys of some blocks of one page for all rows: upper[row * stride + key].
  // planes: (ceil(D / 4), rows, 2, 4) int8, coarse then fine, zero where D ends; words: (rows, 2), the sum of each plane.
  void (*scan)(const int8_t* codes, const uint16_t* marks, int64_t blocks, int64_t width, const int8_t* planes,
               const int32_t* words, int rows, const Terms* terms, float* upper, int64_t stride);

  // Largest of n (a multiple of 16) upper ends that is not NaN; +inf if one is.
  float (*top)(const float* upper, int64_t n);

  // In place, upper ends (upper[row * stride + key]) of some blocks of one page to weights: at least exp(upper - level), at
  // least the smallest normal; 0 for -inf (hidden), +inf for NaN and +inf. For each row, adds at most the sum of
  // exp(lower - level) to *sure. Returns whether a weight is infinite.
  bool (*weigh)(float* upper, int64_t stride, const uint16_t* marks, int64_t blocks, int rows, const Terms* terms,
                const float* level, double* sure);

  // `scan`, `top` of each row, and `weigh` in one pass, where every key of the blocks is seen and no end is more than
  // kLevelSlack above its level. If one is, or if this returns false for an end that is not finite, the weights and sums
  // are not to be used.
  bool (*scan_weights)(const int8_t* codes, const uint16_t* marks, int64_t blocks, int64_t width, const int8_t* planes,
                       const int32_t* words, int rows, const Terms* terms, const float* level, float* weights,
                       int64_t stride, float* top, double* sure);

  // Weights times a factor of at most 1, rounded up: at least the smallest normal, or 0 as before.
  void (*shrink)(float* weights, int64_t n, float factor);

  // The threshold that leaves out as much weight as it can, at most `budget`; *rest is that weight, rounded up.
  // scratch: 2 n + 64 floats; n is a multiple of 16. Infinite weights are never left out.
  Threshold (*cut)(const float* weights, int64_t n, double budget, float* scratch, double* rest);

  // Positions (from `first`) of n weights at which some row has weight, and which rows, a bit each; returns how many.
  int64_t (*pick)(const float* weights, int64_t stride, int64_t first, int64_t n, int rows, const Threshold* threshold,
                  int32_t* index, uint16_t* members);

  void (*gather)(const Gather& gather);

  // Roundings in float32 behind a logit and a weight of `gather`, for its error.
  double (*logit_roundings)(int64_t width);
};

// Relative error of a weight exp(s - shift) in `gather` beside the error of s, for |s - shift| <= 88; sums of at most
// kSumRoundings float32 terms before they go to float64.
constexpr double kWeightRelative = 0x1p-16;
constexpr double kSumRoundings = 288.0;

// What a key that is left out weighs at least in the vector kernels, and what a kept one may lose: their exponentials end
// at -87, where the true one is 1.4 times 2^-126.
constexpr float kLeastWeight = 0x1p-125f;

// How far an upper end may be above its level, nats: the kernels' exponentials hold there.
constexpr float kLevelSlack = 8.0f;

extern const Kernels kScalarKernels;
#ifdef TAILBOUND_HAS_AVX2
extern const Kernels kAvx2Kernels;
#endif
#ifdef TAILBOUND_HAS_AVX512VNNI
extern const Kernels kAvx512VnniKernels;
#endif
#ifdef TAILBOUND_HAS_AVX512BF16
extern const Kernels kAvx512Bf16Kernels;
#endif
#ifdef TAILBOUND_HAS_NEONDOT
extern const Kernels kNeonDotKernels;
#endif

const Kernels& kernels(Level level);

inline bool has_weight(float weight, int64_t position, const Threshold& t) {
  return weight > t.theta || (weight == t.theta && position < t.ties);
}

}  // namespace tailbound
