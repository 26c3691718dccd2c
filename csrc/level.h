// Which kernels this process runs: the best level that the processor, its operating system and this build all have,
// or the one that TAILBOUND_ISA names.
#pragma once

#include <string>
#include <vector>

namespace tailbound {

enum class Level { Scalar = 0, Avx2 = 1, Avx512Vnni = 2, Avx512Bf16 = 3, NeonDot = 4 };

const char* name(Level level);

// Levels that the processor has and the operating system saves registers for, lowest first.
const std::vector<Level>& cpu_levels();

// Levels that this build has kernels for, lowest first.
const std::vector<Level>& built_levels();

// The level in force. Throws std::runtime_error, naming what would be allowed, if TAILBOUND_ISA asks for something
// that cannot run here: a forced level is never replaced by another.
Level active_level();

}  // namespace tailbound
