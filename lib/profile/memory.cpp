#include "profile/memory.h"

#include <algorithm>

#include "base/error.h"
#include "base/size.h"
#include "profile/statistics.h"

namespace elastify::profile {
namespace {

constexpr int64_t kProcess = int64_t{300} << 20;  ///< LibTorch, code, file buffers, allocator's slack
constexpr int64_t kLogits = int64_t{96} << 20;    ///< most for a slab of logits and what is computed from it

}  // namespace

MemoryNeed memory_need(const ModelSpec& spec, const ProfileOptions& options) {
  const Wanted wanted = wanted_by(options.metrics, options.second_moments);
  const int64_t rows = options.text.batch * options.text.seq;
  int64_t all_sums = 0, most_sums = 0, all_traces = 0, most_trace = 0, most_weights = 0;
  int64_t most_scratch = 0;
  for (int64_t l = 0; l < spec.n_layers; ++l) {
    const int64_t n_mixed = n_inputs(spec, l, Site::kAttnOut), n_ff = n_inputs(spec, l, Site::kFfnDown);
    int64_t weights = 0, sums = 16 * (2 * spec.d_model + n_mixed + n_ff);
    for (const TensorSpec& tensor : spec.tensors)
      if (tensor.layer == l) weights += n_elements(tensor.shape);
    if (wanted.second_moments) sums += 8 * (n_mixed * n_mixed + n_ff * n_ff);
    if (wanted.weight_gradients) sums += 8 * weights;
    const int64_t kv = n_mixed / spec.layer(l).heads_per_group;
    const int64_t trace = 4 * rows * (3 * spec.d_model + 2 * n_mixed + 2 * kv + 2 * n_ff);
    // Working memory of a pass through one layer and back: gradients of everything in a trace, and one
    // weight's gradient in both types.
    int64_t scratch = 4 * rows * (6 * spec.d_model + 4 * n_mixed + 2 * n_ff);
    if (wanted.weight_gradients) scratch += 12 * spec.d_model * std::max(n_ff, n_mixed);
    if (wanted.second_moments) scratch += 8 * n_ff * 1024 + 8 * n_ff * n_ff;
    all_sums += sums;
    all_traces += wanted.any_gradient() ? trace : 0;
    most_sums = std::max(most_sums, sums);
    most_trace = std::max(most_trace, trace);
    most_weights = std::max(most_weights, weights);
    most_scratch = std::max(most_scratch, scratch);
  }
  const int64_t output = spec.n_vocab * spec.d_model;
  const int64_t logits = std::min(kLogits, 12 * rows * spec.n_vocab);
  MemoryNeed need;
  need.resident = kProcess + logits + 4 * n_params(spec, full_widths(spec)) + all_sums +
                  std::max(all_traces, most_trace) + most_scratch;
  need.streamed = kProcess + std::max(4 * output + logits + 8 * rows * spec.d_model,
                                      4 * most_weights + most_sums + most_trace + most_scratch);
  return need;
}

bool must_stream(const ModelSpec& spec, const ProfileOptions& options, int64_t max_ram) {
  const MemoryNeed need = memory_need(spec, options);
  if (max_ram == 0 || need.resident <= max_ram) return false;
  if (need.streamed <= max_ram) return true;
  throw UsageError(
      fmt::format("max-ram {}: even layer by layer, {} are needed for sequences of {} tokens, {} "
                  "at a time",
                  format_bytes(max_ram), format_bytes(need.streamed), options.text.seq, options.text.batch),
      options.text.batch > 1 ? "a smaller --batch needs less" : "a smaller --seq needs less");
}

}  // namespace elastify::profile
