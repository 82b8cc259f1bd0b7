#include <CLI/CLI.hpp>

#include "cli/claim.h"
#include "cli/commands.h"
#include "pipeline/install_check.h"

namespace elastify::cli {
namespace {

using pipeline::InstallRow;

struct InstallCheckCommand {
  fs::path path, latency_table;
  pipeline::InstallOptions options;
};

nlohmann::ordered_json to_json(const InstallRow& row) {
  nlohmann::ordered_json json = {
      {"file", row.file}, {"level", row.level}, {"runtime", pipeline::name_of(row.runtime)}};
  if (!row.adapter.empty()) json["adapter"] = row.adapter;
  const auto& outcome = row.outcome;
  json["loads"] = outcome.loads ? nlohmann::ordered_json(*outcome.loads) : nlohmann::ordered_json(nullptr);
  if (!outcome.message.empty()) json["message"] = outcome.message;
  if (!outcome.loads) return json;
  json["n_params"] = row.n_params;
  if (*outcome.loads) {
    json["prompt_tokens_per_second"] = outcome.prompt_tokens_per_second;
    json["generation_tokens_per_second"] = outcome.generation_tokens_per_second;
  }
  json["peak_rss_bytes"] = outcome.peak_rss_bytes;
  json["seconds"] = outcome.seconds;
  return json;
}

std::string to_text(const InstallRow& row, size_t width) {
  const std::string name = row.adapter.empty() ? row.file : fmt::format("{} + {}", row.file, row.adapter);
  const auto& outcome = row.outcome;
  const std::string start = fmt::format("{:<{}}  {:<14}", name, width, pipeline::name_of(row.runtime));
  if (!outcome.loads) return fmt::format("{}  -      {}\n", start, outcome.message);
  if (!*outcome.loads) return fmt::format("{}  NO     {}\n", start, outcome.message);
  return fmt::format("{}  yes {:>14.1f} {:>18.1f} {:>13}\n", start, outcome.prompt_tokens_per_second,
                     outcome.generation_tokens_per_second,
                     fmt::format("{:.0f} MiB", static_cast<double>(outcome.peak_rss_bytes) / (1 << 20)));
}

Report run_install_check(const Invocation& call, const InstallCheckCommand& command) {
  std::optional<OutputLock> lock;
  if (!command.latency_table.empty()) lock.emplace(claim(call, command.latency_table, {command.path}));
  pipeline::InstallOptions options = command.options;
  options.job.threads = static_cast<int>(call.config.threads);
  options.for_latency_table = !command.latency_table.empty();
  const pipeline::InstallReport checked = pipeline::check_install(command.path, options);

  Report report;
  report.ok = checked.all_load();
  report.json = {{"path", command.path.string()},
                 {"prompt_tokens", options.job.n_prompt},
                 {"generated_tokens", options.job.n_generate},
                 {"runtimes", nlohmann::ordered_json::array()},
                 {"all_load", report.ok},
                 {"files", nlohmann::ordered_json::array()}};
  for (const pipeline::Runtime& runtime : checked.runtimes) {
    nlohmann::ordered_json json = {{"name", pipeline::name_of(runtime.kind)},
                                   {"path", runtime.path.string()}};
    if (!runtime.version.empty()) json["version"] = runtime.version;
    report.json["runtimes"].push_back(std::move(json));
    report.text += fmt::format("{}{}{}: {}\n", pipeline::name_of(runtime.kind),
                               runtime.version.empty() ? "" : " ", runtime.version, runtime.path.string());
  }
  size_t width = 4, n_asked = 0, n_load = 0;
  for (const InstallRow& row : checked.rows)
    width = std::max(width, row.file.size() + (row.adapter.empty() ? 0 : 3 + row.adapter.size()));
  report.text += fmt::format("{:<{}}  {:<14}  loads {:>12} {:>18} {:>13}\n", "file", width, "runtime",
                             "prompt t/s", "generation t/s", "peak memory");
  for (const InstallRow& row : checked.rows) {
    report.json["files"].push_back(to_json(row));
    report.text += to_text(row, width);
    n_asked += row.outcome.loads ? 1U : 0U;
    n_load += row.outcome.loads.value_or(false) ? 1U : 0U;
  }
  report.text += fmt::format("{} of {} load\n", n_load, n_asked);
  if (!command.latency_table.empty()) {
    write_text(command.latency_table, latency_rows(checked, options.job).dump(2) + "\n");
    report.json["latency_table"] = command.latency_table.string();
    report.text += fmt::format("latency table -> {}: elastify plan --budget latency:{}\n",
                               command.latency_table.string(), command.latency_table.string());
  }
  return report;
}

}  // namespace

void add_install_check(CLI::App& command, Invocation& call) {
  auto args = std::make_shared<InstallCheckCommand>();
  pipeline::LoadJob& job = args->options.job;
  command.add_option("ART", args->path, "artifact directory, packed file, or a single GGUF file")->required();
  command
      .add_option("--runtime", args->options.runtimes,
                  "llama.cpp, node-llama-cpp or llama.node, as NAME or NAME=FOLDER; may be given several "
                  "times [all that are found]")
      ->type_name("NAME[=FOLDER]")
      ->allow_extra_args(false);
  command.add_option("--prompt", job.n_prompt, "tokens of the prompt")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_option("--generate", job.n_generate, "tokens to generate")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_option("--time-limit", job.limit_seconds, "seconds for each file in each runtime")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--latency-table", args->latency_table,
                     "write the times of one runtime to this file, for `plan --budget latency:FILE`");
  command.footer(
      "Example: elastify install-check artifact\n"
      "         elastify install-check artifact --runtime llama.cpp=/opt/llama.cpp/bin --latency-table "
      "latency.json");
  command.callback([args, &call] { call.action = [args, &call] { return run_install_check(call, *args); }; });
}

}  // namespace elastify::cli
