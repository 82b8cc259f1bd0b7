#include "base/size.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace elastify {

int64_t parse_bytes(const std::string& text) {
  size_t end = 0;
  double number = -1;
  try {
    number = std::stod(text, &end);
  } catch (const std::exception&) {
  }
  const std::string unit = text.substr(std::min(end, text.size()));
  struct Unit {
    const char* name;
    double bytes;
  };
  for (const auto& [name, bytes] : {Unit{"", 1},
                                    {"B", 1},
                                    {"KiB", 0x1p10},
                                    {"MiB", 0x1p20},
                                    {"GiB", 0x1p30},
                                    {"TiB", 0x1p40},
                                    {"KB", 1e3},
                                    {"MB", 1e6},
                                    {"GB", 1e9},
                                    {"TB", 1e12}})
    if (unit == name && number >= 0 && std::isfinite(number) && number * bytes < 9e18)
      return static_cast<int64_t>(number * bytes);
  throw UsageError(fmt::format("'{}' is not a size", text), "write it as 4GiB, 512MiB or 2GB");
}

std::string format_bytes(int64_t bytes) {
  return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / (int64_t{1} << 30));
}

}  // namespace elastify
