// Inner products of float32 vectors without any rounding: a fixed-point number that spans all products of two floats
// (Kulisch's accumulator). Differences of two are exact as well, so that a truth does not blur where logits are huge.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace tailbound::fuzz {

class Exact {
 public:
  // Add a * b, both finite. Bits of the floats are looked at, not their values: no processor mode changes the sum.
  void add_product(float a, float b) {
    const Parts x = split(a), y = split(b);
    const uint64_t product = x.mantissa * y.mantissa;  // below 2^48
    if (product == 0) return;
    const int shift = x.exponent + y.exponent;  // in steps of 2^-298, at least 0
    const int limb = shift / 64, within = shift % 64;
    const uint64_t low = product << within, high = within ? product >> (64 - within) : 0;
    if (x.negative != y.negative) {
      subtract(limb, low, high);
    } else {
      add(limb, low, high);
    }
  }

  Exact minus(const Exact& other) const {
    Exact out;
    uint64_t borrow = 0;
    for (int i = 0; i < kLimbs; ++i) {
      const uint64_t part = limbs_[i] - other.limbs_[i];
      out.limbs_[i] = part - borrow;
      borrow = (limbs_[i] < other.limbs_[i]) | (part < borrow);
    }
    return out;
  }

  bool negative() const { return limbs_[kLimbs - 1] >> 63; }

  // Within 2^-62 of itself.
  long double rounded() const {
    if (negative()) return -Exact().minus(*this).rounded();
    long double sum = 0.0L;
    int top = kLimbs - 1;
    while (top > 0 && limbs_[top] == 0) --top;
    for (int i = top; i >= 0 && i >= top - 2; --i) sum += std::ldexp(static_cast<long double>(limbs_[i]), 64 * i - 298);
    return sum;
  }

 private:
  // 2 * (277 - 1 + 24) bits of products, 12 for sums of 4096, a sign: 10 limbs are 640.
  static constexpr int kLimbs = 10;

  struct Parts {
    uint64_t mantissa;
    int exponent;  // of 2, from that of the smallest denormal
    bool negative;
  };

  static Parts split(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t exponent = bits >> 23 & 255u, fraction = bits & 0x7fffffu;
    return {exponent ? fraction | 0x800000u : fraction, exponent ? static_cast<int>(exponent) - 1 : 0, (bits >> 31) != 0};
  }

  void add(int at, uint64_t low, uint64_t high) {
    uint64_t carry = 0;
    for (int i = at; i < kLimbs; ++i) {
      const uint64_t more = i == at ? low : i == at + 1 ? high : 0;
      const uint64_t part = limbs_[i] + more, sum = part + carry;
      carry = (part < more) | (sum < part);
      limbs_[i] = sum;
      if (i > at && carry == 0) return;
    }
  }

  void subtract(int at, uint64_t low, uint64_t high) {
    uint64_t borrow = 0;
    for (int i = at; i < kLimbs; ++i) {
      const uint64_t less = i == at ? low : i == at + 1 ? high : 0;
      const uint64_t part = limbs_[i] - less, rest = part - borrow;
      borrow = (limbs_[i] < less) | (part < borrow);
      limbs_[i] = rest;
      if (i > at && borrow == 0) return;
    }
  }

  uint64_t limbs_[kLimbs] = {};
};

}  // namespace tailbound::fuzz
