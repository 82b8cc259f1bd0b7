#include "pipeline/install_check.h"

#include <algorithm>
#include <cmath>
#include <set>

#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/progress.h"
#include "export/packed.h"
#include "io/gguf.h"
#include "pipeline/artifact.h"

namespace elastify::pipeline {
namespace {

/// A model to load, and its row of the report.
struct Subject {
  fs::path model, adapter;
  InstallRow row;
  int64_t n_vocab = 1;
  std::shared_ptr<const PlainFiles> files = nullptr;  ///< keeps the unpacked file
};

/// Fills in the size, vocabulary and level that the file states. If we cannot read it, the runtime has to
/// refuse it.
void describe(Subject& subject) {
  try {
    const GgufFile file = GgufFile::open(subject.model);
    for (const TensorInfo& tensor : file.tensors()) subject.row.n_params += n_elements(tensor.shape);
    if (file.contains("token_embd.weight")) subject.n_vocab = file.tensor("token_embd.weight").shape.front();
    if (const auto level = file.metadata().number("elastify.level"))
      subject.row.level = std::round(*level * 1e6) / 1e6;  // stored as f32
  } catch (const Error&) {
    subject.row.n_params = 0;
  }
}

bool is_model(const fs::path& path) {
  const std::string name = path.filename().string();
  return path.extension() == ".gguf" && (name.starts_with("full") || name.starts_with("level-")) &&
         !name.ends_with("-00002-of-00002.gguf");
}

fs::path adapter_of(const fs::path& model) {
  const std::string name = model.filename().string();
  constexpr std::string_view kLevel = "level-";
  if (!name.starts_with(kLevel)) return {};
  const fs::path adapter = model.parent_path() / fmt::format("lora-{}.gguf", name.substr(kLevel.size(), 3));
  return fs::exists(adapter) ? adapter : fs::path();
}

/// Adds the models of an artifact, alone and with their adapters.
/// \param prefix  "q8_0/" for one of several types
void add_artifact(const fs::path& artifact, const std::string& prefix, std::vector<Subject>& subjects) {
  const auto files = PlainFiles::of(artifact, std::nullopt);
  const auto packed = packed_file(artifact);
  std::vector<fs::path> models;
  for (const auto& entry : fs::directory_iterator(files->directory()))
    if (is_model(entry.path())) models.push_back(entry.path());
  // The full model first, then from the widest level down.
  std::sort(models.rbegin(), models.rend());
  std::stable_partition(models.begin(), models.end(),
                        [](const fs::path& path) { return path.filename().string().starts_with("full"); });
  if (models.empty())
    throw UsageError(fmt::format("{}: no GGUF models in it", artifact.string()),
                     "give a directory that `elastify export` wrote");
  for (const fs::path& path : models) {
    Subject subject{.model = path, .adapter = {}, .row = {}, .n_vocab = 1, .files = files};
    subject.row.file = prefix + path.filename().string();
    if (packed && path.filename() == "full.gguf") {
      subject.model = *packed;
      subject.row.file = prefix + packed->filename().string();
    }
    subject.model = fs::absolute(subject.model);
    describe(subject);
    subjects.push_back(subject);
    subject.adapter = adapter_of(fs::absolute(path));
    if (subject.adapter.empty()) {
      require_listed_adapter(files->directory(), subject.row.level);
      continue;
    }
    subject.row.adapter = subject.adapter.filename().string();
    subjects.push_back(subject);
  }
}

/// A damaged file counts as not packed; the runtime has to refuse it.
bool is_packed(const fs::path& path) {
  try {
    return packed_file(path).has_value();
  } catch (const Error&) {
    return false;
  }
}

std::vector<Subject> subjects_in(const fs::path& path) {
  std::vector<Subject> subjects;
  if (!fs::exists(path))
    throw UsageError(fmt::format("{}: no such file or directory", path.string()),
                     "give a directory that `elastify export` wrote, or a GGUF file");
  if (const auto folders = artifact_folders(path); !folders.empty()) {
    for (const std::string& folder : folders) add_artifact(path / folder, folder + "/", subjects);
  } else if (fs::is_regular_file(path) ? is_packed(path) : is_artifact(path)) {
    add_artifact(path, "", subjects);
  } else if (fs::is_regular_file(path)) {
    Subject subject{.model = fs::absolute(path), .adapter = {}, .row = {}, .n_vocab = 1};
    subject.row.file = path.filename().string();
    describe(subject);
    subjects.push_back(subject);
  } else {
    throw UsageError(fmt::format("{}: not an artifact (no manifest.json in it)", path.string()),
                     "give a directory that `elastify export` wrote, or a GGUF file");
  }
  return subjects;
}

/// Times of several runtimes or types are not comparable.
void require_one_series(const std::vector<Runtime>& runtimes, const fs::path& path) {
  std::vector<std::string> names;
  for (const Runtime& runtime : runtimes) names.push_back(name_of(runtime.kind));
  if (names.size() > 1)
    throw UsageError(
        fmt::format("a latency table describes one runtime, but these are here: {}", fmt::join(names, ", ")),
        "choose one with --runtime");
  if (const auto folders = artifact_folders(path); folders.size() > 1)
    throw UsageError(fmt::format("a latency table describes one weight type, but {} has {}", path.string(),
                                 fmt::join(folders, ", ")),
                     fmt::format("give {}", (path / folders.front()).string()));
}

}  // namespace

bool InstallReport::all_load() const {
  return std::all_of(rows.begin(), rows.end(),
                     [](const InstallRow& row) { return row.outcome.loads.value_or(true); });
}

InstallReport check_install(const fs::path& path, const InstallOptions& options) {
  InstallReport report{.runtimes = find_runtimes(options.runtimes), .rows = {}};
  if (options.for_latency_table) require_one_series(report.runtimes, path);
  const std::vector<Subject> subjects = subjects_in(path);
  Progress progress("loading", static_cast<int64_t>(subjects.size() * report.runtimes.size()), "files");
  for (const Subject& subject : subjects)
    for (const Runtime& runtime : report.runtimes) {
      InstallRow row = subject.row;
      row.runtime = runtime.kind;
      LoadJob job = options.job;
      job.model = subject.model;
      job.adapter = subject.adapter;
      job.n_vocab = subject.n_vocab;
      row.outcome = load_in(runtime, job);
      report.rows.push_back(std::move(row));
      progress.advance(1);
    }
  return report;
}

nlohmann::ordered_json latency_rows(const InstallReport& report, const LoadJob& job) {
  std::set<int64_t> sizes;
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const InstallRow& row : report.rows) {
    if (!row.adapter.empty() || !row.outcome.loads.value_or(false) || row.n_params == 0) continue;
    sizes.insert(row.n_params);
    const auto add = [&](int64_t n_prompt, int64_t n_gen, double tokens_per_second) {
      nlohmann::ordered_json entry = {
          {"runtime", name_of(row.runtime)}, {"model_filename", row.file}, {"model_n_params", row.n_params}};
      if (job.threads > 0) entry["n_threads"] = job.threads;
      entry["n_prompt"] = n_prompt;
      entry["n_gen"] = n_gen;
      entry["avg_ns"] = 1e9 * static_cast<double>(n_prompt + n_gen) / tokens_per_second;
      entry["avg_ts"] = tokens_per_second;
      rows.push_back(std::move(entry));
    };
    add(job.n_prompt, 0, row.outcome.prompt_tokens_per_second);
    add(0, job.n_generate, row.outcome.generation_tokens_per_second);
  }
  if (sizes.size() < 2)
    throw Error(
        fmt::format("a latency table needs two models of different size that load, got {}", sizes.size()),
        "give an artifact with several levels");
  return rows;
}

}  // namespace elastify::pipeline
