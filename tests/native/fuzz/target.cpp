// The fuzz target: bytes become a case and a sequence of append, crop, drop_front and attend, and every answer is held to
// its promises (truth.h). Beside them: codes are the same bits as the scalar ones, and an answer does not depend on what
// memory held before, on whether the kept set was asked for, or on strides.
//
// TAILBOUND_FUZZ_CONTROL in the environment makes it fail on purpose: "tv" and "error" halve what was promised, "short"
// passes a query that is too short, "undefined" overflows an integer.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "scene.h"
#include "truth.h"

namespace tailbound {
int32_t control(const std::string& error, int64_t n);
}

namespace tailbound::fuzz {
namespace {

constexpr int64_t kMostKeys = 700;
constexpr int64_t kMostNumbers = 1 << 15;  // held by an index: small cases, and many of them
constexpr int64_t kMostWork = 1 << 17;     // products of all keys and queries of one attend

const char* control_named() {
  const char* name = std::getenv("TAILBOUND_FUZZ_CONTROL");
  return name ? name : "";
}

[[noreturn]] void fail(const Scene& s, const std::string& what) {
  std::fprintf(stderr, "promise broken: %s\n  level %s, threads %d, dtype %d, batch %d, KV heads %d, group %d, D %d, Dv %d, page %d, flush %d %d\n",
               what.c_str(), name(s.level), s.threads, static_cast<int>(s.shape.dtype), static_cast<int>(s.shape.batch),
               static_cast<int>(s.shape.kv_heads), static_cast<int>(s.group), static_cast<int>(s.shape.width),
               static_cast<int>(s.shape.value_width), static_cast<int>(s.shape.page), s.flush_building, s.flush_attending);
  std::abort();
}

// Denormals read and written as zero, as torch.set_flush_denormal has it.
class Flushing {
 public:
  explicit Flushing(bool on) {
#if defined(__x86_64__)
    before_ = _mm_getcsr();
    if (on) _mm_setcsr(before_ | 0x8040u);
#else
    (void)on;
#endif
  }
  ~Flushing() {
#if defined(__x86_64__)
    _mm_setcsr(before_);
#endif
  }

 private:
  unsigned before_ = 0;
};

// The same keys in three indexes: one that is asked, one in other memory, one whose codes are the scalar ones.
class Case {
 public:
  explicit Case(Bytes& bytes)
      : bytes_(bytes), scene_(scene_from(bytes)), kernels_(kernels(scene_.level)), room_(bytes.byte() % 64),
        index_(scene_.shape, room_, scene_.garbage), other_(scene_.shape, 4 * room_, scene_.other_garbage),
        scalar_(scene_.shape, room_, scene_.garbage) {}

  void run() {
    for (int step = 0; step < 10 && (bytes_.left() || step < 2); ++step) {
      switch (step == 0 ? 0 : bytes_.below(8)) {
        case 0: case 1: case 2: append(); break;
        case 3: each([&](harness::Index& i, int64_t n) { i.crop(n); }, index_.length()); break;
        case 4: each([&](harness::Index& i, int64_t n) { i.drop_front(n); }, index_.length()); break;
        default: attend();
      }
    }
    attend();
  }

 private:
  template <class F>
  void each(F change, int64_t length) {
    const int64_t n = bytes_.word() % (length + 1);
    for (harness::Index* index : {&index_, &other_, &scalar_}) change(*index, n);
  }

  void append() {
    const harness::Shape& shape = scene_.shape;
    const int64_t most = std::min(kMostKeys, kMostNumbers / (shape.batch * shape.kv_heads * (shape.width + shape.value_width)));
    const int64_t least = bytes_.byte(), count = std::min(bytes_.one_in(4) ? 2 * least : least % 40, most - index_.length());
    if (count <= 0) return;
    const Tensor key = tensor_from(bytes_, scene_, shape.kv_heads, count, shape.width);
    const Tensor value = tensor_from(bytes_, scene_, shape.kv_heads, count, shape.value_width);
    {
      const Flushing flushing(scene_.flush_building);
      index_.append(kernels_, key.rows(), value.rows(), count, scene_.threads);
      other_.append(kernels_, key.rows(), value.rows(), count, scene_.threads);
      scalar_.append(kScalarKernels, key.rows(), value.rows(), count, 1);
    }
    compare_codes();
  }

  void compare_codes() {
    const Store &a = index_.store(), &b = scalar_.store();
    for (int64_t p = 0; p < a.pairs(); ++p)
      for (int64_t i = index_.start(); i < index_.stop(); ++i) {
        const int64_t block = i / kBlock, lane = i % kBlock;
        bool same = true;
        for (int m = 0; m < 3; ++m) same = same && a.block_marks(p, block)[m * kBlock + lane] == b.block_marks(p, block)[m * kBlock + lane];
        for (int64_t d = 0; d < a.width; ++d) {
          const int64_t place = code_place(a.width, lane, d);
          same = same && a.block_codes(p, block)[place] == b.block_codes(p, block)[place];
        }
        if (!same) fail(scene_, "codes differ from the scalar ones at position " + std::to_string(i));
      }
  }

