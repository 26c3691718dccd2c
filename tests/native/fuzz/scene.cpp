#include "scene.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tailbound::fuzz {
namespace {

// Around 4, 8, 16 and 32, where groups, lanes and vectors end; two widths beyond 517, where planes leave 2^31 together.
constexpr int16_t kWidths[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 20, 24, 31, 32, 33, 48, 63, 64, 65, 80, 96, 127, 128, 129, 160, 257, 520};

double largest_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::Float32: return 0x1.fffffep127;
    case Dtype::BFloat16: return 0x1.fep127;
    default: return 65504.0;
  }
}

void put(Dtype dtype, void* to, int64_t i, double x) {
  const double most = largest_of(dtype);
  store(dtype, to, i, std::isfinite(x) ? std::max(-most, std::min(most, x)) : x);
}

void put_bits(Dtype dtype, void* to, int64_t i, uint32_t bits) {
  if (dtype == Dtype::Float32) {
    static_cast<uint32_t*>(to)[i] = bits;
  } else {
    static_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(bits);
  }
}

double special_from(Bytes& bytes, Dtype dtype) {
  const double infinity = std::numeric_limits<double>::infinity(), most = largest_of(dtype);
  const double tiny = dtype == Dtype::Float16 ? 0x1p-24 : dtype == Dtype::BFloat16 ? 0x1p-133 : 0x1p-149;
  const double normal = dtype == Dtype::Float16 ? 0x1p-14 : 0x1p-126;
  const double choices[] = {0.0, -0.0, 1.0, most, -most, tiny, -tiny, normal, -normal, normal - tiny, most / 2.0, 0x1p64, infinity, -infinity, std::nan("")};
  return choices[bytes.byte() % 15];
}

enum Kind : uint8_t { kBell, kOffset, kFew, kSparse, kRaw, kWide, kAlong, kCoded, kKinds };

// One row of numbers of about 1.
void fill(Kind kind, Stream& stream, Stream direction, double offset, int64_t width, double* row) {
  const double along = stream.bell();
  const int64_t one = static_cast<int64_t>(stream.next() % static_cast<uint64_t>(width));
  for (int64_t d = 0; d < width; ++d) {
    const double side = direction.next() & 1 ? 1.0 : -1.0;
    switch (kind) {
      case kOffset: row[d] = side * offset + stream.bell(); break;
      case kSparse: row[d] = d == one ? along : 0.0; break;
      case kWide: row[d] = std::ldexp(stream.bell(), static_cast<int>(stream.next() % 60) - 30); break;
      case kAlong: row[d] = side * along + stream.bell() * 0x1p-10; break;
      case kCoded: row[d] = static_cast<double>(static_cast<int>(stream.next() % 255) - 127); break;
      default: row[d] = stream.bell();
    }
  }
}

}  // namespace

double magnitude_from(Bytes& bytes) {
  const int byte = bytes.byte();
  return std::ldexp(1.0, byte < 160 ? byte % 11 - 5 : byte < 208 ? byte - 184 : (byte - 232) * 6);
}

Scene scene_from(Bytes& bytes) {
  Scene s{};
  s.shape.dtype = static_cast<Dtype>(bytes.below(3));
  s.shape.batch = 1 + bytes.below(2);
  s.shape.kv_heads = 1 + bytes.below(3);
  s.group = 1 + bytes.below(4);
  s.shape.width = bytes.of(kWidths);
  s.shape.value_width = bytes.of(kWidths);
  // As the engine has it (bounds/interval.py: page_size), or smaller: page ends come sooner.
  int64_t own = 256;
  while (own < 2 * s.shape.width) own *= 2;
  const int64_t pages[] = {16, 32, 64, own};
  s.shape.page = bytes.of(pages);
  std::vector<Level> usable;
  for (Level level : built_levels())
    if (std::count(cpu_levels().begin(), cpu_levels().end(), level)) usable.push_back(level);
  const int64_t count = static_cast<int64_t>(usable.size());
  s.level = usable[static_cast<size_t>(count - 1 - bytes.below(count))];
  s.threads = bytes.one_in(8) ? 2 + static_cast<int>(bytes.below(2)) : 1;
  s.garbage = bytes.byte();
  s.other_garbage = static_cast<uint8_t>(s.garbage ^ 0xff);
  const int modes = bytes.byte();
  s.flush_building = modes % 8 == 5 || modes % 8 == 7;
  s.flush_attending = modes % 8 == 6 || modes % 8 == 7;
  s.direction = bytes.byte();
  return s;
}

