#include "level.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__) || defined(_M_X64)
#define TAILBOUND_X86 1
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) || defined(_M_ARM64)
#define TAILBOUND_ARM64 1
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
#endif
#endif

namespace tailbound {
namespace {

constexpr Level kAll[] = {Level::Scalar, Level::Avx2, Level::Avx512Vnni, Level::Avx512Bf16, Level::NeonDot};

#ifdef TAILBOUND_X86
struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
#if defined(_MSC_VER)
  int out[4];
  __cpuidex(out, static_cast<int>(leaf), static_cast<int>(subleaf));
  r.eax = out[0], r.ebx = out[1], r.ecx = out[2], r.edx = out[3];
#else
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
#endif
  return r;
}

// XCR0 tells which register files the operating system saves on a context switch. CPUID alone is not enough: a kernel
// that does not save the upper halves would corrupt them.
uint64_t xcr0() {
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
#endif
}

constexpr bool bit(uint32_t word, int index) { return (word >> index) & 1u; }
#endif

#ifdef TAILBOUND_ARM64
// The identification registers are for the operating system to read: programs ask it. Numbers that older headers lack.
bool has_dot_product() {
#if defined(__linux__)
  constexpr unsigned long kAsimdDp = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kAsimdDp) != 0;
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof(has);
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#elif defined(_WIN32)
  constexpr DWORD kDotProduct = 43;  // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
  return IsProcessorFeaturePresent(kDotProduct) != 0;
#else
  return false;
#endif
}
#endif

std::string join(const std::vector<Level>& levels) {
  std::string text;
  for (Level level : levels) text += (text.empty() ? "" : ", ") + std::string(name(level));
  return text;
}

bool contains(const std::vector<Level>& levels, Level level) {
  return std::find(levels.begin(), levels.end(), level) != levels.end();
}

}  // namespace

const char* name(Level level) {
  switch (level) {
    case Level::Scalar: return "scalar";
    case Level::Avx2: return "avx2";
    case Level::Avx512Vnni: return "avx512vnni";
    case Level::Avx512Bf16: return "avx512bf16";
    case Level::NeonDot: return "neondot";
  }
  return "unknown";
}

namespace {

std::vector<Level> detect() {
  std::vector<Level> levels{Level::Scalar};
#ifdef TAILBOUND_X86
  const Registers one = cpuid(1, 0);
  if (!bit(one.ecx, 27)) return levels;  // OSXSAVE: without it xgetbv itself is illegal
  const uint64_t saved = xcr0();
  const Registers seven = cpuid(7, 0);
  const bool ymm_saved = (saved & 0x6) == 0x6;
  const bool zmm_saved = (saved & 0xe6) == 0xe6;
  // FMA and F16C are part of the level: its kernels read half precision directly.
  const bool avx2 = bit(one.ecx, 28) && bit(one.ecx, 12) && bit(one.ecx, 29) && bit(seven.ebx, 5);
  if (!(ymm_saved && avx2)) return levels;
  levels.push_back(Level::Avx2);
  const bool avx512 = bit(seven.ebx, 16) && bit(seven.ebx, 17) && bit(seven.ebx, 30) && bit(seven.ebx, 31);
  const bool vnni = bit(seven.ecx, 11);
  if (!(zmm_saved && avx512 && vnni)) return levels;
  levels.push_back(Level::Avx512Vnni);
  if (seven.eax >= 1 && bit(cpuid(7, 1).eax, 5)) levels.push_back(Level::Avx512Bf16);
#elif defined(TAILBOUND_ARM64)
  if (has_dot_product()) levels.push_back(Level::NeonDot);
#endif
  return levels;
}

}  // namespace

// CPUID traps to the hypervisor in a virtual machine: 14 microseconds were measured. So it is asked once.
const std::vector<Level>& cpu_levels() {
  static const std::vector<Level> levels = detect();
  return levels;
}

const std::vector<Level>& built_levels() {
  static const std::vector<Level> levels{
      Level::Scalar,
#ifdef TAILBOUND_HAS_AVX2
      Level::Avx2,
#endif
#ifdef TAILBOUND_HAS_AVX512VNNI
      Level::Avx512Vnni,
#endif
#ifdef TAILBOUND_HAS_AVX512BF16
      Level::Avx512Bf16,
#endif
#ifdef TAILBOUND_HAS_NEONDOT
      Level::NeonDot,
#endif
  };
  return levels;
}

Level active_level() {
  const std::vector<Level>& cpu = cpu_levels();
  std::vector<Level> usable;
  for (Level level : built_levels())
    if (contains(cpu, level)) usable.push_back(level);

  const char* asked = std::getenv("TAILBOUND_ISA");
  if (asked == nullptr || *asked == '\0') return usable.back();
  for (Level level : kAll) {
    if (std::string(asked) != name(level)) continue;
    if (contains(usable, level)) return level;
    const char* why = contains(cpu, level) ? "this build has no kernels for it" : "this processor or its operating system lacks it";
    throw std::runtime_error("TAILBOUND_ISA=" + std::string(asked) + ": " + why + "; usable here: " + join(usable));
  }
  throw std::runtime_error("TAILBOUND_ISA=" + std::string(asked) + " is not a level; usable here: " + join(usable));
}

}  // namespace tailbound
