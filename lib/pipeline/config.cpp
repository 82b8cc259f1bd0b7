#include "pipeline/config.h"

#include <fmt/ranges.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "base/error.h"
#include "pipeline/widths.h"

namespace elastify::pipeline {
namespace {

using nlohmann::ordered_json;

// Every option is listed once, in a fields() function; the visitors below read it from YAML and write it as
// JSON.

template <typename V>
void fields(V& visit, profile::ProfileOptions& o) {
  visit("data", o.data);
  visit("metrics", o.metrics);
  visit("tokens", o.tokens, 0);
  visit("seq", o.seq, 2);
  visit("batch", o.batch, 1);
  visit("removal_tokens", o.removal_tokens, 0);
  visit("second_moments", o.second_moments);
  visit("imatrix", o.imatrix);
}

template <typename V>
void fields(V& visit, ReorderSection& o) {
  visit("metric", o.metric);
  visit("plan", o.plan.method);
  visit("levels", o.plan.levels);
  visit("grid", o.plan.grid, 1);
  visit.share("anchor_share", o.plan.anchor_share);
  visit("budget", o.plan.budget);
  visit.share("min_width", o.plan.min_width);
  visit("depth", o.plan.depth);
  visit("search_steps", o.plan.search_steps, 0);
  visit("search_seq", o.plan.search_seq, 0);
  visit("storage", o.reorder.dtype);
  visit("compensate", o.repair.compensation);
  visit("fit_tokens", o.fit_tokens, 0);
  visit("rank", o.repair.rank, 1);
  visit("spread_ranks", o.repair.spread_ranks);
  visit.share("ridge", o.repair.ridge);
  visit("sequential", o.repair.sequential);
  visit("whole_stream", o.repair.whole_stream);
  visit("weigh_tokens", o.repair.weigh_tokens);
}

template <typename V>
void fields(V& visit, exporter::ExportOptions& o) {
  visit("type", o.types);
  visit("levels", o.levels);
  visit("adapter_type", o.adapter_type);
  visit("packed", o.packed);
  visit("shared_common", o.shared_common);
}

template <typename V>
void fields(V& visit, EvalOptions& o) {
  visit("data", o.data);
  visit("tokens", o.tokens, 0);
  visit("seq", o.seq, 2);
  visit("batch", o.batch, 1);
  visit("tasks", o.tasks);
  visit("items", o.items, 0);
  visit("baseline", o.baseline);
}

template <typename V>
void fields(V& visit, RunConfig& o) {
  visit("model", o.model);
  visit("tokenizer", o.tokenizer);
  visit("output", o.output);
  visit("seed", o.seed, 0);
  visit("threads", o.threads, 0);
  visit("max_ram", o.max_ram);
  visit("device", o.compute.device);
  visit("dtype", o.compute.dtype);
  visit.section("profile", o.profile);
  visit.section("reorder", o.reorder);
  visit.section("export", o.export_);
  visit.section("eval", o.eval);
}

/// Decides what follows from other options.
template <typename T>
void resolve(T&) {}
void resolve(ReorderSection& options) {
  options.repair = recover::resolved(options.repair);
}

class JsonWriter {
 public:
  template <typename T>
  void operator()(const char* key, const T& value, int64_t = 0) {
    json_[key] = encode(value);
  }
  void share(const char* key, double value) { json_[key] = value; }
  template <typename T>
  void section(const char* key, T& options) {
    JsonWriter inner;
    resolve(options);
    fields(inner, options);
    json_[key] = inner.json_;
  }
  void section(const char* key, exporter::ExportOptions& options) { json_[key] = exporter::to_json(options); }
  ordered_json json_ = ordered_json::object();

