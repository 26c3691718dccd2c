// What is true of an answer, from the stored tensors alone: nothing of csrc but the three storage formats.
#pragma once

#include <cstdint>
#include <string>

#include "store.h"

namespace tailbound::fuzz {

// One row of a question, and where its keys are.
struct RowQuestion {
  const uint8_t* query;  // (width) in the store's dtype
  const uint8_t* key;    // (keys, width), contiguous, likewise
  const uint8_t* value;  // (keys, value width)
  const bool* visible;   // (keys)
  int64_t keys, width, value_width;
  Dtype dtype;
  double scale, softcap, epsilon, sink;  // softcap 0: none
  bool has_sink;
};

// What the kernels said of it.
struct RowAnswer {
  double tv, error;
  int32_t kept;
  uint8_t status;
  const uint8_t* output;    // (value width)
  const uint8_t* kept_set;  // (keys)
};

// "" if every promise holds, or the one that does not, with both numbers.
std::string broken_promise(const RowQuestion& question, const RowAnswer& answer);

}  // namespace tailbound::fuzz
