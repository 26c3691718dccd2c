// What the programs of scripts/cross.sh share: random numbers, and checks that are counted. A program that checked nothing
// fails.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"

namespace checks {

// SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  double uniform(double low, double high) { return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53; }
  double normal() { return std::sqrt(-2.0 * std::log(1.0 - uniform(0.0, 1.0))) * std::cos(6.283185307179586 * uniform(0.0, 1.0)); }

 private:
  uint64_t state_;
};

// Every tail of a chunk of 16, and the usual widths.
inline const std::vector<int64_t> kWidths = {1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14,  15,  16,  17,
                                      18, 19, 20, 23, 24, 31, 32, 33, 48, 64, 65, 80, 127, 128, 131, 256};

struct Count {
  std::string name;
  int64_t made = 0, failed = 0;
};

inline std::vector<Count>& counts() {
  static std::vector<Count> all;
  return all;
}

inline void begin(const char* name) { counts().push_back({name}); }

inline bool check(bool good) {
  ++counts().back().made;
  counts().back().failed += !good;
  return good;
}

// Says what was seen, for the first five of a kernel.
template <class... Seen>
void expect(bool good, const char* format, Seen... seen) {
  if (check(good) || counts().back().failed > 5) return;
  std::printf("  %s: ", counts().back().name.c_str());
  std::printf(format, seen...);
  std::printf("\n");
}

// 0 if there were checks of each name and none failed.
inline int verdict() {
  int bad = counts().empty();
  for (const Count& c : counts()) {
    std::printf("%-16s %9lld checks, %lld failed\n", c.name.c_str(), static_cast<long long>(c.made), static_cast<long long>(c.failed));
    bad |= c.made == 0 || c.failed > 0;
  }
  return bad;
}

// The level above scalar that this program was built for; ends the program if it cannot run.
inline tailbound::Level level_above() {
  for (tailbound::Level level : tailbound::built_levels())
    for (tailbound::Level cpu : tailbound::cpu_levels())
      if (level == cpu && level != tailbound::Level::Scalar) return level;
  std::printf("no level above scalar can run here\n");
  std::exit(2);
}

using Part = void (*)(const tailbound::Kernels&);

// All parts, or those named on the command line, and the verdict on them.
inline int run(const std::vector<std::pair<std::string, Part>>& parts, int count, char** names) {
  const tailbound::Level level = level_above();
  std::printf("%s against scalar and float64\n", tailbound::name(level));
  for (const auto& [name, part] : parts)
    if (count == 1 || std::find(names + 1, names + count, name) != names + count) part(tailbound::kernels(level));
  return verdict();
}

}  // namespace checks
