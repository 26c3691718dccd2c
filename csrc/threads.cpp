#include "threads.h"

#include <climits>
#include <memory>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tailbound {
namespace {

struct Job {
  void (*work)(void*, const Team&);
  void* data;
  std::unique_ptr<Barrier> barrier;
  std::atomic<int> started{0};
};

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Count = int (*)();

struct OpenMp {
  Parallel parallel = nullptr;
  Count thread = nullptr, count = nullptr;
};

// A child that fork made has none of OpenMP's threads, and libgomp would wait for them for ever. Torch may have started
// them, so whether this code had a team before says nothing.
std::atomic<bool> forked{false};
#if defined(__linux__)
[[maybe_unused]] const int watching = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

// libgomp's entry points, which libomp has too, as loaded by torch.
const OpenMp& openmp() {
  static const OpenMp found = [] {
    OpenMp omp;
#if defined(__linux__)
    omp.parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    omp.thread = reinterpret_cast<Count>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
    omp.count = reinterpret_cast<Count>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
#endif
    return omp;
  }();
  return found;
}

// The size of a team is known only inside it: the first thread makes the barrier.
void in_team(void* data) {
  Job& job = *static_cast<Job*>(data);
  const int thread = openmp().thread(), count = openmp().count();
  if (thread == 0) {
    job.barrier = std::make_unique<Barrier>(count);
    job.started.store(1, std::memory_order_release);
  }
  while (job.started.load(std::memory_order_acquire) == 0) std::this_thread::yield();
  job.work(job.data, Team{thread, count, *job.barrier});
}

// Sleep while `word` is `value`, and wake all who do. Elsewhere a turn is given up instead.
void sleep_while(std::atomic<int>& word, int value) {
#if defined(__linux__)
  syscall(SYS_futex, reinterpret_cast<int*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
  if (word.load() == value) std::this_thread::yield();
#endif
}

void wake_all(std::atomic<int>& word) {
#if defined(__linux__)
  syscall(SYS_futex, reinterpret_cast<int*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
  (void)word;
#endif
}

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

void Barrier::wait() {
  if (count_ == 1) return;
  const int round = round_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1);
    if (asleep_.load() > 0) wake_all(round_);
    return;
  }
  // A thread that has lost its core to another process is waited for asleep: spinning and yielding took 30 times longer.
  for (int spins = 0; spins < 2000; ++spins) {
    if (round_.load(std::memory_order_acquire) != round) return;
    relax();
  }
  asleep_.fetch_add(1);
  while (round_.load() == round) sleep_while(round_, round);
  asleep_.fetch_sub(1);
}

void run_team(int threads, void (*work)(void*, const Team&), void* data) {
  if (threads <= 1) {
    Barrier alone(1);
    work(data, Team{0, 1, alone});
    return;
  }
  const OpenMp& omp = openmp();
  if (omp.parallel && omp.thread && omp.count && !forked) {
    Job job;
    job.work = work;
    job.data = data;
    omp.parallel(in_team, &job, static_cast<unsigned>(threads), 0);
    return;
  }
  Barrier barrier(threads);
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back([&, i] { work(data, Team{i, threads, barrier}); });
  work(data, Team{0, threads, barrier});
  for (std::thread& other : others) other.join();
}

}  // namespace tailbound
