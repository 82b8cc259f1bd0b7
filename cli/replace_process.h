#pragma once

#include "base/file.h"

namespace elastify::cli {

/// The file of the running program.
fs::path this_program();

/// Replaces the process by a program, with the same arguments.
/// \throws Error  if the program cannot be started
[[noreturn]] void replace_process(const fs::path& program);

}  // namespace elastify::cli
