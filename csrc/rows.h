// What a tile of queries brings to a KV head: coded for the scan, scaled for the gather, with the errors of both.
#pragma once

#include <vector>

#include "attend.h"

namespace tailbound {

struct Row {
  int64_t batch, head, query;  // which row of the call
  int64_t limit;               // sees positions before it
  int64_t visible;             // how many it sees
  double norm, unit, coding;   // |q|, t, bound on |H q - t w|
  double eta;                  // error of a float32 logit of the gather, nats, the weight's own included
  bool finite, plain;          // plain: float32 is wide enough
  double sink;
  Terms terms;                              // what is the same on all pages, and what the rest is made of:
  double spoken, error, error_of_center;    // bound on |scale t w|, on the error, and on the error for |c| = 1
};

// The rows of one tile for one (batch, KV head), and the buffers they need.
class Tile {
 public:
  Tile(const Kernels& kernels, const Store& store, const Request& request, int64_t pair, int64_t first, int rows);

  void plan(int row);

  // The terms of all rows for one page.
  void terms(int64_t page, Terms* out) const;

  const Kernels& kernels;
  const Store& store;
  const Request& request;
  int64_t pair;
  int rows;
  std::vector<Row> row;
  std::vector<double> query;     // (rows, D) as given
  std::vector<float> scaled, exact;  // (rows, padded) scale * q, and q
  std::vector<int8_t> planes;    // as Kernels::scan takes them, and the sum of each plane
  std::vector<int32_t> words;
  int64_t padded;
};

}  // namespace tailbound