 private:
  template <typename T>
  static ordered_json encode(const T& value) {
    return value;
  }
  static ordered_json encode(std::optional<bool> value) {
    return value ? ordered_json(*value) : ordered_json();
  }
  static ordered_json encode(Metric metric) { return name_of(metric); }
  static ordered_json encode(const plan::Budget& budget) { return plan::to_text(budget); }
  static ordered_json encode(plan::Method method) { return plan::name_of(method); }
  static ordered_json encode(Compensation compensation) { return name_of(compensation); }
  static ordered_json encode(DType dtype) { return info(dtype).name; }
  static ordered_json encode(const std::vector<Metric>& metrics) {
    auto names = ordered_json::array();
    for (const Metric metric : metrics) names.push_back(name_of(metric));
    return names;
  }
};

template <typename T>
ordered_json json_of(const T& options) {
  JsonWriter writer;
  T copy = options;
  resolve(copy);
  fields(writer, copy);
  return writer.json_;
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

/// The way out where a key is not known.
std::string nearest_of(const std::vector<std::string>& known, const std::string& key) {
  const auto nearest = std::min_element(known.begin(), known.end(), [&](const auto& a, const auto& b) {
    return edit_distance(a, key) < edit_distance(b, key);
  });
  return fmt::format("did you mean '{}'? known here: {}", *nearest, fmt::join(known, ", "));
}

std::string place_of(const std::string& file, const YAML::Node& node) {
  return node.Mark().is_null() ? file : fmt::format("{}:{}", file, node.Mark().line + 1);
}

std::string kind_of(const YAML::Node& node) {
  if (node.IsScalar()) return fmt::format("'{}'", node.Scalar());
  return node.IsSequence() ? "a list" : node.IsMap() ? "a section" : "nothing";
}

/// Values that a point of a sweep puts in the place of the file's, by full key. They keep their own line.
using Replacements = std::map<std::string, YAML::Node>;

class YamlReader {
 public:
  YamlReader(std::string file, std::string path, const YAML::Node& node, const Replacements& replaced)
      : file_(std::move(file)), path_(std::move(path)), node_(node), replaced_(replaced) {
    if (node_.IsDefined() && !node_.IsNull() && !node_.IsMap()) reject(node_, path_, "a section with keys");
  }

  template <typename T>
  void operator()(const char* key, T& value) {
    const YAML::Node found = take(key);
    if (found.IsDefined()) read(found, full(key), value);
  }
  void operator()(const char* key, int64_t& value, int64_t minimum) {
    const YAML::Node found = take(key);
    if (!found.IsDefined()) return;
    read(found, full(key), value);
    if (value < minimum)
      refuse(found, full(key), fmt::format("expected at least {}, got {}", minimum, value));
  }
  /// A share that may be 0.
  void share(const char* key, double& value) {
    const YAML::Node found = take(key);
    if (!found.IsDefined()) return;
    value = scalar<double>(found, full(key), "a number");
    if (!(value >= 0 && value <= 1))
      refuse(found, full(key), fmt::format("expected a share from 0 to 1, got {}", value));
  }
  template <typename T>
  void section(const char* key, T& options) {
    YamlReader inner(file_, full(key), take(key), replaced_);
    fields(inner, options);
    inner.finish();
  }

  /// A key that is read elsewhere.
  void allow(const char* key) { known_.emplace_back(key); }

  /// \throws UsageError for keys that nobody asked for
  void finish() const {
    if (!node_.IsDefined() || !node_.IsMap()) return;
    std::set<std::string> seen;
    for (const auto& entry : node_) {
      const auto key = entry.first.Scalar();
      if (!seen.insert(key).second) refuse(entry.first, full(key), "stands here twice");
      if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
      throw UsageError(fmt::format("{}: unknown key '{}'", place(entry.first), full(key)),
                       nearest_of(known_, key));
    }
  }

 private:
  YAML::Node take(const char* key) {
    known_.emplace_back(key);
    if (const auto found = replaced_.find(full(key)); found != replaced_.end()) return found->second;
    if (!node_.IsDefined() || !node_.IsMap()) return YAML::Node(YAML::NodeType::Undefined);
    return static_cast<const YAML::Node&>(node_)[key];
  }
  std::string full(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }
  std::string place(const YAML::Node& node) const { return place_of(file_, node); }
  [[noreturn]] void refuse(const YAML::Node& node, const std::string& key, const std::string& what) const {
    throw UsageError(fmt::format("{}: {}: {}", place(node), key, what));
  }
  [[noreturn]] void reject(const YAML::Node& node, const std::string& key, std::string_view expected) const {
    refuse(node, key, fmt::format("expected {}, got {}", expected, kind_of(node)));
  }
  template <typename T>
  T scalar(const YAML::Node& node, const std::string& key, std::string_view expected) const {
    try {
      return node.as<T>();
    } catch (const YAML::Exception&) {
      reject(node, key, expected);
    }
  }

  void read(const YAML::Node& node, const std::string& key, std::string& value) const {
    if (!node.IsScalar()) reject(node, key, "text");
    value = node.Scalar();
  }
  void read(const YAML::Node& node, const std::string& key, int64_t& value) const {
    value = scalar<int64_t>(node, key, "a whole number");
  }
  void read(const YAML::Node& node, const std::string& key, double& value) const {
    value = scalar<double>(node, key, "a number");
    if (!(value > 0 && value <= 1))
      refuse(node, key, fmt::format("expected a share above 0 and up to 1, got {}", value));
  }
  void read(const YAML::Node& node, const std::string& key, bool& value) const {
    value = scalar<bool>(node, key, "true or false");
  }
  void read(const YAML::Node& node, const std::string& key, std::optional<bool>& value) const {
    value = scalar<bool>(node, key, "true or false");
  }
  void read(const YAML::Node& node, const std::string& key, std::vector<std::string>& value) const {
    value.clear();
    if (node.IsScalar()) {
      value.push_back(node.Scalar());
      return;
    }
    if (!node.IsSequence()) reject(node, key, "a list of paths");
    for (const auto& item : node) value.push_back(scalar<std::string>(item, key, "a path"));
  }
  void read(const YAML::Node& node, const std::string& key, std::vector<double>& value) const {
    if (node.IsScalar()) {
      named(node, key, [&](const std::string& text) { value = plan::parse_levels(text); });
      return;
    }
    if (!node.IsSequence()) reject(node, key, "levels: a list, or a range such as 0.2:1.0:0.1");
    value.clear();
    for (const auto& item : node) read(item, key, value.emplace_back());
  }
  void read(const YAML::Node& node, const std::string& key, Metric& value) const {
    named(node, key, [&](const std::string& text) { value = metric_named(text); });
  }
  void read(const YAML::Node& node, const std::string& key, std::vector<Metric>& value) const {
    std::vector<std::string> names;
    read(node, key, names);
    value.clear();
    for (const auto& name : names)
      value.push_back(with_context(place(node) + ": " + key, [&] { return metric_named(name); }));
  }
  void read(const YAML::Node& node, const std::string& key, plan::Method& value) const {
    named(node, key, [&](const std::string& text) { value = plan::method_named(text); });
  }
  void read(const YAML::Node& node, const std::string& key, plan::Budget& value) const {
    named(node, key, [&](const std::string& text) { value = plan::parse_budget(text); });
  }
  void read(const YAML::Node& node, const std::string& key, Compensation& value) const {
    named(node, key, [&](const std::string& text) { value = compensation_named(text); });
  }
  void read(const YAML::Node& node, const std::string& key, DType& value) const {
    named(node, key, [&](const std::string& text) { value = dtype_from_name(text); });
  }
  void read(const YAML::Node& node, const std::string& key, std::vector<exporter::WeightType>& value) const {
    std::vector<std::string> names;
    read(node, key, names);
    named(node, key, fmt::format("{}", fmt::join(names, ",")),
          [&](const std::string& text) { value = exporter::weight_types_named(text); });
  }
  template <typename Parse>
  void named(const YAML::Node& node, const std::string& key, const std::string& text, Parse parse) const {
    try {
      parse(text);
    } catch (const Error& error) {
      throw UsageError(fmt::format("{}: {}: {}", place(node), key, error.what()), error.hint());
    }
  }
  template <typename Parse>
  void named(const YAML::Node& node, const std::string& key, Parse parse) const {
    if (!node.IsScalar()) reject(node, key, "a name");
    named(node, key, node.Scalar(), parse);
  }

  std::string file_, path_;
  YAML::Node node_;
  const Replacements& replaced_;
  std::vector<std::string> known_;
};

/// Puts the value at "section.key" of the tree.
void apply_override(YAML::Node root, const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0)
    throw UsageError(fmt::format("--set {}: expected section.key=value", text));
  YAML::Node value;
  try {
    value = YAML::Load(text.substr(equals + 1));
  } catch (const YAML::Exception& error) {
    throw UsageError(fmt::format("--set {}: {}", text, error.msg));
  }
  const std::string key = text.substr(0, equals);
  const size_t dot = key.find('.');
  if (dot == std::string::npos) {
    root[key] = value;
    return;
  }
  YAML::Node section = root[key.substr(0, dot)];
  if (section.IsDefined() && !section.IsNull() && !section.IsMap())
    throw UsageError(fmt::format("--set {}: '{}' is not a section", text, key.substr(0, dot)));
  section[key.substr(dot + 1)] = value;
}

YAML::Node load_yaml(const fs::path& file, const std::vector<std::string>& overrides) {
  const std::string text = read_text(file, uint64_t{1} << 20);
  YAML::Node root;
  try {
    root = YAML::Load(text);
  } catch (const YAML::Exception& error) {
    throw UsageError(fmt::format("{}:{}: {}", file.string(), error.mark.line + 1, error.msg));
  }
  for (const std::string& override : overrides) apply_override(root, override);
  return root;
}

RunConfig read_config(const std::string& file, const YAML::Node& root, const Replacements& replaced = {}) {
  RunConfig config;
  YamlReader reader(file, "", root, replaced);
  fields(reader, config);
  reader.allow("grid");
  reader.allow("rows");
  reader.finish();
  for (const auto& [key, value] : {std::pair{"model", &config.model}, std::pair{"output", &config.output}})
    if (value->empty()) throw UsageError(fmt::format("{}: {} is missing", file, key));
  if (config.profile.data.empty()) config.profile.data = {"self"};
  if (config.eval.data.empty())
    throw UsageError(fmt::format("{}: eval.data is missing", file),
                     "name a text file that is not calibrated on");
  config.profile.seed = config.seed;
  config.reorder.plan.metric = config.reorder.metric;
  auto& metrics = config.profile.metrics;
  if (std::find(metrics.begin(), metrics.end(), config.reorder.metric) == metrics.end())
    metrics.push_back(config.reorder.metric);
  config.profile.second_moments |= needs_moments(config.reorder.plan.method);
  return config;
}

/// Keys of all options, as in "reorder.metric".
std::vector<std::string> option_keys() {
  std::vector<std::string> keys;
  const ordered_json options = json_of(RunConfig{});
  for (const auto& [key, value] : options.items()) {
    if (!value.is_object()) {
      keys.push_back(key);
      continue;
    }
    for (const auto& [inner, ignored] : value.items()) keys.push_back(fmt::format("{}.{}", key, inner));
  }
  return keys;
}

/// Why the points of a sweep cannot differ in this option; empty where they can.
std::string why_fixed(const std::string& key) {
  if (key == "profile.metrics") return "what the points need is measured; list metrics under reorder.metric";
  if (key == "reorder.levels")
    return "every point has all the levels; list them under reorder.levels, outside of the grid";
  if (key == "reorder.storage") return "a sweep writes no weights";
  if (key == "seed" || key.starts_with("profile.") || key.starts_with("reorder.")) return {};
  return "points may differ in seed and in the options of profile and reorder; the rest is the same for all";
}

struct YamlAxis {
  std::string key;
  std::vector<YAML::Node> values;
};

constexpr size_t kMaxPoints = 10000;

/// \throws UsageError  if there is no such option, or points cannot differ in it
void require_free(const std::vector<std::string>& known, const std::string& key, const std::string& place,
                  const std::string& section) {
  if (std::find(known.begin(), known.end(), key) == known.end()) {
    std::vector<std::string> free;
    for (const auto& name : known)
      if (why_fixed(name).empty()) free.push_back(name);
    throw UsageError(fmt::format("{}: unknown key '{}.{}'", place, section, key), nearest_of(free, key));
  }
  if (const std::string why = why_fixed(key); !why.empty())
    throw UsageError(fmt::format("{}: {}.{}: this option cannot be swept", place, section, key), why);
}

struct YamlRow {
  std::string name;
  Replacements values;
};

std::vector<YamlRow> read_rows(const std::string& file, const YAML::Node& root) {
  const YAML::Node list = root.IsMap() ? root["rows"] : YAML::Node(YAML::NodeType::Undefined);
  std::vector<YamlRow> rows;
  if (!list.IsDefined() || list.IsNull()) return rows;
  const auto refuse = [&](const YAML::Node& node, const std::string& what, const std::string& hint) {
    throw UsageError(fmt::format("{}: rows: {}", place_of(file, node), what), hint);
  };
  constexpr const char* kExample = "as in `rows: [{name: ours, reorder.metric: gram, reorder.plan: dp}]`";
  if (!list.IsSequence() || list.size() == 0)
    refuse(list, fmt::format("expected a list of sets of options, got {}", kind_of(list)), kExample);
  const std::vector<std::string> known = option_keys();
  for (const YAML::Node& item : list) {
    if (!item.IsMap())
      refuse(item, fmt::format("expected a set of options, got {}", kind_of(item)), kExample);
    YamlRow row;
    for (const auto& entry : item) {
      const std::string key = entry.first.Scalar();
      if (key == "name" && entry.second.IsScalar()) {
        row.name = entry.second.Scalar();
        continue;
      }
      require_free(known, key, place_of(file, entry.first), "rows");
      if (!row.values.emplace(key, entry.second).second)
        refuse(entry.first, fmt::format("{} stands here twice", key), {});
    }
    if (row.name.empty()) refuse(item, "a row has no name", kExample);
    if (std::any_of(rows.begin(), rows.end(), [&](const YamlRow& other) { return other.name == row.name; }))
      refuse(item, fmt::format("two rows are named '{}'", row.name), {});
    rows.push_back(std::move(row));
  }
  return rows;
}

std::vector<YamlAxis> read_grid(const std::string& file, const YAML::Node& root) {
  const YAML::Node grid = root.IsMap() ? root["grid"] : YAML::Node(YAML::NodeType::Undefined);
  if (!grid.IsDefined() || grid.IsNull() || (grid.IsMap() && grid.size() == 0)) {
    if (root.IsMap() && root["rows"].IsDefined() && !root["rows"].IsNull()) return {};
    throw UsageError(fmt::format("{}: grid is missing", file),
                     "a sweep needs options to vary, as in `grid: {reorder.metric: [taylor, magnitude]}`");
  }
  if (!grid.IsMap())
    throw UsageError(fmt::format("{}: grid: expected a section of options and lists of values, got {}",
                                 place_of(file, grid), kind_of(grid)));
  const std::vector<std::string> known = option_keys();
  std::vector<YamlAxis> axes;
  size_t n_points = 1;
  for (const auto& entry : grid) {
    const std::string key = entry.first.Scalar();
    const auto refuse = [&](const YAML::Node& node, const std::string& what, const std::string& hint = {}) {
      throw UsageError(fmt::format("{}: grid.{}: {}", place_of(file, node), key, what), hint);
    };
    if (std::any_of(axes.begin(), axes.end(), [&](const YamlAxis& axis) { return axis.key == key; }))
      refuse(entry.first, "stands here twice");
    if (entry.second.IsMap())
      refuse(entry.first, "expected a list of values, got a section",
             entry.second.size() == 0 ? ""
                                      : fmt::format("write the option's whole path: {}.{}: [...]", key,
                                                    entry.second.begin()->first.Scalar()));
    require_free(known, key, place_of(file, entry.first), "grid");
    YamlAxis axis{key, {}};
    if (entry.second.IsScalar()) axis.values.push_back(entry.second);
    if (entry.second.IsSequence())
      for (const auto& value : entry.second) axis.values.push_back(value);
    if (axis.values.empty()) refuse(entry.first, "expected a list of values, got none");
    if (axis.values.size() > kMaxPoints / n_points)
      refuse(entry.first, fmt::format("the grid has more than {} points", kMaxPoints));
    n_points *= axis.values.size();
    axes.push_back(std::move(axis));
  }
  return axes;
}

}  // namespace

RunConfig load_config(const fs::path& file, const std::vector<std::string>& overrides) {
  const YAML::Node root = load_yaml(file, overrides);
  for (const char* key : {"grid", "rows"})
    if (const YAML::Node varied = root.IsMap() ? root[key] : YAML::Node(YAML::NodeType::Undefined);
        varied.IsDefined())
      throw UsageError(fmt::format("{}: {}: a run has no {}", place_of(file.string(), varied), key, key),
                       fmt::format("this is a sweep: `elastify sweep {}`", file.string()));
  RunConfig config = read_config(file.string(), root);
  if (!config.eval.tasks.empty())
    throw UsageError(fmt::format("{}: eval.tasks: a run is measured on text alone", file.string()),
                     "sweeps take tasks, and so does `elastify eval --task`");
  return config;
}

SweepConfig load_sweep(const fs::path& file, const std::vector<std::string>& overrides) {
  const YAML::Node root = load_yaml(file, overrides);
  SweepConfig sweep;
  const std::vector<YamlAxis> axes = read_grid(file.string(), root);
  const std::vector<YamlRow> rows = read_rows(file.string(), root);
  sweep.base = read_config(file.string(), root);
  if (!rows.empty()) {
    GridAxis& names = sweep.grid.emplace_back();
    names.key = kRows;
    for (const YamlRow& row : rows) {
      names.values.push_back(row.name);
      std::vector<std::string>& keys = sweep.row_keys.emplace_back();
      for (const auto& [key, value] : row.values) {
        keys.push_back(key);
        if (std::any_of(axes.begin(), axes.end(), [&](const YamlAxis& axis) { return axis.key == key; }))
          throw UsageError(
              fmt::format("{}: rows: {} is varied by the grid, too", place_of(file.string(), value), key));
      }
    }
  }
  for (const YamlAxis& axis : axes) {
    for (const std::string& override : overrides)
      if (override.starts_with(axis.key + "="))
        throw UsageError(fmt::format("--set {}: the grid varies this option", override),
                         fmt::format("--set grid.{}", override));
    GridAxis& resolved = sweep.grid.emplace_back();
    resolved.key = axis.key;
    // One axis at a time, so that a bad value is found whatever stands beside it.
    for (const YAML::Node& value : axis.values) {
      const RunConfig config = read_config(file.string(), root, {{axis.key, value}});
      const std::string text = text_of(value_of(config, axis.key));
      if (std::find(resolved.values.begin(), resolved.values.end(), text) != resolved.values.end())
        throw UsageError(
            fmt::format("{}: grid.{}: {} stands here twice", place_of(file.string(), value), axis.key, text));
      resolved.values.push_back(text);
    }
  }
  const size_t n_rows = std::max<size_t>(rows.size(), 1);
  for (size_t r = 0; r < n_rows; ++r) {
    std::vector<size_t> at(axes.size(), 0);
    for (bool more = true; more;) {
      Replacements values = rows.empty() ? Replacements{} : rows[r].values;
      SweepPoint point;
      if (!rows.empty()) point.values.push_back(rows[r].name);
      for (size_t i = 0; i < axes.size(); ++i) {
        values.emplace(axes[i].key, axes[i].values[at[i]]);
        point.values.push_back(sweep.grid[i + (rows.empty() ? 0 : 1)].values[at[i]]);
      }
      point.config = read_config(file.string(), root, values);
      sweep.points.push_back(std::move(point));
      size_t axis = axes.size();
      while (axis > 0 && ++at[axis - 1] == axes[axis - 1].values.size()) at[--axis] = 0;
      more = axis > 0;
    }
  }
  return sweep;
}

ordered_json to_json(const RunConfig& config) {
  return json_of(config);
}
ordered_json to_json(const SweepConfig& config) {
  ordered_json json = json_of(config.base);
  for (size_t i = 0; i < config.grid.size(); ++i) {
    if (config.grid[i].key == kRows) {
      const size_t n_points = config.points.size() / config.row_keys.size();  // of each row
      for (size_t r = 0; r < config.row_keys.size(); ++r) {
        ordered_json& row = json["rows"].emplace_back(ordered_json{{"name", config.grid[i].values[r]}});
        for (const std::string& key : config.row_keys[r])
          row[key] = value_of(config.points[r * n_points].config, key);
      }
      continue;
    }
    auto values = ordered_json::array();
    for (const SweepPoint& point : config.points) {
      const auto value = value_of(point.config, config.grid[i].key);
      if (std::find(values.begin(), values.end(), value) == values.end()) values.push_back(value);
    }
    json["grid"][config.grid[i].key] = values;
  }
  return json;
}
ordered_json to_json(const profile::ProfileOptions& options) {
  return json_of(options);
}
ordered_json to_json(const ReorderSection& options) {
  return json_of(options);
}
ordered_json to_json(const EvalOptions& options) {
  return json_of(options);
}
ordered_json value_of(const RunConfig& config, const std::string& key) {
  const ordered_json options = json_of(config);
  const size_t dot = key.find('.');
  const std::string first = key.substr(0, dot);
  if (!options.contains(first)) return {};
  if (dot == std::string::npos) return options.at(first);
  return options.at(first).is_object() ? options.at(first).value(key.substr(dot + 1), ordered_json{})
                                       : ordered_json{};
}
std::string text_of(const ordered_json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return value.dump();
  std::vector<std::string> parts;
  for (const auto& item : value) parts.push_back(text_of(item));
  return fmt::format("{}", fmt::join(parts, "+"));
}

}  // namespace elastify::pipeline
