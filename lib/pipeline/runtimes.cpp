#include "pipeline/runtimes.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <map>
#include <thread>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "base/child_process.h"
#include "base/error.h"

namespace elastify::pipeline {

extern const char* const kLoadModelScript;  // load_model.mjs

namespace {

using Json = nlohmann::json;

constexpr int kRounds = 3;
constexpr const char* kBench = "llama-bench";

struct Package {
  RuntimeKind kind;
  const char *name, *package;  ///< package: npm's name; null: no package
};
constexpr Package kPackages[] = {{RuntimeKind::kLlamaCpp, "llama.cpp", nullptr},
                                 {RuntimeKind::kNodeLlamaCpp, "node-llama-cpp", "node-llama-cpp"},
                                 {RuntimeKind::kLlamaNode, "llama.node", "@fugood/llama.node"}};

const Package& package_of(RuntimeKind kind) {
  return *std::find_if(std::begin(kPackages), std::end(kPackages),
                       [&](const Package& each) { return each.kind == kind; });
}

bool is_program(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored) && ::access(path.c_str(), X_OK) == 0;
}

std::vector<fs::path> paths_in(const char* variable) {
  std::vector<fs::path> paths;
  const char* value = std::getenv(variable);
  std::string rest = value == nullptr ? "" : value;
  while (!rest.empty()) {
    const size_t end = rest.find(':');
    if (end > 0) paths.emplace_back(rest.substr(0, end));
    rest = end == std::string::npos ? "" : rest.substr(end + 1);
  }
  return paths;
}

std::optional<fs::path> program_in_path(const char* name) {
  for (const fs::path& folder : paths_in("PATH"))
    if (is_program(folder / name)) return folder / name;
  return std::nullopt;
}

/// The paths at which an npm package can be for a folder that the user gave.
std::vector<fs::path> places_of(const fs::path& folder, const char* package) {
  return {folder / "node_modules" / package, folder / package, folder};
}

bool is_package(const fs::path& folder, const char* package) {
  if (!fs::exists(folder / "package.json")) return false;
  const Json json = Json::parse(read_text(folder / "package.json"), nullptr, false);
  return json.is_object() && json.value("name", "") == package;
}

/// Finds a runtime without a path from the user.
/// \param folders  receives the searched folders
std::optional<fs::path> find_by_itself(const Package& runtime, std::vector<std::string>& folders) {
  if (runtime.package == nullptr) {
    folders.emplace_back("PATH");
    return program_in_path(kBench);
  }
  for (fs::path folder = fs::current_path();; folder = folder.parent_path()) {
    const fs::path place = folder / "node_modules" / runtime.package;
    folders.push_back((folder / "node_modules").string());
    if (is_package(place, runtime.package)) return place;
    if (folder == folder.root_path()) break;
  }
  for (const fs::path& folder : paths_in("NODE_PATH")) {
    folders.push_back(folder.string());
    if (is_package(folder / runtime.package, runtime.package)) return folder / runtime.package;
  }
  return std::nullopt;
}

std::optional<fs::path> find_in(const Package& runtime, const fs::path& given) {
  const fs::path folder = fs::absolute(given).lexically_normal();
  if (runtime.package == nullptr) {
    for (const fs::path& place :
         {folder, folder / kBench, folder / "bin" / kBench, folder / "build/bin" / kBench})
      if (is_program(place)) return place;
    return std::nullopt;
  }
  for (const fs::path& place : places_of(folder, runtime.package))
    if (is_package(place, runtime.package)) return place;
  return std::nullopt;
}

Runtime opened(const Package& runtime, const fs::path& path) {
  Runtime found{.kind = runtime.kind, .path = path, .version = ""};
  if (runtime.package != nullptr)
    found.version = Json::parse(read_text(path / "package.json")).value("version", "");
  return found;
}

void require_node(const Runtime& runtime) {
  if (runtime.kind != RuntimeKind::kLlamaCpp && !program_in_path("node"))
    throw UsageError(fmt::format("{}: `node` is not in PATH", runtime.path.string()),
                     "install node 18 or newer, or choose another runtime with --runtime");
}

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

/// The last lines of a log that contain a word for failure, at most three; its last line if there are none.
std::string reason_in(const std::string& log) {
  constexpr const char* kWords[] = {"error", "fail", "assert", "wrong", "invalid", "terminate", "what():"};
  std::vector<std::string> lines, reasons;
  for (size_t at = 0; at < log.size();) {
    const size_t end = std::min(log.find('\n', at), log.size());
    std::string line = log.substr(at, end - at);
    line.erase(0, line.find_first_not_of(" \t\r"));
    line.erase(line.find_last_not_of(" \t\r") + 1);
    if (!line.empty()) lines.push_back(line.substr(0, 400));
    at = end + 1;
  }
  for (const std::string& line : lines)
    if (std::any_of(
            std::begin(kWords), std::end(kWords),
            [text = lower(line)](const char* word) { return text.find(word) != std::string::npos; }) &&
        std::find(reasons.begin(), reasons.end(), line) == reasons.end())
      reasons.push_back(line);
  if (reasons.empty() && !lines.empty()) reasons.push_back(lines.back());
  constexpr size_t kMost = 3;
  if (reasons.size() > kMost) reasons.erase(reasons.begin(), reasons.end() - kMost);
  return fmt::format("{}", fmt::join(reasons, " | "));
}

std::vector<std::string> bench_command(const Runtime& runtime, const LoadJob& job, int threads) {
  return {runtime.path.string(),
          "-m",
          job.model.string(),
          "-p",
          std::to_string(job.n_prompt),
          "-n",
          std::to_string(job.n_generate),
          "-r",
          std::to_string(kRounds),
          "-t",
          std::to_string(threads),
          "-o",
          "json"};
}

void read_bench(const std::string& text, LoadOutcome& outcome) {
  for (const Json& row : Json::parse(text)) {
    if (row.at("n_prompt").get<int64_t>() > 0) outcome.prompt_tokens_per_second = row.at("avg_ts");
    if (row.at("n_gen").get<int64_t>() > 0) outcome.generation_tokens_per_second = row.at("avg_ts");
  }
}

std::vector<std::string> node_command(const Runtime& runtime, const LoadJob& job, int threads) {
  const Json arguments = {{"runtime", name_of(runtime.kind)},
                          {"package", runtime.path.string()},
                          {"file", job.model.string()},
                          {"adapter", job.adapter.empty() ? Json(nullptr) : Json(job.adapter.string())},
                          {"n_vocab", job.n_vocab},
                          {"n_prompt", job.n_prompt},
                          {"n_generate", job.n_generate},
                          {"threads", threads},
                          {"repetitions", kRounds}};
  return {"node", "--input-type=module", "--eval", kLoadModelScript, "--", arguments.dump()};
}

void read_last_line(std::string text, LoadOutcome& outcome) {
  text.erase(text.find_last_not_of(" \r\n") + 1);
  const Json json = Json::parse(text.substr(text.rfind('\n') + 1));
  outcome.prompt_tokens_per_second = json.at("prompt_tokens_per_second");
  outcome.generation_tokens_per_second = json.at("generation_tokens_per_second");
}

}  // namespace

