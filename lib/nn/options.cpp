#include "nn/options.h"

#include "base/error.h"
#include "options/option.h"

namespace elastify::nn {

void declare(options::Options& options, DecoderOptions& fields) {
  using options::Result;
  const Result computed = Result::kProfile | Result::kOrder | Result::kWidths | Result::kRepairs |
                          Result::kProof | Result::kEvaluation;
  options.add("device", fields.device, "cpu, cuda or cuda:<i>").affects(computed).group("common");
  const std::vector<options::Choice> choices{
      {"f32", "float32"}, {"bf16", "bfloat16"}, {"f16", "float16; on GPUs"}};
  const auto parse = [](const std::string& name) {
    if (name != "f32" && name != "bf16" && name != "f16")
      throw UsageError(fmt::format("unknown compute type '{}'", name), "one of f32, bf16, f16");
    return name;
  };
  options
      .add("dtype", fields.dtype, "type to compute in: f32, bf16, f16",
           options::text_codec<std::string>(
               "NAME", parse, [](const std::string& name) { return name; }, choices))
      .affects(computed)
      .group("common");
}

}  // namespace elastify::nn
