#include "data/text_options.h"

#include "options/option.h"

namespace elastify {
namespace {

constexpr double kMostTokens = 1 << 20;  // of a sequence

}  // namespace

void declare_text(options::Options& options, TextOptions& text, const std::string& purpose) {
  const std::string title = purpose + " text";
  options
      .add("data", text.data,
           fmt::format("{} text: .txt, .jsonl or .json files{}", purpose,
                       purpose == "calibration" ? ", or self (sampled from the model)" : ""))
      .group(title);
  options.add("tokens", text.tokens, fmt::format("{} tokens; 0: all of the text", purpose))
      .at_least(0)
      .group(title);
  options.add("seq", text.seq, "tokens per sequence").between(2, kMostTokens).group(title);
  options.add("batch", text.batch, "sequences per forward pass").at_least(1).group(title);
}

}  // namespace elastify
