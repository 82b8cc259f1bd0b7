#include "pipeline/sweep_config.h"

#include <algorithm>
#include <map>

#include "base/error.h"

namespace elastify::pipeline {
namespace {

using nlohmann::ordered_json;
using options::Given;
using options::YamlEntry;
using options::YamlNode;

constexpr size_t kMaxPoints = 10000;
constexpr const char* kRowExample = "as in `rows: [{name: ours, reorder.metric: gram, reorder.plan: dp}]`";

/// Values of a point that replace the file's, by key.
using Replacements = std::map<std::string, YamlNode>;

struct YamlAxis {
  std::string key;
  std::vector<YamlNode> values;
};
struct YamlRow {
  std::string name;
  Replacements values;
};

template <typename T, typename Named>
bool has_name(const std::vector<T>& items, const std::string& name, Named name_of) {
  return std::any_of(items.begin(), items.end(), [&](const T& item) { return item.*name_of == name; });
}

/// The reason why the points of a sweep cannot differ in this option; empty if they can.
std::string why_fixed(const std::string& key) {
  if (key == "profile.metrics")
    return "the metrics that the points need are measured; list them under reorder.metric";
  if (key == "reorder.levels")
    return "every point has all the levels; list them under reorder.levels, outside of the grid";
  if (key == "reorder.storage") return "a sweep writes no weights";
  if (key == "seed" || key == "preset" || key.starts_with("profile.") || key.starts_with("reorder."))
    return {};
  return "points may differ in seed, preset and the options of profile and reorder; the rest is the same for "
         "all";
}

/// \throws UsageError  if there is no such option, or points cannot differ in it
void require_free(const YamlEntry& entry, const std::string& section) {
  RunConfig any;
  options::Options options;
  declare(options, any);
  if (options.find(entry.key) == nullptr) {
    std::vector<std::string> free;
    for (const options::Option& option : options.all())
      if (why_fixed(option.key()).empty()) free.push_back(option.key());
    throw UsageError(fmt::format("{}: unknown key '{}.{}'", entry.place, section, entry.key),
                     options::nearest_of(free, entry.key));
  }
  if (const std::string why = why_fixed(entry.key); !why.empty())
    throw UsageError(fmt::format("{}: {}.{}: this option cannot be swept", entry.place, section, entry.key),
                     why);
}

YamlRow read_row(const YamlNode& item) {
  const auto refuse = [](const std::string& place, const std::string& what, const std::string& hint) {
    throw UsageError(fmt::format("{}: rows: {}", place, what), hint);
  };
  if (item.kind != Given::Kind::kSection)
    refuse(item.place, fmt::format("expected a set of options, got {}", item.given().described()),
           kRowExample);
  YamlRow row;
  for (const YamlEntry& entry : item.entries) {
    if (entry.key == "name" && entry.value.kind == Given::Kind::kText) {
      row.name = entry.value.text;
      continue;
    }
    require_free(entry, "rows");
    row.values.emplace(entry.key, entry.value);
  }
  if (row.name.empty()) refuse(item.place, "a row has no name", kRowExample);
  return row;
}

std::vector<YamlRow> read_rows(const YamlNode& root) {
  const YamlNode* list = root.find("rows");
  std::vector<YamlRow> rows;
  if (list == nullptr || list->kind == Given::Kind::kNothing) return rows;
  if (list->kind != Given::Kind::kList || list->items.empty())
    throw UsageError(fmt::format("{}: rows: expected a list of sets of options, got {}", list->place,
                                 list->items.empty() && list->kind == Given::Kind::kList ? "an empty list"
                                 : list->kind == Given::Kind::kSection                   ? "a section"
                                                                       : "'" + list->text + "'"),
                     kRowExample);
  for (const YamlNode& item : list->items) {
    YamlRow row = read_row(item);
    if (has_name(rows, row.name, &YamlRow::name))
      throw UsageError(fmt::format("{}: rows: two rows are named '{}'", item.place, row.name));
    rows.push_back(std::move(row));
  }
  return rows;
}

YamlAxis read_axis(const YamlEntry& entry) {
  const auto refuse = [&](const std::string& what, const std::string& hint = {}) {
    throw UsageError(fmt::format("{}: grid.{}: {}", entry.place, entry.key, what), hint);
  };
  if (entry.value.kind == Given::Kind::kSection)
    refuse("expected a list of values, got a section",
           entry.value.entries.empty() ? ""
                                       : fmt::format("write the option's whole path: {}.{}: [...]", entry.key,
                                                     entry.value.entries.front().key));
  require_free(entry, "grid");
  YamlAxis axis{entry.key, {}};
  if (entry.value.kind == Given::Kind::kText) axis.values.push_back(entry.value);
  if (entry.value.kind == Given::Kind::kList) axis.values = entry.value.items;
  if (axis.values.empty()) refuse("expected a list of values, got none");
  return axis;
}

std::vector<YamlAxis> read_grid(const std::string& file, const YamlNode& root) {
  const YamlNode* grid = root.find("grid");
  const bool is_empty = grid == nullptr || grid->kind == Given::Kind::kNothing ||
                        (grid->kind == Given::Kind::kSection && grid->entries.empty());
  if (is_empty) {
    if (const YamlNode* rows = root.find("rows"); rows != nullptr && rows->kind != Given::Kind::kNothing)
      return {};
    throw UsageError(fmt::format("{}: grid is missing", file),
                     "a sweep needs options to vary, as in `grid: {reorder.metric: [taylor, magnitude]}`");
  }
  if (grid->kind != Given::Kind::kSection)
    throw UsageError(fmt::format("{}: grid: expected a section of options and lists of values, got {}",
                                 grid->place, grid->given().described()));
  std::vector<YamlAxis> axes;
  size_t n_points = 1;
  for (const YamlEntry& entry : grid->entries) {
    YamlAxis axis = read_axis(entry);
    if (axis.values.size() > kMaxPoints / n_points)
      throw UsageError(
          fmt::format("{}: grid.{}: the grid has more than {} points", entry.place, entry.key, kMaxPoints));
    n_points *= axis.values.size();
    axes.push_back(std::move(axis));
  }
  return axes;
}

/// The tree with these values instead of the file's.
YamlNode replaced(YamlNode root, const Replacements& values) {
  const auto entry_of = [](YamlNode& node, const std::string& key) -> YamlNode& {
    const auto found = std::find_if(node.entries.begin(), node.entries.end(),
                                    [&](const YamlEntry& entry) { return entry.key == key; });
    return found != node.entries.end() ? found->value
                                       : node.entries.emplace_back(YamlEntry{key, node.place, {}}).value;
  };
  for (const auto& [key, value] : values) {
    const size_t dot = key.find('.');
    if (dot == std::string::npos) {
      entry_of(root, key) = value;
      continue;
    }
    YamlNode& section = entry_of(root, key.substr(0, dot));
    if (section.kind == Given::Kind::kNothing) section.kind = Given::Kind::kSection;
    entry_of(section, key.substr(dot + 1)) = value;
  }
  return root;
}

class SweepReader {
 public:
  SweepReader(const fs::path& file, const std::vector<std::string>& overrides)
      : file_(file.string()), root_(options::load_yaml(file, overrides)) {
    axes_ = read_grid(file_, root_);
    rows_ = read_rows(root_);
    sweep_.base = read({});
    for (const YamlAxis& axis : axes_)
      for (const std::string& override : overrides)
        if (override.starts_with(axis.key + "="))
          throw UsageError(fmt::format("--set {}: the grid varies this option", override),
                           fmt::format("--set grid.{}", override));
    resolve_rows();
    resolve_axes();
  }

