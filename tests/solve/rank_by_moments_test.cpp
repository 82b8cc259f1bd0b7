#include "solve/rank_by_moments.h"

#include "profile/profile_model.h"
#include "solve/prefix_fit.h"
#include "support/batches.h"
#include "support/decoders.h"

using namespace elastify;
using namespace elastify::test;

TEST_CASE("rank by moments: of a model's spaces, refitted prefixes err less than those of a random order") {
  for (const char* family : {"llama", "qwen2"}) {
    CAPTURE(family);
    const ModelSpec spec = make_tiny_spec(family);
    const Checkpoint checkpoint = tiny_checkpoint(spec);
    profile::ProfileOptions options;
    options.metrics = {Metric::kObs};
    options.removal_tokens = 0;
    const auto measured = profile::profile_model(nn::Decoder(checkpoint, {}), checkpoint,
                                                 random_batches(16, 32, spec.n_vocab), options);
    REQUIRE(measured.moments);
    CHECK(measured.profile.importance.empty());
    for (const Metric metric : {Metric::kObs, Metric::kForward}) {
      CAPTURE(name_of(metric));
      const Permutation order =
          solve::rank_by_moments(checkpoint, measured.moments, measured.profile.n_tokens, metric, 1e-3);
      check(order, spec);
      CHECK(order.metric == name_of(metric));
      for (int64_t layer = 0; layer < spec.n_layers; ++layer) {
        const size_t space = spec.mlp_space(layer);
        const HostTensor down = checkpoint.load(static_cast<size_t>(spec.find(Role::kDown, layer)));
        const int64_t n = spec.spaces[space].n_units;
        solve::Projection projection;
        projection.weight =
            at::from_blob(const_cast<std::byte*>(down.bytes.data()), down.shape, at::kFloat).to(at::kDouble);
        projection.moments =
            solve::regularised(at::tensor(measured.moments(space), at::kDouble).view({n, n}) / 512.0, 1e-3);
        torch::manual_seed(3);
        const at::Tensor shuffled = torch::randperm(n);
        const std::vector<int64_t> random(shuffled.data_ptr<int64_t>(), shuffled.data_ptr<int64_t>() + n);
        const auto ours = solve::PrefixFit(projection, order.orders[space]).errors();
        const auto theirs = solve::PrefixFit(projection, random).errors();
        for (const size_t k : {static_cast<size_t>(n / 4), static_cast<size_t>(n / 2)})
          CHECK(ours[k] < theirs[k]);
      }
    }
  }
}
