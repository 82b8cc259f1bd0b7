#include "solve/rank_by_moments.h"

#include <set>

#include "profile/profile_model.h"
#include "solve/prefix_fit.h"
#include "support/batches.h"
#include "support/decoders.h"

using namespace elastify;
using namespace elastify::test;

TEST_CASE("rank by moments: every space of a model gets the order of its own projection and inputs") {
  constexpr double kRidge = 1e-3;
  const std::vector<std::pair<Metric, std::vector<int64_t> (*)(const solve::Projection&)>> orders{
      {Metric::kObs, solve::obs_order},
      {Metric::kForward, solve::forward_order},
      {Metric::kHybrid, solve::hybrid_order},
      {Metric::kGram, solve::gram_order}};
  for (const char* family : {"llama", "qwen2"}) {
    CAPTURE(family);
    const ModelSpec spec = make_tiny_spec(family, {.n_kv_heads = 4});
    const Checkpoint checkpoint = tiny_checkpoint(spec);
    profile::ProfileOptions options;
    options.metrics = {Metric::kObs};
    options.removal_tokens = 0;
    const auto measured = profile::profile_model(nn::Decoder(checkpoint, {}), checkpoint,
                                                 random_batches(16, 32, spec.n_vocab), options);
    REQUIRE(measured.moments);
    CHECK(measured.profile.importance.empty());
    std::set<std::vector<std::vector<int64_t>>> different;
    for (const auto& [metric, order_of] : orders) {
      CAPTURE(name_of(metric));
      const Permutation order =
          solve::rank_by_moments(checkpoint, measured.moments, measured.profile.n_tokens, metric, kRidge);
      check(order, spec);
      CHECK(order.metric == name_of(metric));
      for (size_t space = 0; space < spec.spaces.size(); ++space) {
        CAPTURE(spec.spaces[space].name);
        const Role role = spec.spaces[space].kind == SpaceKind::kMlp ? Role::kDown : Role::kAttnOut;
        const HostTensor weight =
            checkpoint.load(static_cast<size_t>(spec.find(role, spec.spaces[space].layer)));
        const int64_t n = weight.shape[1];
        const at::Tensor moments = at::tensor(measured.moments(space), at::kDouble).view({n, n}).tril();
        solve::Projection projection;
        projection.weight =
            at::from_blob(const_cast<std::byte*>(weight.bytes.data()), weight.shape, at::kFloat)
                .to(at::kDouble);
        projection.moments = solve::regularised((moments + moments.tril(-1).t()) / 512.0,
                                                metric == Metric::kGram ? 0 : kRidge);
        projection.block = n / spec.spaces[space].n_units;
        CHECK(order.orders[space] == order_of(projection));
      }
      different.insert(order.orders);
    }
    CHECK(different.size() == orders.size());
  }
}

TEST_CASE("prefix errors: predicted errors are those measured on the text") {
  const ModelSpec spec = make_tiny_spec("llama");
  const Checkpoint checkpoint = tiny_checkpoint(spec);
  const nn::Decoder decoder(checkpoint, {});
  const TokenBatches batches = random_batches(16, 32, spec.n_vocab);
  profile::ProfileOptions options;
  options.metrics = {Metric::kGram};
  options.removal_tokens = 0;
  const auto measured = profile::profile_model(decoder, checkpoint, batches, options);
  const auto errors = solve::prefix_errors(checkpoint, measured.moments, measured.profile.n_tokens,
                                           identity_permutation(spec), 0);
  REQUIRE(errors.size() == spec.spaces.size());
  const c10::NoGradGuard no_gradients;
  const auto trace = decoder.trace(0, decoder.embed(ids_of(batches, 0, 16)));
  for (const Site site : {Site::kAttnOut, Site::kFfnDown}) {
    const size_t space = site == Site::kAttnOut ? spec.attention_space(0) : spec.mlp_space(0);
    CAPTURE(spec.spaces[space].name);
    const at::Tensor x = decoder.site_input(0, site, trace).flatten(0, 1).to(at::kDouble);
    const at::Tensor w = decoder.projection(0, site, full_widths(spec)).to(at::kDouble);
    const int64_t n_units = spec.spaces[space].n_units, block = x.size(1) / n_units;
    for (int64_t k = 1; k <= n_units; k += std::max<int64_t>(1, n_units / 4)) {
      const at::Tensor kept = x.narrow(1, 0, k * block), output = at::mm(x, w.t());
      const at::Tensor unfitted = at::mm(kept, w.narrow(1, 0, k * block).t());
      const at::Tensor fitted =
          at::mm(kept, at::linalg_solve(at::mm(kept.t(), kept), at::mm(kept.t(), output)));
      const auto error = [&](const at::Tensor& y) {
        return (output - y).square().sum(1).mean().item<double>();
      };
      CHECK(errors[space].unfitted[static_cast<size_t>(k)] == doctest::Approx(error(unfitted)).epsilon(1e-4));
      CHECK(errors[space].fitted[static_cast<size_t>(k)] == doctest::Approx(error(fitted)).epsilon(1e-3));
    }
    CHECK(errors[space].fitted.back() == doctest::Approx(0));
  }
}
