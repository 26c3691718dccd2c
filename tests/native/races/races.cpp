// What threads may do with the kernels, for ThreadSanitizer, which is to see no race:
//
//   races NAME THREADS     one of the scenes below, on teams of so many threads
//   races control-NAME ..  a scene that breaks the contract: the sanitizer must see it
//
// Built with TAILBOUND_HARNESS_OPENMP, GOMP_parallel and its like are here: teams then come as from the OpenMP runtime
// that torch loads, whose own threads a sanitizer cannot follow.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "index.h"
#include "level.h"

#ifdef TAILBOUND_HARNESS_OPENMP
namespace {
thread_local int team_thread = 0, team_count = 1;
}
extern "C" {
int omp_get_thread_num() { return team_thread; }
int omp_get_num_threads() { return team_count; }
void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned) {
  std::vector<std::thread> others;
  const auto run = [&](int thread) {
    team_thread = thread;
    team_count = static_cast<int>(threads);
    work(data);
    team_thread = 0;
    team_count = 1;
  };
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(run, static_cast<int>(i));
  run(0);
  for (std::thread& other : others) other.join();
}
}
#endif

namespace {

using namespace tailbound;
using harness::Answer;
using harness::Index;

constexpr harness::Shape kShape{Dtype::Float32, 2, 2, 20, 12, 16};
constexpr int64_t kHeads = 6, kQueries = 3, kKeys = 500;
constexpr int kRounds = 20;

std::vector<float> numbers(int64_t n, uint32_t seed) {
  std::vector<float> out;
  for (int64_t i = 0; i < n; ++i) {
    seed = seed * 1664525u + 1013904223u;
    out.push_back(static_cast<float>(static_cast<int32_t>(seed)) * 0x1p-30f);
  }
  return out;
}

// Keys, values and a query; each scene makes its own.
struct Tensors {
  std::vector<float> key = numbers(kShape.batch * kShape.kv_heads * kKeys * kShape.width, 1);
  std::vector<float> value = numbers(kShape.batch * kShape.kv_heads * kKeys * kShape.value_width, 2);
  std::vector<float> query = numbers(kShape.batch * kHeads * kQueries * kShape.width, 3);

  static Rows rows(const std::vector<float>& x, int64_t width) {
    return {reinterpret_cast<const uint8_t*>(x.data()), kShape.kv_heads * kKeys * width, kKeys * width, width};
  }
  Rows key_rows() const { return rows(key, kShape.width); }
  Rows value_rows() const { return rows(value, kShape.value_width); }
};

Answer ask(const Kernels& kernels, Level level, const Index& index, const Tensors& tensors, int threads, bool causal) {
  Answer answer(index, kHeads, kQueries, true, 0);
  Request r{};
  r.query = reinterpret_cast<const uint8_t*>(tensors.query.data());
  r.query_batch_stride = kHeads * kQueries * kShape.width;
  r.query_head_stride = kQueries * kShape.width;
  r.query_row_stride = kShape.width;
  r.heads = kHeads;
  r.queries = kQueries;
  r.epsilon = 0.05;
  r.scale = 1.0;
  r.causal = causal;
  r.dense_share = 0.9;
  answer.aim(r, index);
  tailbound::attend(kernels, level, index.store(), r, threads);
  return answer;
}

void together(int count, const std::function<void(int)>& work) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
}

int checks = 0;

void check(bool good, const char* what) {
  ++checks;
  if (good) return;
  std::fprintf(stderr, "races: %s\n", what);
  std::exit(1);
}

struct Scene {
  const Kernels& kernels;
  Level level;
  int threads;
  Tensors tensors;

  Index build() const {
    Index index(kShape, kKeys, 0xff);
    index.append(kernels, tensors.key_rows(), tensors.value_rows(), kKeys, threads);
    return index;
  }

  // Several callers on one index, each with a team: the bits of a single caller.
  void attend() const {
    const Index index = build();
    const Answer alone = ask(kernels, level, index, tensors, threads, true);
    std::vector<int> same(3, 0);
    together(3, [&](int i) {
      for (int round = 0; round < kRounds; ++round)
        same[static_cast<size_t>(i)] += ask(kernels, level, index, tensors, threads, true).same(alone, index.store());
    });
    for (int one : same) check(one == kRounds, "answers side by side differ from one alone");
  }

  // Each caller has an index of its own, which it fills, shortens and asks.
  void own() const {
    const Index whole = build();
    const Answer alone = ask(kernels, level, whole, tensors, threads, false);
    std::vector<int> same(3, 0);
    together(3, [&](int i) {
      for (int round = 0; round < kRounds / 4; ++round) {
        Index index = build();
        index.crop(0);
        index.append(kernels, tensors.key_rows(), tensors.value_rows(), kKeys, threads);
        same[static_cast<size_t>(i)] += ask(kernels, level, index, tensors, threads, false).same(alone, index.store());
      }
    });
    for (int one : same) check(one == kRounds / 4, "indexes of different threads are not independent");
  }

  // By turns, handed over by a join: a change by one thread is seen by the next.
  void turns() const {
    Index index(kShape, 16, 0xff);
    for (int round = 0; round < kRounds; ++round) {
      together(1, [&](int) { index.append(kernels, tensors.key_rows(), tensors.value_rows(), 16, threads); });
      together(2, [&](int) { ask(kernels, level, index, tensors, threads, false); });
      if (round % 5 == 4) together(1, [&](int) { index.drop_front(40); });
      check(index.length() > 0, "keys went missing");
    }
  }

  // Against the contract: keys are written over while they are read.
  void change() const {
    Index index = build();
    together(2, [&](int i) {
      for (int round = 0; round < kRounds; ++round) {
        if (i == 0) {
          ask(kernels, level, index, tensors, 1, false);
        } else {
          tailbound::append(kernels, index.store(), tensors.key_rows(), tensors.value_rows(), 0, 100, 64, 1);
        }
      }
    });
  }

  bool play(const std::string& name) const {
    if (name == "attend") return attend(), true;
    if (name == "own") return own(), true;
    if (name == "turns") return turns(), true;
    if (name == "control-change") return change(), true;
    return false;
  }
};

}  // namespace

int main(int count, char** words) {
  if (count != 3) return 2;
  const std::string name = words[1];
  const int threads = std::atoi(words[2]);
  for (Level level : built_levels()) {
    bool usable = false;
    for (Level one : cpu_levels()) usable = usable || one == level;
    if (!usable) continue;
    const Scene scene{kernels(level), level, threads, {}};
    if (!scene.play(name)) return 2;
    std::printf("races: %s, %s, %d threads a team: done\n", name.c_str(), tailbound::name(level), threads);
  }
  std::printf("races: %d checks\n", checks);
  return 0;
}
