#include "recover/options.h"

#include "options/option.h"

namespace elastify::recover {

void declare(options::Options& options, ClosedFormOptions& fields) {
  const auto add = [&](auto name, auto& field, const char* help) -> options::Option& {
    return options.add(name, field, help).affects(options::Result::kRepairs).group("repairs");
  };
  const std::vector<options::Choice> parts{
      {"none", "levels are plain prefixes"},
      {"adapter", "a low-rank matrix beside o and down; the base weights stay shared"},
      {"baked", "o and down refitted; the level no longer shares them"},
      {"bias", "a constant per output of o and down"},
      {"norm", "own weights of the output norm"}};
  options
      .add(
          "compensate", fields.compensation,
          "makes up for the units that a level leaves out, fitted on the calibration text: none, or a sum of "
          "adapter or baked, bias, norm, as in adapter+norm",
          options::text_codec<Compensation>(
              "PARTS", [](const std::string& text) { return compensation_named(text); },
              [](const Compensation& value) { return name_of(value); }, parts))
      .affects(options::Result::kRepairs)
      .group("repairs");
  add("rank", fields.rank, "rank of every adapter; with --spread-ranks, the mean at equal size").at_least(1);
  add("spread_ranks", fields.spread_ranks,
      "give adapters more rank where it counts more on the calibration text");
  add("ridge", fields.ridge, "pull of the fit towards the weights as they are; 0: chosen on held-out text")
      .between(0, 1);
  add("sequential", fields.sequential,
      "fit on inputs of the repaired layers below [unless there are adapters without a norm]");
  add("whole_stream", fields.whole_stream,
      "fit the residual stream, errors of the layers below included [as --sequential]");
  add("guard", fields.guard, "shrink or drop repairs that do not help on documents held out from the fit");
  add("weigh_tokens", fields.weigh_tokens,
      "weigh a token's error by the inverse of its stream's mean square");
}

}  // namespace elastify::recover
