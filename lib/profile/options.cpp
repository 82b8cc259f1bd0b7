#include "profile/options.h"

#include "options/option.h"

namespace elastify::profile {

using options::Result;

void declare(options::Options& options, ProfileOptions& fields) {
  declare_text(options, fields.text, "calibration");
  options.add("metrics", fields.metrics, "importances to measure", options::enum_list_codec<Metric>("metric"))
      .affects(Result::kProfile);
  options.add("removal_tokens", fields.removal_tokens, "tokens for the layer-removal loss; 0: not measured")
      .at_least(0)
      .affects(Result::kProfile | Result::kWidths);
  options
      .add("second_moments", fields.second_moments,
           "also measure X^T X of the inputs of o and down, in float64; orders and widths that need it ask "
           "for it")
      .affects(Result::kProfile);
  options
      .add("imatrix", fields.imatrix,
           "llama.cpp's importance matrix, or an earlier profile, for the metric `imatrix`")
      .affects(Result::kProfile);
  options.add("save_every", fields.save_every, "seconds between saves of unfinished work")
      .at_least(0)
      .affects(Result::kNone);
}

}  // namespace elastify::profile
