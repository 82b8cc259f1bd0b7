#include "plan/latency_table.h"

#include <algorithm>
#include <cmath>
#include <map>

#include <fmt/format.h>

#include "base/error.h"
#include "model/json_fields.h"

namespace elastify::plan {
namespace {

using Json = nlohmann::json;
using Fields = JsonFields<Json>;

// A file may count slightly more elements than the decoder has, such as rotary factors.
constexpr double kTolerance = 1e-3;
constexpr const char* kHint = "write it on the device with `llama-bench -m MODEL.gguf ... -o json`";
/// Settings that must not differ between rows: times under different settings do not compare.
constexpr const char* kSettings[] = {"n_depth",  "n_threads",  "n_gpu_layers", "n_batch", "n_ubatch",
                                     "backends", "flash_attn", "type_k",       "type_v"};

struct Row {
  int64_t n_params = 0;
  double ns = 0;  ///< per token
};

/// \param settings  those of the first row, which fills them in
std::optional<Row> read_row(const Json& json, LatencyPhase phase,
                            std::map<std::string, std::string>& settings) {
  const Fields fields(json);
  const int64_t n_prompt = fields.require_integer("n_prompt"), n_gen = fields.require_integer("n_gen");
  const bool prompt = phase == LatencyPhase::kPrompt;
  const int64_t n_tokens = prompt ? n_prompt : n_gen, n_other = prompt ? n_gen : n_prompt;
  if (n_tokens <= 0 || n_other != 0) return std::nullopt;

  std::map<std::string, std::string> here{{prompt ? "n_prompt" : "n_gen", fmt::format("{}", n_tokens)}};
  for (const char* key : kSettings)
    if (json.contains(key)) here[key] = json.at(key).dump();
  // "llama 1B Q4_K - Medium": architecture and size differ by level, so only the weights' type is compared.
  if (const auto model = fields.string("model_type")) {
    const size_t size = model->find(' '), type = model->find(' ', size + 1);
    if (size != std::string::npos && type != std::string::npos) here["model_type"] = model->substr(type + 1);
  }
  if (settings.empty()) settings = here;
  for (const auto& [key, value] : here)
    if (const auto other = settings.find(key); other != settings.end() && other->second != value)
      throw Error(fmt::format("{}: rows with {} and {}", key, other->second, value),
                  "keep the rows of one setting: times under different ones do not compare");

  Row row{.n_params = fields.require_integer("model_n_params")};
  if (row.n_params < 1) fail("model_n_params: expected 1 or more, got {}", row.n_params);
  if (const auto ns = fields.number("avg_ns")) {
    row.ns = *ns / static_cast<double>(n_tokens);
  } else {
    row.ns = 1e9 / fields.require_number("avg_ts");
  }
  if (!(std::isfinite(row.ns) && row.ns > 0)) fail("expected a positive time per token, got {} ns", row.ns);
  return row;
}

/// A run of neighbouring points that share one value, their mean.
struct Pool {
  double mean;
  size_t n;
};

}  // namespace

LatencyTable::LatencyTable(const fs::path& path, LatencyPhase phase) {
  with_context(path.string(), [&] {
    const Json json = parse_json<Json>(read_text(path));
    if (!json.is_array()) throw Error("expected a list of measurements", kHint);
    std::map<int64_t, std::vector<double>> measured;
    std::map<std::string, std::string> settings;
    for (size_t i = 0; i < json.size(); ++i)
      with_context(fmt::format("[{}]", i), [&] {
        if (const auto row = read_row(json[i], phase, settings)) measured[row->n_params].push_back(row->ns);
      });
    if (measured.size() < 2)
      throw Error(fmt::format("times for {1} of {0} models, expected at least 2", measured.size(),
                              phase == LatencyPhase::kPrompt ? "reading a prompt" : "generating"),
                  kHint);
    std::vector<Pool> pools;
    for (const auto& [n_params, times] : measured) {
      double mean = 0;
      for (const double ns : times) mean += ns / static_cast<double>(times.size());
      points_.push_back({n_params, mean});
      pools.push_back({mean, 1});
      while (pools.size() > 1 && pools[pools.size() - 2].mean > pools.back().mean) {
        const Pool last = pools.back();
        pools.pop_back();
        Pool& before = pools.back();
        const auto n = static_cast<double>(before.n), m = static_cast<double>(last.n);
        before.mean = (before.mean * n + last.mean * m) / (n + m);
        before.n += last.n;
      }
    }
    size_t next = 0;
    for (const Pool& pool : pools)
      for (size_t i = 0; i < pool.n; ++i) points_[next++].ns = pool.mean;
  });
}

double LatencyTable::at(int64_t n_params) const {
  const auto above = std::lower_bound(points_.begin(), points_.end(), n_params,
                                      [](const Point& point, int64_t n) { return point.n_params < n; });
  if (above == points_.begin()) return points_.front().ns;
  if (above == points_.end()) return points_.back().ns;
  const Point &low = *(above - 1), &high = *above;
  const double place =
      static_cast<double>(n_params - low.n_params) / static_cast<double>(high.n_params - low.n_params);
  return low.ns + place * (high.ns - low.ns);
}

int64_t LatencyTable::params_at(double ns) const {
  if (ns < points_.front().ns * (1 - kTolerance) || ns > points_.back().ns * (1 + kTolerance))
    fail("{:.4g} ms per token is outside the measured range, {}", ns / 1e6, range());
  // The last point that is not slower: of equally fast models, the widest.
  const auto above = std::upper_bound(points_.begin(), points_.end(), ns,
                                      [](double time, const Point& point) { return time < point.ns; });
  if (above == points_.begin()) return points_.front().n_params;
  if (above == points_.end()) return points_.back().n_params;
  const Point &low = *(above - 1), &high = *above;
  const double place = (ns - low.ns) / (high.ns - low.ns);
  return low.n_params +
         static_cast<int64_t>(std::floor(place * static_cast<double>(high.n_params - low.n_params)));
}

bool LatencyTable::covers(int64_t n_params) const {
  const auto n = static_cast<double>(n_params);
  return n >= static_cast<double>(points_.front().n_params) * (1 - kTolerance) &&
         n <= static_cast<double>(points_.back().n_params) * (1 + kTolerance);
}

std::string LatencyTable::range() const {
  return fmt::format("{} to {} parameters, {:.4g} to {:.4g} ms per token", points_.front().n_params,
                     points_.back().n_params, points_.front().ns / 1e6, points_.back().ns / 1e6);
}

}  // namespace elastify::plan
