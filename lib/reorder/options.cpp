#include "reorder/options.h"

#include "base/error.h"
#include "options/option.h"

namespace elastify::reorder {

void declare(options::Options& options, ReorderOptions& fields) {
  const std::vector<options::Choice> choices{{"f32", "float32"}, {"f16", "float16"}, {"bf16", "bfloat16"}};
  auto parse = [choices](const std::string& name) {
    for (const options::Choice& choice : choices)
      if (name.empty() || choice.name == name) return name;
    throw UsageError(fmt::format("unknown storage type '{}'", name), "one of f32, f16, bf16");
  };
  options
      .add("storage", fields.dtype, "type to store tensors in [the source's; f32 where it is quantised]",
           options::text_codec<std::string>(
               "NAME", parse, [](const std::string& name) { return name; }, choices))
      .affects(options::Result::kStoredWeights);
}

}  // namespace elastify::reorder
