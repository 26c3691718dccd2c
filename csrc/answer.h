// From masses to certificates (engine/partial.py and engine/finish.py in C++): one row at a time, in float64.
#pragma once

#include <cstdint>

#include "store.h"

namespace tailbound {

// What is known of one row from some of its keys; masses relative to exp(shift).
struct Partial {
  double shift, mass, tail;
  double* sums;  // (value width)
  int64_t kept;
};

// Errors of a row's partials: nats of each logit, relative error of sums, least mass that a weight can be.
struct Accuracy {
  double eta, gamma, least;
};

struct Verdict {
  double tv, error;
  bool finite;
};

// Merge `count` partials and a sink (-inf for none) into the row's output and certificate. Writes to parts[0].sums.
Verdict answer(Partial* parts, int count, double sink, bool has_sink, const Accuracy& accuracy, const Store& store,
               int64_t pair, uint8_t* output);

}  // namespace tailbound
