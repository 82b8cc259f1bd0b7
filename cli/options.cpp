#include "cli/options.h"

#include <fmt/ranges.h>

#include <CLI/CLI.hpp>

#include <optional>

namespace elastify::cli {
namespace {

std::string metric_names() {
  std::vector<std::string_view> names;
  for (const Metric metric : all_metrics()) names.push_back(name_of(metric));
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace

void add_levels_option(CLI::App& command, std::vector<double>& levels, const std::string& help) {
  command
      .add_option_function<std::string>(
          "--levels", [&levels](const std::string& text) { levels = plan::parse_levels(text); }, help)
      ->type_name("LIST|FROM:TO:STEP");
}

void add_metric_option(CLI::App& command, Metric& metric, const std::string& purpose) {
  command.add_option_function<std::string>(
      "--metric", [&metric](const std::string& name) { metric = metric_named(name); },
      fmt::format("{}: {} [taylor]", purpose, metric_names()));
}

void add_text_options(CLI::App& command, profile::ProfileOptions& options) {
  command.add_option("--data", options.data,
                     "calibration text: .txt, .jsonl files, or self (sampled from the model)");
  command.add_option("--tokens", options.tokens, "calibration tokens; 0: all of the data")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--seq", options.seq, "tokens per sequence")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  command.add_option("--batch", options.batch, "sequences per forward pass")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

void add_profile_options(CLI::App& command, profile::ProfileOptions& options, bool with_metrics) {
  add_text_options(command, options);
  if (with_metrics)
    command
        .add_option_function<std::vector<std::string>>(
            "--metrics",
            [&options](const std::vector<std::string>& names) {
              options.metrics.clear();
              for (const auto& name : names) options.metrics.push_back(metric_named(name));
            },
            fmt::format("importances to measure: {} [taylor]", metric_names()))
        ->delimiter(',');
  command
      .add_option("--removal-tokens", options.removal_tokens,
                  with_metrics ? "tokens for the layer-removal loss; 0: not measured"
                               : "tokens for the layer-removal loss, and for what `dp` and `dp+kl` measure; "
                                 "0: not measured")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

void add_repair_options(CLI::App& command, std::string& compensation, pipeline::ReorderSection& section) {
  recover::ClosedFormOptions& options = section.repair;
  command.add_option("--compensate", compensation,
                     "what makes up for the units that a level leaves out, fitted on --data: none, or a sum "
                     "of adapter or baked, bias, norm, as in adapter+norm [none]");
  command
      .add_option("--fit-tokens", section.fit_tokens,
                  "calibration tokens that --compensate fits on; 0: as many as --tokens")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      .add_option(
          "--rank", options.rank,
          "of every adapter; with --spread-ranks, all of a level's together are as large as if it were")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_flag("--spread-ranks,!--no-spread-ranks", options.spread_ranks,
                   "adapters have more rank where it counts more on --data");
  command
      .add_option("--ridge", options.ridge,
                  "pull of the fit towards the weights as they are; 0: chosen on held-out text")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  // Bound to an optional, CLI11 would take a flag that is not given for one that is false.
  const auto add_open_flag = [&](const char* names, std::optional<bool>& value, const char* help) {
    command.add_flag_function(
        names, [&value](int64_t count) { value = count > 0; }, help);
  };
  add_open_flag("--sequential,!--no-sequential", options.sequential,
                "fit on inputs of the repaired layers below [unless there are adapters without a norm]");
  add_open_flag("--whole-stream,!--no-whole-stream", options.whole_stream,
                "fit the residual stream, errors of the layers below included [as --sequential]");
}

void add_plan_options(CLI::App& command, plan::PlanOptions& options) {
  command.add_option_function<std::string>(
      "--plan", [&options](const std::string& name) { options.method = plan::method_named(name); },
      "how widths are chosen: uniform, anchors, zscore, shortgpt, dp, dp+kl [uniform]");
  add_levels_option(command, options.levels, "shares of the budget [0.2:1.0:0.1]");
  command
      .add_option_function<std::string>(
          "--budget", [&options](const std::string& text) { options.budget = plan::parse_budget(text); },
          "what levels are shares of: decoder (its weights), params (all weights), bytes:TYPE, "
          "latency:FILE.json (of `elastify install-check --latency-table`, or `llama-bench -o json`; :prompt "
          "or :gen after it) [decoder]")
      ->type_name("BUDGET");
  command
      .add_option("--grid", options.grid,
                  "MLP widths are multiples of this: 32 (q8_0 and kin), 256 (K-quants)")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--min-width", options.min_width, "share of every space that always stays")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command.add_flag("--depth", options.depth, "let `dp` and `dp+kl` drop attentions and layers as well");
  command
      .add_option("--search-seq", options.search_seq,
                  "tokens per sequence of the text that `dp` and `dp+kl` measure on, where shorter ones are "
                  "from more places; 0: as --seq")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--search-steps", options.search_steps, "moves that `dp+kl` measures, over all levels")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--anchor-share", options.anchor_share, "layers that `anchors` keeps at full width")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
}

void add_overrides(const CLI::App& command, std::vector<std::string>& overrides) {
  for (const char* key : {"device", "dtype", "seed", "threads", "tokenizer"})
    if (const CLI::Option* option = command.get_option(fmt::format("--{}", key)); option->count() > 0)
      overrides.push_back(fmt::format("{}={}", key, option->results().back()));
}

}  // namespace elastify::cli
