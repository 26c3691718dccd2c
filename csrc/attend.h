// Certified attention over a store: sketch scan, cut, shared gather, merge, certificate. docs/engine.md is its story.
#pragma once

#include "kernels.h"

namespace tailbound {

struct Request {
  const uint8_t* query;  // the store's dtype, rows contiguous
  int64_t query_batch_stride, query_head_stride, query_row_stride;  // elements
  int64_t heads, queries;
  int64_t start, stop;  // positions held
  double epsilon, scale;
  const double* epsilons;  // one for each head in the place of `epsilon`, or null
  double softcap;  // 0: none
  bool causal;     // the queries are the last positions
  const uint8_t* mask;  // bool (batch, heads, queries, stop - start) by strides, or null
  int64_t mask_strides[4];
  const double* sink;  // (batch, heads, queries), contiguous, or null
  int64_t dense_below;  // this many keys are read without a scan
  double dense_share;   // a union of heads above this share is not worth picking out of memory

  uint8_t* output;  // (batch, heads, queries, value width) in the store's dtype, and so on, all contiguous
  double* tv;
  double* error;
  int32_t* kept;
  uint8_t* status;
  uint8_t* kept_set;  // bool (batch, heads, queries, stop - start), or null
  int64_t* counts;    // isa, threads, keys visible, keys read, bytes read
};

enum Status : uint8_t { kCertified = 0, kDense = 1, kEmpty = 2, kNonfinite = 3 };

// Answer all rows. Rows that are not finite are only marked; returns how many there are.
int64_t attend(const Kernels& kernels, Level level, const Store& store, const Request& request, int threads);

}  // namespace tailbound
