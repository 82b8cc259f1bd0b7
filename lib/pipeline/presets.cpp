#include "pipeline/presets.h"

#include <string>

#include "base/error.h"

namespace elastify::pipeline {

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all{
      {"fast",
       "an order from one pass over little text, anchor layers, no repair",
       {{"profile.tokens", "8192"},
        {"reorder.metric", "gram"},
        {"reorder.plan", "anchors"},
        {"reorder.compensate", "none"}}},
      {"balanced",
       "widths by measured losses, adapters of an eighth of the width and own output norms",
       {{"profile.tokens", "16384"},
        {"reorder.metric", "gram"},
        {"reorder.plan", "dp"},
        {"reorder.search_tokens", "2048"},
        {"reorder.compensate", "adapter+norm"},
        {"reorder.rank", kEighthOfWidth},
        {"reorder.guard", "true"}}},
      {"best",
       "widths searched on measured divergence, adapters with spread ranks fitted on four times the text",
       {{"profile.tokens", "16384"},
        {"reorder.metric", "gram"},
        {"reorder.plan", "dp+kl"},
        {"reorder.search_tokens", "2048"},
        {"reorder.compensate", "adapter+norm"},
        {"reorder.rank", kEighthOfWidth},
        {"reorder.spread_ranks", "true"},
        {"reorder.fit_tokens", "65536"},
        {"reorder.guard", "true"}}},
      {"paper",
       "the paper's choice without training: element-wise Taylor importance, anchor layers",
       {{"profile.tokens", "6400"},
        {"reorder.metric", "taylor-element"},
        {"reorder.plan", "anchors"},
        {"reorder.compensate", "none"}}},
      {"none", "plain defaults: every option that is not given has its own default", {}}};
  return all;
}

const Preset& preset_named(std::string_view name) {
  std::string known;
  for (const Preset& preset : presets()) {
    if (preset.name == name) return preset;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", preset.name);
  }
  throw UsageError(fmt::format("unknown preset '{}'; known are {}", name, known));
}

std::vector<options::Choice> preset_choices() {
  std::vector<options::Choice> choices;
  for (const Preset& preset : presets())
    choices.push_back({std::string(preset.name), std::string(preset.help)});
  return choices;
}

}  // namespace elastify::pipeline
