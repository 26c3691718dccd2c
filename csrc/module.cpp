// The Python module and nothing else: arguments in, kernels called with the GIL released, answers out.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "level.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

std::vector<std::string> names(const std::vector<tailbound::Level>& levels) {
  std::vector<std::string> out;
  for (tailbound::Level level : levels) out.emplace_back(tailbound::name(level));
  return out;
}

using Codes = nb::ndarray<const int8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

int32_t dot_int8(Codes a, Codes b) {
  if (a.shape(0) != b.shape(0))
    throw std::invalid_argument("codes have " + std::to_string(a.shape(0)) + " and " + std::to_string(b.shape(0)) +
                                " elements; they must have the same number");
  if (a.shape(0) > tailbound::kDotInt8MaxLength)
    throw std::invalid_argument("codes have " + std::to_string(a.shape(0)) + " elements; the int32 sum is exact up to " +
                                std::to_string(tailbound::kDotInt8MaxLength));
  const tailbound::Kernels& k = tailbound::kernels(tailbound::active_level());
  nb::gil_scoped_release release;
  return k.dot_int8(a.data(), b.data(), a.shape(0));
}

}  // namespace

NB_MODULE(_native, m) {
  m.def("cpu_levels", [] { return names(tailbound::cpu_levels()); });
  m.def("built_levels", [] { return names(tailbound::built_levels()); });
  m.def("active_level", [] { return std::string(tailbound::name(tailbound::active_level())); });
  m.def("dot_int8", &dot_int8, "a"_a.noconvert(), "b"_a.noconvert());
}