std::string name_of(RuntimeKind kind) {
  return package_of(kind).name;
}

std::vector<Runtime> find_runtimes(const std::vector<std::string>& wanted) {
  std::vector<Runtime> found;
  for (const std::string& each : wanted) {
    const size_t equals = each.find('=');
    const std::string name = each.substr(0, equals);
    const auto runtime = std::find_if(std::begin(kPackages), std::end(kPackages), [&](const Package& known) {
      return name == known.name || (known.package != nullptr && name == known.package);
    });
    if (runtime == std::end(kPackages))
      throw UsageError(fmt::format("--runtime {}: not a runtime that is known", name),
                       "known are llama.cpp, node-llama-cpp and llama.node");
    std::vector<std::string> searched;
    std::optional<fs::path> path;
    if (equals == std::string::npos) {
      path = find_by_itself(*runtime, searched);
    } else {
      searched.push_back(each.substr(equals + 1));
      path = find_in(*runtime, each.substr(equals + 1));
    }
    if (!path)
      throw UsageError(
          fmt::format("--runtime {}: no {} in {}", each,
                      runtime->package == nullptr ? kBench : runtime->package, fmt::join(searched, ", ")),
          runtime->package == nullptr
              ? "--runtime llama.cpp=FOLDER names the folder that has llama-bench"
              : fmt::format("`npm install {}` here, or --runtime {}=FOLDER names a folder that "
                            "has it",
                            runtime->package, runtime->name));
    found.push_back(opened(*runtime, *path));
    require_node(found.back());
  }
  if (!wanted.empty()) return found;
  for (const Package& runtime : kPackages) {
    std::vector<std::string> searched;
    if (runtime.package != nullptr && !program_in_path("node")) continue;
    if (const auto path = find_by_itself(runtime, searched)) found.push_back(opened(runtime, *path));
  }
  if (found.empty())
    throw Error(
        "no runtime found: no llama-bench in PATH, no node-llama-cpp and no @fugood/llama.node from "
        "the current directory up",
        "`npm install node-llama-cpp` here (node 18 or newer), or --runtime llama.cpp=FOLDER with "
        "llama.cpp's llama-bench in it");
  return found;
}

LoadOutcome load_in(const Runtime& runtime, const LoadJob& job) {
  LoadOutcome outcome;
  if (runtime.kind == RuntimeKind::kLlamaCpp && !job.adapter.empty()) {
    outcome.message = "llama-bench takes no adapters";
    return outcome;
  }
  const int threads =
      job.threads > 0 ? job.threads : static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  const bool bench = runtime.kind == RuntimeKind::kLlamaCpp;
  auto command = bench ? bench_command(runtime, job, threads) : node_command(runtime, job, threads);
  const ChildOutcome child = run_child(command, job.limit_seconds);
  outcome.peak_rss_bytes = child.peak_rss_bytes;
  outcome.seconds = child.seconds;
  outcome.loads = child.succeeded();
  try {
    if (child.succeeded()) bench ? read_bench(child.out, outcome) : read_last_line(child.out, outcome);
  } catch (const Json::exception& error) {
    outcome.loads = false;
    outcome.message = fmt::format("its output is not as expected: {}", error.what());
  }
  if (child.succeeded()) return outcome;
  std::string log = child.err;
  if (bench && !child.timed_out) {  // llama-bench states the reason only with -v
    command.push_back("-v");
    log = run_child(command, job.limit_seconds).err;
  }
  const std::string reason = reason_in(log);
  // Status 1 of node adds nothing to the message.
  outcome.message = child.signal == 0 && child.status == 1 && !reason.empty()
                        ? reason
                        : fmt::format("{}{}{}", child.how(), reason.empty() ? "" : ": ", reason);
  return outcome;
}

}  // namespace elastify::pipeline
