// Work on several threads, with barriers between phases.
#pragma once

#include <atomic>

namespace tailbound {

class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}
  void wait();

 private:
  const int count_;
  std::atomic<int> arrived_{0};
  std::atomic<int> round_{0}, asleep_{0};
};

// What one thread of a team is told. `count` may be less than was asked for.
struct Team {
  int thread, count;
  Barrier& barrier;
};

// Run work(data, team) on up to `threads` threads. They come from the OpenMP runtime that torch has loaded, if there is one:
// two pools on the same cores would wait for each other's spinning threads. Without it, they are started for the call.
void run_team(int threads, void (*work)(void*, const Team&), void* data);

template <class F>
void run_team(int threads, F&& work) {
  run_team(threads, [](void* data, const Team& team) { (*static_cast<F*>(data))(team); }, &work);
}

}  // namespace tailbound
