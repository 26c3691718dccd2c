// A fuzzer's bytes as choices: each takes what it needs from the front, and zeros when they are used up.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tailbound::fuzz {

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  bool left() const { return at_ < size_; }
  uint8_t byte() { return at_ < size_ ? data_[at_++] : 0; }
  uint16_t word() { return static_cast<uint16_t>(byte() << 8 | byte()); }
  int64_t below(int64_t n) { return byte() % n; }
  bool one_in(int n) { return byte() % n == n - 1; }  // not for a zero byte: what is missing is plain

  template <class T, size_t N>
  T of(const T (&choices)[N]) {
    return choices[byte() % N];
  }

 private:
  const uint8_t* data_;
  size_t size_, at_ = 0;
};

// Numbers that need no bytes: a small linear generator with a mixed output (splitmix64).
class Stream {
 public:
  explicit Stream(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  double bell() { return 2.0 * (uniform() + uniform() + uniform()) - 3.0; }  // variance 1

 private:
  uint64_t state_;
};

}  // namespace tailbound::fuzz
