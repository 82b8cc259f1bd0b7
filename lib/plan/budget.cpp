#include "plan/budget.h"

#include <cmath>

#include <fmt/format.h>

#include "base/error.h"

namespace elastify::plan {
namespace {

constexpr const char* kKnown =
    "known are decoder, params, bytes:TYPE (as bytes:q4_k), latency:FILE.json, latency:FILE.json:prompt";

/// The weight of one element of a tensor under a budget.
struct ElementWeights {
  int64_t matrix = 1, vector = 1;
  bool decoder_only = false;

  int64_t of(const TensorSpec& tensor) const {
    if (decoder_only && tensor.layer < 0) return 0;
    return tensor.shape.size() > 1 ? matrix : vector;
  }
};

ElementWeights element_weights(const Budget& budget) {
  if (budget.kind == Budget::Kind::kDecoder) return {.decoder_only = true};
  if (budget.kind != Budget::Kind::kBytes) return {};
  const DTypeInfo& type = info(budget.type);
  return {.matrix = type.block_bytes, .vector = 4 * type.block_size};
}

std::string noun_of(const Budget& budget) {
  switch (budget.kind) {
    case Budget::Kind::kDecoder:
      return "decoder weights";
    case Budget::Kind::kParams:
      return "weights";
    case Budget::Kind::kBytes:
      return fmt::format("bytes in {}", info(budget.type).name);
    case Budget::Kind::kLatency:
      return "time per token";
  }
  return {};
}

/// The weight that a dropped space frees beyond that of its units: norms. The model's own parameter count
/// gives it.
int64_t elements_with_space(const ModelSpec& spec, size_t space) {
  const int64_t layer = spec.spaces[space].layer;
  const bool mlp = spec.spaces[space].kind == SpaceKind::kMlp;
  // Plans cannot drop these spaces.
  if (layer == 0 || (mlp && layer + 1 == spec.n_layers)) return 0;
  Widths before = full_widths(spec);
  if (mlp) before[spec.attention_space(layer)] = 0;
  Widths after = before;
  after[space] = 0;
  return n_decoder_params(spec, before) - n_decoder_params(spec, after) -
         before[space] * params_per_unit(spec, space);
}

}  // namespace

Budget parse_budget(std::string_view text) {
  const auto refuse = [&](const std::string& why, const std::string& hint) {
    throw UsageError(fmt::format("budget '{}': {}", text, why), hint);
  };
  if (text == "decoder") return {};
  if (text == "params") return {.kind = Budget::Kind::kParams};
  constexpr std::string_view kBytes = "bytes:", kLatency = "latency:";
  if (text.starts_with(kBytes)) {
    Budget budget{.kind = Budget::Kind::kBytes};
    try {
      budget.type = dtype_from_name(text.substr(kBytes.size()));
    } catch (const Error& error) {
      refuse(error.what(), error.hint());
    }
    return budget;
  }
  if (text.starts_with(kLatency)) {
    Budget budget{.kind = Budget::Kind::kLatency};
    std::string_view file = text.substr(kLatency.size());
    for (const auto& [suffix, phase] :
         {std::pair{std::string_view(":prompt"), LatencyPhase::kPrompt}, {":gen", LatencyPhase::kGen}}) {
      if (!file.ends_with(suffix)) continue;
      budget.phase = phase;
      file.remove_suffix(suffix.size());
      break;
    }
    if (file.empty()) refuse("no file", "latency:FILE.json, written by `llama-bench -o json`");
    budget.table = fs::path(file);
    return budget;
  }
  refuse("not known", kKnown);
  return {};
}

std::string to_text(const Budget& budget) {
  switch (budget.kind) {
    case Budget::Kind::kDecoder:
      return "decoder";
    case Budget::Kind::kParams:
      return "params";
    case Budget::Kind::kBytes:
      return fmt::format("bytes:{}", info(budget.type).name);
    case Budget::Kind::kLatency:
      return fmt::format("latency:{}:{}", budget.table.string(),
                         budget.phase == LatencyPhase::kPrompt ? "prompt" : "gen");
  }
  return {};
}

Scale::Scale(const ModelSpec& spec, const Budget& budget)
    : noun_(noun_of(budget)), per_unit_(spec.spaces.size(), 0) {
  const ElementWeights weights = element_weights(budget);
  for (const TensorSpec& tensor : spec.tensors) {
    const int64_t weight = n_elements(tensor.shape) * weights.of(tensor);
    full_ += weight;
    for (const AxisUse& use : tensor.axes)
      if (use.space >= 0)
        per_unit_[static_cast<size_t>(use.space)] +=
            weight / spec.spaces[static_cast<size_t>(use.space)].n_units;
  }
  fixed_ = full_;
  for (size_t space = 0; space < per_unit_.size(); ++space) {
    with_space_.push_back(weights.vector * elements_with_space(spec, space));
    fixed_ -= of(space, spec.spaces[space].n_units);
  }
  if (budget.kind != Budget::Kind::kLatency) return;
  latency_.emplace(budget.table, budget.phase);
  if (!latency_->covers(full_))
    throw Error(fmt::format("{}: the full model has {} parameters, but the measured ones have {}",
                            budget.table.string(), full_, latency_->range()),
                "measure the full model, too; times are not extrapolated");
}

int64_t Scale::of(const Widths& widths) const {
  int64_t sum = fixed_;
  for (size_t space = 0; space < widths.size(); ++space) sum += of(space, widths[space]);
  return sum;
}

int64_t Scale::target(double nominal) const {
  if (!latency_) return std::llround(nominal * static_cast<double>(full_));
  const double full_ns = latency_->at(full_);
  try {
    return std::min(full_, latency_->params_at(nominal * full_ns));
  } catch (const Error& error) {
    throw Error(fmt::format("level {}: {}", nominal, error.what()),
                fmt::format("measure a narrower model, or leave out levels below {:.4f}",
                            std::ceil(1e4 * latency_->least_ns() / full_ns) / 1e4));
  }
}

double Scale::share(int64_t weight) const {
  if (latency_) return latency_->at(weight) / latency_->at(full_);
  return static_cast<double>(weight) / static_cast<double>(full_);
}

}  // namespace elastify::plan
