#include "recover/stream_metric.h"

#include <torch/torch.h>

#include "recover/adapter_ranks.h"
#include "support/decoders.h"
#include "support/reference_decoder.h"

using namespace elastify;
using namespace elastify::test;

namespace {

/// E[g g^T] from autograd. If tokens are weighed, g is multiplied by the root mean square of its stream. No g
/// is longer than twice the median.
at::Tensor expected_moments(const ReferenceDecoder& decoder, const at::Tensor& ids, int64_t layer,
                            bool weighed) {
  at::Tensor stream;
  {
    const c10::NoGradGuard no_gradients;
    stream = decoder.embed(ids);
    for (int64_t l = 0; l <= layer; ++l) stream = decoder.layer(l, stream, {});
  }
  stream.set_requires_grad(true);
  at::Tensor x = stream;
  for (int64_t l = layer + 1; l < decoder.spec().n_layers; ++l) x = decoder.layer(l, x, {});
  decoder.token_nll(decoder.final_norm(x, {}), ids).sum().backward();
  const c10::NoGradGuard no_gradients;
  at::Tensor rows = stream.grad();
  if (weighed) rows = rows * stream.square().mean(-1, true).sqrt();
  rows = rows.reshape({-1, stream.size(-1)}).to(at::kDouble);
  const at::Tensor length = rows.norm(2, 1, true);
  rows = rows * (2 * length.median() / length).nan_to_num(1).clamp_max(1);
  return at::mm(rows.t(), rows) / static_cast<double>(rows.size(0));
}

}  // namespace

TEST_CASE("stream metric: the moments of the loss's gradients after every layer, and a tenth of their size") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const Checkpoint checkpoint = tiny_checkpoint(variant.spec);
    const nn::Decoder decoder(checkpoint, {});
    const ReferenceDecoder reference(checkpoint);
    const at::Tensor ids = random_ids(6, 24, variant.spec.n_vocab);
    for (const bool weighed : {true, false}) {
      CAPTURE(weighed);
      recover::ClosedFormOptions options;
      options.weigh_tokens = weighed;
      const auto metrics =
          recover::stream_metrics(decoder, {ids.narrow(0, 0, 4), ids.narrow(0, 4, 2)}, options);
      REQUIRE(metrics.size() == static_cast<size_t>(variant.spec.n_layers));
      for (int64_t l = 0; l < variant.spec.n_layers; ++l) {
        CAPTURE(l);
        at::Tensor expected = expected_moments(reference, ids, l, weighed);
        expected =
            expected + 0.1 * expected.diagonal().mean() * at::eye(expected.size(0), expected.options());
        const at::Tensor& root = metrics[static_cast<size_t>(l)];
        CHECK(relative_difference(at::mm(root, root.t()), expected) < 1e-3);
        CHECK(at::equal(root, root.tril()));
      }
    }
  }
}

TEST_CASE("stream metric: a model with halves left out has none") {
  const ModelSpec spec = make_tiny_spec("llama", {.n_layers = 4});
  const Widths widths = shallow_widths(spec);
  const nn::Decoder decoder(sliced_checkpoint(tiny_checkpoint(spec), widths), {});
  const std::vector<at::Tensor> text{random_ids(2, 16, spec.n_vocab)};
  const auto metrics = recover::stream_metrics(decoder, text, {});
  for (const at::Tensor& metric : metrics) CHECK(!metric.defined());
  recover::ClosedFormOptions options;
  options.compensation = Compensation::kAdapter;
  options.rank = 2;
  const auto ranks = recover::spread_ranks(decoder, text, {full_widths(decoder.spec())}, metrics, options);
  for (size_t l = 0; l < ranks[0].size(); ++l) {
    CAPTURE(l);
    if (widths[2 * l] == 0) CHECK(ranks[0][l].attention_out == 0);
    if (widths[2 * l + 1] == 0) CHECK(ranks[0][l].down == 0);
  }
}
