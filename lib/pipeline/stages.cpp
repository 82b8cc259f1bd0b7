#include "pipeline/stages.h"

#include "base/error.h"

namespace elastify::pipeline {

using options::Result;

const std::vector<Stage>& stages() {
  static const std::vector<Stage> all{
      {"profile", "measure how much every unit and every layer matters", "profile.h5", {}, Result::kProfile},
      {"reorder",
       "put the most important units first, choose the levels' widths, and repair the levels",
       "reordered",
       {"profile"},
       Result::kOrder | Result::kWidths | Result::kRepairs | Result::kStoredWeights},
      {"export",
       "write a GGUF file or a Hugging Face directory per level, for stock runtimes",
       "artifact",
       {"reorder"},
       Result::kArtifact},
      {"verify",
       "prove that an output is its source, reordered; exit 1 if it is not",
       "verify.json",
       {"reorder", "export"},
       Result::kProof},
      {"eval",
       "perplexity on a text, or accuracy on multiple-choice tasks",
       "eval.json",
       {"reorder"},
       Result::kEvaluation}};
  return all;
}

const Stage& stage_named(std::string_view name) {
  for (const Stage& stage : stages())
    if (stage.name == name) return stage;
  fail("there is no stage '{}'", name);
}

}  // namespace elastify::pipeline
