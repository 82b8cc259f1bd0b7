#include "plan/options.h"

#include <array>

#include "base/error.h"
#include "model/levels.h"
#include "options/option.h"

namespace elastify::plan {
namespace {

using options::Result;

/// A method, its name and help, and what it needs.
struct MethodEntry {
  options::Named<Method> named;
  MethodFacts facts;
};
constexpr MethodEntry kMethods[] = {
    {{Method::kUniform, "uniform", "every layer equally wide"}, {}},
    {{Method::kAnchors, "anchors", "the layers whose removal hurts most stay full: the paper's choice"},
     {.needs_profile = true, .needs_removal = true}},
    {{Method::kZscore, "zscore", "one threshold on standardised scores (FLAP)"}, {.needs_profile = true}},
    {{Method::kShortGpt, "shortgpt", "whole layers go, the least influential first"},
     {.needs_profile = true, .needs_moments = true}},
    {{Method::kDp, "dp", "the least total cost by measured curves, layer by layer"},
     {.needs_profile = true, .needs_moments = true, .measures_losses = true, .drops_layers = true}},
    {{Method::kDpKl, "dp+kl", "`dp`, improved step by step on the measured divergence from the full model"},
     {.needs_profile = true,
      .needs_removal = true,
      .needs_moments = true,
      .measures_losses = true,
      .drops_layers = true}}};

constexpr size_t kMethodCount = std::size(kMethods);

constexpr auto kNames = [] {
  std::array<options::Named<Method>, kMethodCount> names{};
  for (size_t i = 0; i < kMethodCount; ++i) names[i] = kMethods[i].named;
  return names;
}();

}  // namespace

MethodFacts facts_of(Method method) {
  for (const MethodEntry& entry : kMethods)
    if (entry.named.value == method) return entry.facts;
  fail("unknown plan {}", static_cast<int>(method));
}

std::span<const options::Named<Method>> names_of(Method) {
  return kNames;
}

std::string_view name_of(Method method) {
  return options::name_in_table(method);
}

Method method_named(std::string_view name) {
  return options::value_in_table<Method>("plan", name);
}

void declare(options::Options& options, PlanOptions& fields) {
  const char* title = "widths";
  const auto add = [&](auto name, auto& field, const char* help) -> options::Option& {
    return options.add(name, field, help).affects(Result::kWidths).group(title);
  };
  options.add("plan", fields.method, "how widths are chosen", options::enum_codec<Method>("plan"))
      .affects(Result::kWidths)
      .group(title);
  options.add("levels", fields.levels, "shares of the budget", levels_codec())
      .affects(Result::kWidths)
      .group(title);
  options
      .add(
          "budget", fields.budget,
          "levels are shares of this: decoder (its weights), params (all weights), bytes:TYPE, or "
          "latency:FILE.json (of `elastify install-check --latency-table`, or `llama-bench -o json`; :prompt "
          "or :gen after it)",
          options::text_codec<Budget>(
              "BUDGET", [](const std::string& text) { return parse_budget(text); }, to_text))
      .affects(Result::kWidths)
      .group(title);
  add("grid", fields.grid, "MLP widths are multiples of this: 32 (q8_0 and kin), 256 (K-quants)").at_least(1);
  add("min_width", fields.min_width, "share of every space that always stays").share();
  add("depth", fields.depth, "let `dp` and `dp+kl` drop attentions and layers as well");
  add("search_tokens", fields.search_tokens, "calibration tokens that `dp` and `dp+kl` measure losses on")
      .at_least(2);
  add("search_seq", fields.search_seq,
      "tokens per sequence of these; shorter sequences come from more places; 0: as --seq")
      .at_least(0);
  add("search_steps", fields.search_steps, "moves that `dp+kl` measures, over all levels").at_least(0);
  add("anchor_share", fields.anchor_share, "share of the layers that `anchors` keeps at full width").share();
}

}  // namespace elastify::plan
