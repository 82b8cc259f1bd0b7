#include "pipeline/keys.h"

#include "base/hash.h"
#include "base/version.h"

namespace elastify::pipeline {

using nlohmann::ordered_json;
using options::overlap;
using options::Result;

std::string content_hash(const std::vector<fs::path>& files) {
  Sha256 digest;
  for (const fs::path& file : files) digest.update(sha256_file(file) + "\n");
  return digest.finish();
}

std::string text_hash(const std::vector<std::string>& data) {
  std::vector<fs::path> files;
  for (const auto& name : data)
    if (name != "self") files.emplace_back(name);
  return content_hash(files);
}

ordered_json identity(const OpenModel& model) {
  return {{"model", content_hash(model.checkpoint.files())},
          {"tokenizer", model.vocabulary ? digest(*model.vocabulary) : ""}};
}

ordered_json key_of(const RunConfig& config, Result results) {
  ordered_json contents = ordered_json::object();
  const auto add = [&](const char* name, const std::string& file) {
    if (!file.empty()) contents[name] = sha256_file(file);
  };
  if (overlap(results, Result::kProfile | Result::kWidths | Result::kRepairs))
    contents["text"] = text_hash(config.profile.text.data);
  if (overlap(results, Result::kProfile)) add("imatrix", config.profile.imatrix);
  if (overlap(results, Result::kWidths)) add("latencies", config.reorder.plan.budget.table.string());
  if (overlap(results, Result::kArtifact)) add("export_imatrix", config.export_.imatrix);
  if (overlap(results, Result::kEvaluation))
    contents["held_out"] = {text_hash(config.eval.text.data), text_hash(config.eval.tasks)};
  return {{"options", to_json(config, results)}, {"contents", contents}};
}

std::string digest_of(std::string_view result, const ordered_json& inputs) {
  return sha256_hex(ordered_json{{"result", result}, {"version", kVersion}, {"inputs", inputs}}.dump());
}

}  // namespace elastify::pipeline
