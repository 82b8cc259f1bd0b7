#include "recover/stream_metric.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/progress.h"
#include "recover/regression.h"

namespace elastify::recover {
namespace {

constexpr int64_t kTokens = 4096;  ///< at least, to estimate a matrix [D, D]
constexpr int64_t kTokensPerColumn = 8;
constexpr double kDamping = 0.1;
constexpr double kMost = 4;  ///< times the median of the squared gradients

/// Single sequences, spread over the text.
std::vector<at::Tensor> some_sequences(const std::vector<at::Tensor>& batches, int64_t n_tokens) {
  const at::Tensor ids = at::cat(batches);
  const int64_t n = std::clamp<int64_t>((n_tokens + ids.size(1) - 1) / ids.size(1), 1, ids.size(0));
  std::vector<at::Tensor> sequences;
  for (int64_t i = 0; i < n; ++i) sequences.push_back(ids.narrow(0, i * ids.size(0) / n, 1));
  return sequences;
}

/// Gradients [tokens, D] for errors that are weighed by token_weights(): divided by the root of the weight.
at::Tensor scaled(const at::Tensor& gradient, const at::Tensor& stream, const ClosedFormOptions& options) {
  return rows_of(gradient).to(at::kFloat) * token_weights(stream, options).rsqrt();
}

/// E[g g^T] with capped gradients. All later tokens attend to the first one, so its gradient may be larger
/// than any other's by orders of magnitude. No squared gradient counts more than kMost times the median.
at::Tensor moments_of(const at::Tensor& gradients) {
  const at::Tensor size = gradients.square().sum(1, true);
  const at::Tensor most = kMost * size.median();
  const at::Tensor capped = gradients * (most / size.clamp_min(1e-30)).clamp_max(1).sqrt();
  return (at::mm(capped.t(), capped) / static_cast<double>(gradients.size(0))).to(at::kCPU, at::kDouble);
}

at::Tensor root_of(at::Tensor moments) {
  // If all gradients are zero, all directions have the same, very small weight.
  const double size = std::max(moments.diagonal().mean().item<double>(), 1e-30);
  moments = moments + kDamping * size * at::eye(moments.size(0), moments.options());
  const auto [root, failed] = at::linalg_cholesky_ex(moments);
  if (failed.item<int64_t>() != 0 || !std::isfinite(moments.sum().item<double>()))
    throw Error("the gradients of the loss are not finite", "compute in f32, or in bf16 rather than f16");
  return root;
}

}  // namespace

std::vector<at::Tensor> stream_metrics(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                                       const ClosedFormOptions& options) {
  const int64_t n_layers = decoder.spec().n_layers, d_model = decoder.spec().d_model;
  std::vector<at::Tensor> metrics(static_cast<size_t>(n_layers));
  for (const AxisSpace& space : decoder.spec().spaces)
    if (space.n_units == 0) return metrics;
  const std::vector<at::Tensor> sequences =
      some_sequences(batches, std::max(kTokens, kTokensPerColumn * d_model));
  int64_t n_tokens = 0;
  for (const at::Tensor& ids : sequences) n_tokens += ids.numel();
  // Forward and backward run layer by layer over all sequences, so that a streamed decoder loads each layer
  // twice.
  Progress progress("gradients", 2 * n_layers * n_tokens, "layer-tokens");
  std::vector<std::vector<at::Tensor>> streams(static_cast<size_t>(n_layers) + 1);  // before each layer
  for (const at::Tensor& ids : sequences) streams[0].push_back(decoder.embed(ids));
  for (int64_t l = 0; l < n_layers; ++l)
    for (const at::Tensor& stream : streams[static_cast<size_t>(l)]) {
      streams[static_cast<size_t>(l) + 1].push_back(decoder.layer(l, stream));
      progress.advance(stream.size(1));
    }
  std::vector<at::Tensor> gradients;
  for (size_t i = 0; i < sequences.size(); ++i)
    gradients.push_back(decoder.loss_and_gradient(streams.back()[i], sequences[i]).gradient);
  for (int64_t l = n_layers; l-- > 0;) {
    const auto layer = static_cast<size_t>(l);
    std::vector<at::Tensor> of_tokens;
    for (size_t i = 0; i < sequences.size(); ++i) {
      of_tokens.push_back(scaled(gradients[i], streams[layer + 1][i], options));
      gradients[i] = decoder.backward(l, decoder.trace(l, streams[layer][i]), gradients[i]).input;
      progress.advance(sequences[i].numel());
    }
    streams[layer + 1].clear();
    metrics[layer] = root_of(moments_of(at::cat(of_tokens)));
  }
  return metrics;
}

}  // namespace elastify::recover
