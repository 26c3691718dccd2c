#include "threads.h"

#include <memory>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
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
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
    if (spins < 20000) relax();
    else std::this_thread::yield();
  }
}

void run_team(int threads, void (*work)(void*, const Team&), void* data) {
  if (threads <= 1) {
    Barrier alone(1);
    work(data, Team{0, 1, alone});
    return;
  }
  const OpenMp& omp = openmp();
  if (omp.parallel && omp.thread && omp.count) {
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
