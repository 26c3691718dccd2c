// Prints the levels of this build and of the processor, and the one in force or why there is none.
#include <cstdio>
#include <exception>

#include "level.h"

int main() {
  for (tailbound::Level level : tailbound::built_levels()) std::printf("built %s\n", tailbound::name(level));
  for (tailbound::Level level : tailbound::cpu_levels()) std::printf("cpu %s\n", tailbound::name(level));
  try {
    std::printf("active %s\n", tailbound::name(tailbound::active_level()));
  } catch (const std::exception& error) {
    std::printf("refused %s\n", error.what());
    return 1;
  }
  return 0;
}
