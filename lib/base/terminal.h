#pragma once

#include <string>

namespace elastify {

/// Writes to standard error, also where it is a terminal that was closed: fmt::print() would throw there.
void write_stderr(const std::string& text);

}  // namespace elastify
