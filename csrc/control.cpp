// Errors on purpose, in builds with sanitizers only: scripts/sanitize.sh expects each of them to end the process.
#include <cstdint>
#include <string>
#include <vector>

namespace tailbound {

int32_t control(const std::string& error, int64_t n) {
  if (error == "address") {
    const std::vector<int8_t> codes(static_cast<size_t>(n));
    return codes.data()[n];  // one beyond the end
  }
  if (error == "undefined") return static_cast<int32_t>(n) + INT32_MAX;  // overflows for n > 0
  return 0;
}

}  // namespace tailbound