  void attend() {
    const harness::Shape& shape = scene_.shape;
    const int64_t heads = shape.kv_heads * scene_.group, keys = index_.length();
    if (keys == 0) return;
    const int64_t each = shape.batch * heads * keys * (shape.width + shape.value_width);
    const int64_t queries = std::min<int64_t>(1 + bytes_.below(6), kMostWork / each);
    if (queries == 0) return;
    const bool cut_short = std::strcmp(control_named(), "short") == 0;
    const Tensor query = tensor_from(bytes_, scene_, heads, queries, shape.width, cut_short ? 1 : 0);

    Request r{};
    r.query = query.memory.get();
    r.query_batch_stride = query.batch_stride;
    r.query_head_stride = query.head_stride;
    r.query_row_stride = query.row_stride;
    r.heads = heads;
    r.queries = queries;
    const double epsilons[] = {0.05, 0.01, 0.3, 0.0, 1e-3, 0.45, 0.9, 1e-9, 1.0 - 0x1p-53, 0x1p-1074};
    r.epsilon = bytes_.of(epsilons);
    std::vector<double> own(static_cast<size_t>(heads), r.epsilon);
    if (bytes_.one_in(4)) {
      for (double& one : own) one = bytes_.of(epsilons);
      r.epsilons = own.data();
      r.epsilon = 0.0;
    }
    r.scale = scale();
    r.softcap = bytes_.one_in(8) ? magnitude_from(bytes_) * 3.0 : 0.0;
    r.causal = bytes_.one_in(3);
    Mask mask{};
    if (bytes_.one_in(4)) {
      mask = mask_from(bytes_, shape.batch, heads, queries, keys);
      r.mask = mask.memory.get();
      std::copy_n(mask.strides, 4, r.mask_strides);
    }
    std::vector<double> sink;
    if (bytes_.one_in(4)) {
      const double size = magnitude_from(bytes_);
      Stream stream(bytes_.byte());
      for (int64_t i = 0; i < shape.batch * heads * queries; ++i)
        sink.push_back(stream.next() % 8 ? size * stream.bell() : -std::numeric_limits<double>::infinity());
      r.sink = sink.data();
    }
    const int64_t below[] = {0, 0, 3, 256};
    const double shares[] = {1.0, 0.5, 0.0};
    r.dense_below = bytes_.of(below);
    r.dense_share = bytes_.of(shares);

    harness::Answer answer(index_, heads, queries, true, 0x55), again(other_, heads, queries, false, 0xaa);
    {
      const Flushing flushing(scene_.flush_attending);
      answer.aim(r, index_);
      tailbound::attend(kernels_, scene_.level, index_.store(), r, scene_.threads);
      again.aim(r, other_);
      tailbound::attend(kernels_, scene_.level, other_.store(), r, scene_.threads);
    }
    if (!answer.same(again, index_.store())) fail(scene_, "the answer depends on what memory held before");
    if (answer.counts[3] > keys * shape.batch * shape.kv_heads) fail(scene_, "more keys were read than there are");
    judge(r, query, mask, own, answer);
  }

  double scale() {
    const double root = 1.0 / std::sqrt(static_cast<double>(scene_.shape.width));
    switch (bytes_.below(8)) {
      case 4: return 1.0;
      case 5: return magnitude_from(bytes_) * magnitude_from(bytes_) * root;
      case 6: return -root;
      case 7: return bytes_.one_in(2) ? 0.0 : std::ldexp(1.0 + bytes_.byte() / 256.0, 8 * (bytes_.byte() - 128));
      default: return root;
    }
  }

  void judge(const Request& r, const Tensor& query, const Mask& mask, const std::vector<double>& epsilon, const harness::Answer& a) {
    const harness::Shape& shape = scene_.shape;
    const Store& store = index_.store();
    const int64_t keys = index_.length();
    const std::unique_ptr<bool[]> visible(new bool[static_cast<size_t>(keys)]);
    for (int64_t b = 0; b < shape.batch; ++b)
      for (int64_t h = 0; h < r.heads; ++h)
        for (int64_t t = 0; t < r.queries; ++t) {
          for (int64_t i = 0; i < keys; ++i)
            visible[static_cast<size_t>(i)] = (!r.causal || i <= keys - r.queries + t) && (!r.mask || mask.at(b, h, t, i));
          const int64_t at = (b * r.heads + h) * r.queries + t, pair = b * shape.kv_heads + h / scene_.group;
          const RowQuestion question{query.row(shape.dtype, b, h, t), store.key_row(pair, index_.start()),
                                     store.value_row(pair, index_.start()), visible.get(), keys, shape.width, shape.value_width,
                                     shape.dtype, r.scale, r.softcap, epsilon[static_cast<size_t>(h)], r.sink ? r.sink[at] : 0.0,
                                     r.sink != nullptr};
          const size_t i = static_cast<size_t>(at);
          RowAnswer said{a.tv[i], a.error[i], a.kept[i], a.status[i], a.output.get() + at * store.value_bytes(),
                         a.kept_set.get() + at * keys};
          if (std::strcmp(control_named(), "tv") == 0) said.tv *= 0.5;
          if (std::strcmp(control_named(), "error") == 0) said.error *= 0x1p-10;
          const std::string broken = broken_promise(question, said);
          if (!broken.empty()) fail(scene_, "row " + std::to_string(at) + ": " + broken);
        }
  }

  Bytes& bytes_;
  const Scene scene_;
  const Kernels& kernels_;
  const int64_t room_;
  harness::Index index_, other_, scalar_;
};

}  // namespace
}  // namespace tailbound::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  tailbound::control(tailbound::fuzz::control_named(), static_cast<int64_t>(size) + 1);
  tailbound::fuzz::Bytes bytes(data, size);
  tailbound::fuzz::Case(bytes).run();
  return 0;
}
