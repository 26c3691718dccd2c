// The Python module and nothing else: arguments in, kernels called with the GIL released, answers out.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "append.h"
#include "attend.h"
#include "kernels.h"
#include "level.h"

#if defined(__linux__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace nb = nanobind;
using namespace nb::literals;

#ifdef TAILBOUND_SANITIZE
namespace tailbound {
int32_t control(const std::string& error, int64_t n);
}
#endif

namespace {

std::atomic<bool> closing{false};
std::atomic<int> in_flight{0}, parked{0}, callers{0};

// Counts its thread among the callers from its first call to its end.
struct Caller {
  ~Caller() {
    if (counted) --callers;
  }
  void count() {
    if (!counted) ++callers;
    counted = true;
  }
  bool counted = false;
};

thread_local Caller caller;

bool is_daemon() { return nb::cast<bool>(nb::module_::import_("threading").attr("current_thread")().attr("daemon")); }

// The GIL, given up for the length of a call. A daemon thread that wants it back while the interpreter ends is ended there,
// in the middle of C++, and the process aborts with it (up to Python 3.13; later it sleeps). So `drain`, which runs at exit,
// waits for the calls in flight, and a daemon's next call sleeps until the process is gone.
class WithoutGil {
 public:
  WithoutGil() {
    caller.count();
    if (closing) {
      if (!is_daemon()) return;  // keeps the GIL, and so nobody ends it
      ++parked;
      PyEval_SaveThread();
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
    ++in_flight;
    state_ = PyEval_SaveThread();
  }
  ~WithoutGil() {
    if (!state_) return;
    PyEval_RestoreThread(state_);
    --in_flight;
  }
  WithoutGil(const WithoutGil&) = delete;

 private:
  PyThreadState* state_ = nullptr;
};

// The threads that have called and live on are daemons: the others were joined before. They are granted a quarter of a
// second to come to their next call, since what torch does between calls aborts as well.
void drain() {
  closing = true;
  caller.count();
  nb::gil_scoped_release release;
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(250);
  while (in_flight > 0 || (parked < callers - 1 && std::chrono::steady_clock::now() < until))
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

std::vector<std::string> names(const std::vector<tailbound::Level>& levels) {
  std::vector<std::string> out;
  for (tailbound::Level level : levels) out.emplace_back(tailbound::name(level));
  return out;
}

// Tensors of an index cross as addresses: looking into an ndarray argument costs 2.4 microseconds, an address 0.06, and a
// decode step has hundreds. engine/native.py, the only caller, has checked dtype, shape, device and strides before.
template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

using Address = uintptr_t;
using Strides = std::tuple<int64_t, int64_t, int64_t>;

tailbound::Store make_store(int dtype, std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t> shape,
                            std::vector<Address> buffers) {
  const auto [batch, kv_heads, capacity, width, value_width, page] = shape;
  if (dtype < 0 || dtype > 2 || buffers.size() != 7) throw std::invalid_argument("not a store of three dtypes and 7 buffers");
  return {static_cast<tailbound::Dtype>(dtype), batch, kv_heads, capacity, width, value_width, page,
          at<uint8_t>(buffers[0]), at<uint8_t>(buffers[1]), at<int8_t>(buffers[2]), at<uint16_t>(buffers[3]),
          at<float>(buffers[4]), at<double>(buffers[5]), at<double>(buffers[6])};
}

void append(const tailbound::Store& store, Address key, Strides key_strides, Address value, Strides value_strides,
            int64_t start, int64_t stop, int64_t count, Address span, int threads) {
  const tailbound::Kernels& k = tailbound::kernels(tailbound::active_level());
  const auto [kb, kh, kr] = key_strides;
  const auto [vb, vh, vr] = value_strides;
  const WithoutGil release;
  tailbound::append(k, store, {at<const uint8_t>(key), kb, kh, kr}, {at<const uint8_t>(value), vb, vh, vr}, start, stop, count,
                    threads);
  at<int64_t>(span)[0] = start;
  at<int64_t>(span)[1] = stop + count;
}

using Counts = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

// `packed`: tv, output_error, kept and status of all rows, one after the other. Returns how many rows are not finite, and
// the counts of a request.
Counts attend(const tailbound::Store& store, Address query, Strides strides, int64_t heads, int64_t queries, int64_t start,
               int64_t stop, double epsilon, Address epsilons, double scale, double softcap, bool causal, Address mask,
               std::tuple<int64_t, int64_t, int64_t, int64_t> mask_strides, Address sink, int64_t dense_below,
               double dense_share, Address output, Address packed, Address kept_set, int threads) {
  const tailbound::Level level = tailbound::active_level();
  const tailbound::Kernels& k = tailbound::kernels(level);
  tailbound::Request r{};
  r.query = at<const uint8_t>(query);
  std::tie(r.query_batch_stride, r.query_head_stride, r.query_row_stride) = strides;
  r.heads = heads;
  r.queries = queries;
  r.start = start;
  r.stop = stop;
  r.epsilon = epsilon;
  r.epsilons = at<const double>(epsilons);
  r.scale = scale;
  r.softcap = softcap;
  r.causal = causal;
  r.mask = at<const uint8_t>(mask);
  std::tie(r.mask_strides[0], r.mask_strides[1], r.mask_strides[2], r.mask_strides[3]) = mask_strides;
  r.sink = at<const double>(sink);
  r.dense_below = dense_below;
  r.dense_share = dense_share;
  r.output = at<uint8_t>(output);
  const int64_t rows = store.batch * heads * queries;
  r.tv = at<double>(packed);
  r.error = r.tv + rows;
  r.kept = reinterpret_cast<int32_t*>(r.error + rows);
  r.status = reinterpret_cast<uint8_t*>(r.kept + rows);
  r.kept_set = at<uint8_t>(kept_set);
  int64_t counts[5];
  r.counts = counts;
  const WithoutGil release;
  const int64_t bad = tailbound::attend(k, level, store, r, threads);
  return {bad, counts[0], counts[1], counts[2], counts[3], counts[4]};
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // daemon threads hold on to an index until the end, which is no leak
  nb::module_::import_("atexit").attr("register")(nb::cpp_function(&drain));
#if defined(__linux__) || defined(__APPLE__)
  pthread_atfork(nullptr, nullptr, [] {  // only the thread that forked is in the child
    in_flight = 0;
    callers = caller.counted;
  });
#endif
  m.def("cpu_levels", [] { return names(tailbound::cpu_levels()); });
  m.def("built_levels", [] { return names(tailbound::built_levels()); });
  m.def("active_level", [] { return std::string(tailbound::name(tailbound::active_level())); });
  nb::class_<tailbound::Store>(m, "Store");
  m.def("store", &make_store, "dtype"_a, "shape"_a, "buffers"_a);
  m.def("append", &append);
  m.def("attend", &attend);
#ifdef TAILBOUND_SANITIZE
  m.def("control", &tailbound::control);
#endif
}