Tensor tensor_from(Bytes& bytes, const Scene& scene, int64_t heads, int64_t rows, int64_t width, int64_t shift) {
  const Dtype dtype = scene.shape.dtype;
  const int64_t batch = scene.shape.batch, layout = bytes.below(8), gap = layout % 2 ? 1 + bytes.below(9) : 0;
  Tensor t{};
  // (batch, heads, rows) as told, rows before heads, or one head for all.
  t.row_stride = layout < 4 ? width + gap : heads * (width + gap);
  t.head_stride = layout < 4 ? rows * t.row_stride : width + gap;
  if (layout == 2) t.head_stride = 0;
  t.batch_stride = layout < 4 ? heads * t.head_stride : rows * t.row_stride;
  if (layout == 6) t.batch_stride = 0;
  if (layout == 3) t.row_stride = 0;
  const int64_t last = (batch - 1) * t.batch_stride + (heads - 1) * t.head_stride + (rows - 1) * t.row_stride + width;
  const int64_t elements = std::max<int64_t>(0, rows == 0 || heads == 0 ? 0 : last - shift);
  t.memory.reset(new uint8_t[static_cast<size_t>(elements * size_of(dtype))]);
  std::fill_n(t.memory.get(), elements * size_of(dtype), uint8_t{0xff});  // NaN between rows

  const Kind kind = static_cast<Kind>(bytes.below(kKinds));
  const double size = magnitude_from(bytes), offset = kind == kOffset ? magnitude_from(bytes) : 0.0;
  const uint64_t seed = bytes.word();
  const int64_t few = kind == kFew ? 1 + bytes.below(4) : 1 << 30;
  if (shift != 0) return t;
  std::vector<double> row(static_cast<size_t>(width));
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < rows; ++i) {
        uint8_t* to = t.memory.get() + (t.row(dtype, b, h, i) - t.memory.get());
        Stream stream(seed + static_cast<uint64_t>(((b * heads + h) * 4096 + i % few) * 65536));
        if (kind == kRaw) {
          for (int64_t d = 0; d < width; ++d) {
            const bool given = bytes.left();
            const uint32_t bits = given ? static_cast<uint32_t>(bytes.word()) : static_cast<uint32_t>(stream.next());
            put_bits(dtype, to, d, given && dtype == Dtype::Float32 ? bits << 16 : bits);
            if (!given && !finite(load(dtype, to, d))) put(dtype, to, d, size);
          }
          continue;
        }
        fill(kind, stream, Stream(scene.direction), offset, width, row.data());
        for (int64_t d = 0; d < width; ++d) put(dtype, to, d, size * row[static_cast<size_t>(d)]);
      }
  for (int64_t specials = bytes.below(16) - 12; specials > 0 && elements > 0; --specials) {
    const int64_t b = bytes.below(batch), h = bytes.below(heads), i = bytes.word() % rows, d = bytes.word() % width;
    uint8_t* to = t.memory.get() + (t.row(dtype, b, h, i) - t.memory.get());
    put(dtype, to, d, special_from(bytes, dtype));
  }
  return t;
}

Mask mask_from(Bytes& bytes, int64_t batch, int64_t heads, int64_t queries, int64_t keys) {
  Mask m{};
  const int64_t step = 1 + bytes.below(2), shared = bytes.byte(), density = bytes.byte();
  const uint64_t seed = bytes.byte();
  m.strides[3] = shared & 8 ? 0 : step;
  m.strides[2] = shared & 1 ? 0 : keys * step;
  m.strides[1] = shared & 2 ? 0 : queries * keys * step;
  m.strides[0] = shared & 4 ? 0 : heads * queries * keys * step;
  const int64_t size = (batch - 1) * m.strides[0] + (heads - 1) * m.strides[1] + (queries - 1) * m.strides[2] +
                       std::max<int64_t>(keys - 1, 0) * m.strides[3] + 1;
  m.memory.reset(new uint8_t[static_cast<size_t>(size)]);
  Stream stream(seed);
  for (int64_t i = 0; i < size; ++i) m.memory[static_cast<size_t>(i)] = static_cast<int64_t>(stream.next() % 256) <= density;
  return m;
}

}  // namespace tailbound::fuzz