  SweepConfig read_points() {
    for (size_t r = 0; r < std::max<size_t>(rows_.size(), 1); ++r) {
      std::vector<size_t> at(axes_.size(), 0);
      for (bool more = true; more;) {
        add_point(r, at);
        size_t axis = axes_.size();
        while (axis > 0 && ++at[axis - 1] == axes_[axis - 1].values.size()) at[--axis] = 0;
        more = axis > 0;
      }
    }
    return std::move(sweep_);
  }

 private:
  RunConfig read(const Replacements& values) const {
    return read_config(file_, replaced(root_, values), {"grid", "rows"});
  }

  void resolve_rows() {
    if (rows_.empty()) return;
    report::SweepAxis& names = sweep_.grid.emplace_back();
    names.key = report::kRows;
    for (const YamlRow& row : rows_) {
      names.values.push_back(row.name);
      std::vector<std::string>& keys = sweep_.row_keys.emplace_back();
      for (const auto& [key, value] : row.values) {
        keys.push_back(key);
        if (has_name(axes_, key, &YamlAxis::key))
          throw UsageError(fmt::format("{}: rows: {} is varied by the grid, too", value.place, key));
      }
    }
  }

  /// Reads each axis on its own, so that a bad value is found whatever the values of the other axes.
  void resolve_axes() {
    for (const YamlAxis& axis : axes_) {
      report::SweepAxis& resolved = sweep_.grid.emplace_back();
      resolved.key = axis.key;
      for (const YamlNode& value : axis.values) {
        const std::string text = options::text_of(value_of(read({{axis.key, value}}), axis.key));
        if (std::find(resolved.values.begin(), resolved.values.end(), text) != resolved.values.end())
          throw UsageError(fmt::format("{}: grid.{}: {} is listed twice", value.place, axis.key, text));
        resolved.values.push_back(text);
      }
    }
  }

  void add_point(size_t row, const std::vector<size_t>& at) {
    Replacements values = rows_.empty() ? Replacements{} : rows_[row].values;
    SweepPoint point;
    if (!rows_.empty()) point.values.push_back(rows_[row].name);
    for (size_t i = 0; i < axes_.size(); ++i) {
      values.emplace(axes_[i].key, axes_[i].values[at[i]]);
      point.values.push_back(sweep_.grid[i + (rows_.empty() ? 0 : 1)].values[at[i]]);
    }
    point.config = read(values);
    sweep_.points.push_back(std::move(point));
  }

  std::string file_;
  YamlNode root_;
  std::vector<YamlAxis> axes_;
  std::vector<YamlRow> rows_;
  SweepConfig sweep_;
};

}  // namespace

SweepConfig load_sweep(const fs::path& file, const std::vector<std::string>& overrides) {
  return SweepReader(file, overrides).read_points();
}

ordered_json to_json(const SweepConfig& config) {
  ordered_json json = to_json(config.base);
  for (const report::SweepAxis& axis : config.grid) {
    if (axis.key == report::kRows) {
      const size_t n_points = config.points.size() / config.row_keys.size();  // of each row
      for (size_t r = 0; r < config.row_keys.size(); ++r) {
        ordered_json& row = json["rows"].emplace_back(ordered_json{{"name", axis.values[r]}});
        for (const std::string& key : config.row_keys[r])
          row[key] = value_of(config.points[r * n_points].config, key);
      }
      continue;
    }
    auto values = ordered_json::array();
    for (const SweepPoint& point : config.points) {
      const auto value = value_of(point.config, axis.key);
      if (std::find(values.begin(), values.end(), value) == values.end()) values.push_back(value);
    }
    json["grid"][axis.key] = values;
  }
  return json;
}

}  // namespace elastify::pipeline
