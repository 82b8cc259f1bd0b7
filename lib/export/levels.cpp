#include "export/levels.h"

#include <algorithm>
#include <cstring>
#include <string_view>

namespace elastify::exporter {

std::string level_stem(double nominal) {
  return nominal >= 1 ? "full" : level_name(nominal);
}

std::string level_suffix(double nominal) {
  return nominal >= 1 ? "" : level_name(nominal).substr(std::string_view("level").size());
}

std::vector<Level> chosen_levels(const ElasticPlan& plan, const std::vector<double>& asked) {
  std::vector<const Level*> wanted;
  for (const double nominal : asked) wanted.push_back(&find_level(plan, nominal));
  std::vector<Level> levels;
  for (auto level = plan.levels.rbegin(); level != plan.levels.rend(); ++level)
    if (asked.empty() || level->nominal >= 1 ||
        std::find(wanted.begin(), wanted.end(), &*level) != wanted.end())
      levels.push_back(*level);
  return levels;
}

const LevelRepairs* repairs_of(const Level& level, const std::vector<LevelRepairs>& all) {
  if (level.nominal >= 1) return nullptr;
  const auto found = std::find_if(all.begin(), all.end(), [&](const LevelRepairs& repairs) {
    return level_name(repairs.nominal) == level_name(level.nominal);
  });
  return found == all.end() ? nullptr : &*found;
}

std::span<const std::byte> leading_of_rows(std::span<const std::byte> rows, uint64_t row, uint64_t kept,
                                           std::vector<std::byte>& buffer) {
  if (kept == row) return rows;
  const uint64_t n = rows.size() / row;
  buffer.resize(n * kept);
  for (uint64_t i = 0; i < n; ++i) std::memcpy(buffer.data() + i * kept, rows.data() + i * row, kept);
  return buffer;
}

}  // namespace elastify::exporter
