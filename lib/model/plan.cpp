#include "model/plan.h"

#include <algorithm>
#include <cmath>

#include <fmt/ranges.h>

#include "base/error.h"
#include "model/json_fields.h"

namespace elastify {
namespace {

using Json = nlohmann::ordered_json;
using Fields = JsonFields<Json>;

constexpr const char* kFormat = "elastify.plan";
constexpr int64_t kVersion = 1;
constexpr double kTolerance = 1e-6;  // of stated ratios against those computed from the widths

void check_level(const ElasticPlan& plan, const Level& level, const ModelSpec& spec) {
  if (!(level.nominal > 0 && level.nominal <= 1))
    fail("nominal is {}, expected more than 0, up to 1", level.nominal);
  check_widths(spec, level.widths);
  for (size_t i = 0; i < spec.spaces.size(); ++i) {
    const AxisSpace& space = spec.spaces[i];
    const bool on_grid = level.widths[i] % plan.grid == 0 || level.widths[i] == space.n_units;
    if (space.kind == SpaceKind::kMlp && !on_grid)
      fail("{}: width is {}, expected a multiple of {} or {}", space.name, level.widths[i], plan.grid,
           space.n_units);
  }
  const Level computed = make_level(spec, level.nominal, level.widths);
  const auto differ = [](double a, double b) { return !(std::abs(a - b) <= kTolerance); };
  if (differ(level.decoder_ratio, computed.decoder_ratio))
    fail("decoder_ratio is {}, the widths make it {}", level.decoder_ratio, computed.decoder_ratio);
  if (plan.budget == "decoder" ? differ(level.budget_ratio, computed.decoder_ratio)
                               : !(level.budget_ratio > 0 && level.budget_ratio <= 1))
    fail("budget_ratio is {}, expected {}", level.budget_ratio,
         plan.budget == "decoder" ? fmt::format("the decoder_ratio {}", computed.decoder_ratio)
                                  : "more than 0, up to 1");
  if (differ(level.total_ratio, computed.total_ratio))
    fail("total_ratio is {}, the widths make it {}", level.total_ratio, computed.total_ratio);
}

void check_nested(const Level& narrow, const Level& wide, const ModelSpec& spec) {
  if (!(narrow.nominal < wide.nominal))
    fail("nominal is {}, expected less than the next level's {}", narrow.nominal, wide.nominal);
  for (size_t i = 0; i < spec.spaces.size(); ++i) {
    if (narrow.widths[i] > wide.widths[i])
      fail("{}: width is {}, expected at most the next level's {}", spec.spaces[i].name, narrow.widths[i],
           wide.widths[i]);
  }
}

Json level_json(const Level& level, const ModelSpec& spec) {
  Json kv_groups = Json::array(), d_ff = Json::array();
  for (size_t i = 0; i < spec.spaces.size(); ++i)
    (spec.spaces[i].kind == SpaceKind::kAttention ? kv_groups : d_ff).push_back(level.widths[i]);
  return {{"nominal", level.nominal},          {"decoder_ratio", level.decoder_ratio},
          {"total_ratio", level.total_ratio},  {"budget_ratio", level.budget_ratio},
          {"kv_groups", std::move(kv_groups)}, {"d_ff", std::move(d_ff)}};
}

Level read_level(const Json& json, const ModelSpec& spec) {
  const Fields fields(json);
  Level level;
  level.nominal = fields.require_number("nominal");
  level.decoder_ratio = fields.require_number("decoder_ratio");
  level.total_ratio = fields.require_number("total_ratio");
  level.budget_ratio = fields.number("budget_ratio").value_or(level.decoder_ratio);
  const std::vector<int64_t> kv_groups = fields.require_integers("kv_groups");
  const std::vector<int64_t> d_ff = fields.require_integers("d_ff");
  const auto require_layers = [&](const char* key, size_t n) {
    if (static_cast<int64_t>(n) != spec.n_layers)
      fail("{}: expected {} layers, got {}", key, spec.n_layers, n);
  };
  require_layers("kv_groups", kv_groups.size());
  require_layers("d_ff", d_ff.size());
  level.widths.resize(spec.spaces.size());
  for (int64_t layer = 0; layer < spec.n_layers; ++layer) {
    level.widths[spec.attention_space(layer)] = kv_groups[static_cast<size_t>(layer)];
    level.widths[spec.mlp_space(layer)] = d_ff[static_cast<size_t>(layer)];
  }
  return level;
}

ElasticPlan read_plan(const std::string& text, const ModelSpec& spec) {
  const Json json = parse_json<Json>(text);
  const Fields fields(json);
  if (const std::string format = fields.require_string("format"); format != kFormat)
    fail("format: expected \"{}\", got \"{}\"", kFormat, format);
  if (const int64_t version = fields.require_integer("version"); version != kVersion)
    fail("version: {} is not supported; supported is {}", version, kVersion);
  ElasticPlan plan;
  plan.spec_hash = fields.require_string("spec_hash");
  plan.method = fields.require_string("method");
  plan.budget = fields.string("budget").value_or(plan.budget);
  plan.curves = fields.string("curves").value_or("");
  plan.grid = fields.require_integer("grid");
  plan.anchors = fields.require_integers("anchors");
  plan.notes = fields.require_strings("notes");
  size_t index = 0;
  for (const Json& level : fields.require_array("levels"))
    plan.levels.push_back(
        with_context(fmt::format("levels[{}]", index++), [&] { return read_level(level, spec); }));
  check(plan, spec);
  return plan;
}

}  // namespace

std::string level_name(double nominal) {
  std::string digits = fmt::format("{:.6f}", nominal);
  const size_t point = digits.find('.');
  while (digits.size() > point + 3 && digits.back() == '0') digits.pop_back();
  digits.erase(point, 1);
  return "level-" + digits;
}

const Level& find_level(const ElasticPlan& plan, double nominal) {
  std::vector<double> known;
  for (const Level& level : plan.levels) {
    if (std::abs(level.nominal - nominal) < kTolerance) return level;
    known.push_back(level.nominal);
  }
  throw UsageError(fmt::format("no level {} in the plan; there are {}", nominal, fmt::join(known, ", ")));
}

void check(const ElasticPlan& plan, const ModelSpec& spec) {
  if (plan.spec_hash != spec_hash(spec))
    throw Error("the plan belongs to another model", "run `elastify plan` on this model");
  if (plan.grid < 1) fail("grid is {}, expected 1 or more", plan.grid);
  for (size_t i = 0; i < plan.anchors.size(); ++i) {
    const int64_t layer = plan.anchors[i];
    if (layer < 0 || layer >= spec.n_layers)
      fail("anchors: layer {} is outside 0 to {}", layer, spec.n_layers - 1);
    if (std::find(plan.anchors.begin(), plan.anchors.begin() + static_cast<long>(i), layer) !=
        plan.anchors.begin() + static_cast<long>(i))
      fail("anchors: layer {} appears twice", layer);
  }
  if (plan.levels.empty()) fail("the plan has no levels");
  for (const Level& level : plan.levels)
    with_context(level_name(level.nominal), [&] { check_level(plan, level, spec); });
  for (size_t i = 0; i + 1 < plan.levels.size(); ++i)
    with_context(level_name(plan.levels[i].nominal),
                 [&] { check_nested(plan.levels[i], plan.levels[i + 1], spec); });
  if (plan.levels.back().widths != full_widths(spec)) fail("the last level is not the full model");
}

void save_plan(const ElasticPlan& plan, const ModelSpec& spec, const fs::path& path) {
  check(plan, spec);
  Json levels = Json::array();
  for (const Level& level : plan.levels) levels.push_back(level_json(level, spec));
  Json json = {{"format", kFormat},          {"version", kVersion},     {"spec_hash", plan.spec_hash},
               {"method", plan.method},      {"budget", plan.budget},   {"grid", plan.grid},
               {"curves", plan.curves},      {"anchors", plan.anchors}, {"notes", plan.notes},
               {"levels", std::move(levels)}};
  if (plan.curves.empty()) json.erase("curves");
  write_text(path, json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

ElasticPlan load_plan(const fs::path& path, const ModelSpec& spec) {
  const std::string text = read_text(path);
  return with_context(path.string(), [&] { return read_plan(text, spec); });
}

Level make_level(const ModelSpec& spec, double nominal, Widths widths) {
  check_widths(spec, widths);
  const Widths full = full_widths(spec);
  const auto ratio = [](int64_t kept, int64_t all) {
    return static_cast<double>(kept) / static_cast<double>(all);
  };
  Level level;
  level.nominal = nominal;
  level.decoder_ratio = ratio(n_decoder_params(spec, widths), n_decoder_params(spec, full));
  level.total_ratio = ratio(n_params(spec, widths), n_params(spec, full));
  level.budget_ratio = level.decoder_ratio;
  level.widths = std::move(widths);
  return level;
}

}  // namespace elastify
