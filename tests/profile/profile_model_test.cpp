#include "profile/profile_model.h"

#include "support/batches.h"
#include "support/decoders.h"
#include "support/errors.h"
#include "support/reference_decoder.h"
#include "support/tensors.h"

using namespace elastify;
using namespace elastify::test;

namespace {

/// The checkpoint with all weights of one unit set to zero.
Checkpoint without_unit(const Checkpoint& source, size_t space, int64_t unit) {
  const ModelSpec& spec = source.spec();
  return source.transformed([&spec, space, unit](size_t i, const HostTensor& tensor) {
    HostTensor copy = tensor_of(values_of(tensor), tensor.shape);
    auto values = at::from_blob(copy.writable().data(), copy.shape, at::kFloat);
    for (size_t axis = 0; axis < spec.tensors[i].axes.size(); ++axis) {
      const AxisUse& use = spec.tensors[i].axes[axis];
      if (use.space == static_cast<int64_t>(space))
        values.narrow(static_cast<int64_t>(axis), unit * use.block, use.block).zero_();
    }
    return copy;
  });
}

}  // namespace

TEST_CASE("profile: taylor is the sum over sequences of the absolute mask gradient, whatever the batch") {
  const ModelSpec spec = make_tiny_spec("llama");
  const Checkpoint checkpoint = tiny_checkpoint(spec);
  const nn::Decoder decoder(checkpoint, {});
  const TokenBatches batches = random_batches(5, 16, spec.n_vocab);
  profile::ProfileOptions options;
  options.text.batch = 2;
  options.removal_tokens = 0;
  const Profile profile = profile::profile_model(decoder, checkpoint, batches, options).profile;
  CHECK(profile.spec_hash == spec_hash(spec));
  CHECK(profile.n_tokens == 80);
  CHECK(profile.removal_loss.empty());
  const auto& importance = profile.importance.at(Metric::kTaylor);

  std::vector<at::Tensor> expected;
  for (const auto& space : spec.spaces) expected.push_back(at::zeros({space.n_units}));
  const ReferenceDecoder reference(checkpoint);
  double nll = 0;
  for (size_t i = 0; i < 5; ++i) {
    const auto masks = unit_masks(full_widths(spec), 1, true);
    const auto loss = reference.sequence_nll(ids_of(batches, i, 1), {.unit_masks = &masks}).sum();
    nll += loss.item<double>();
    const auto gradients = torch::autograd::grad({loss}, masks);
    for (size_t s = 0; s < masks.size(); ++s) expected[s] += gradients[s][0].abs();
  }
  CHECK(profile.base_loss == doctest::Approx(nll / 75));
  for (size_t s = 0; s < spec.spaces.size(); ++s) {
    CAPTURE(spec.spaces[s].name);
    CHECK(relative_difference(at::tensor(importance[s]), expected[s]) < 1e-4);
  }
}

TEST_CASE("profile: a unit without weights has no importance") {
  const ModelSpec spec = make_tiny_spec("llama");
  for (const auto& [space, unit] : {std::pair<size_t, int64_t>{0, 1}, {1, 3}, {3, 0}}) {
    CAPTURE(spec.spaces[space].name);
    const Checkpoint source = tiny_checkpoint(spec);
    const Checkpoint checkpoint = without_unit(source, space, unit);
    profile::ProfileOptions options;
    options.metrics = {Metric::kTaylor, Metric::kMagnitude};
    options.removal_tokens = 0;
    const Profile profile = profile::profile_model(nn::Decoder(checkpoint, {}), checkpoint,
                                                   random_batches(3, 12, spec.n_vocab), options)
                                .profile;
    for (const Metric metric : options.metrics) {
      const auto& scores = profile.importance.at(metric)[space];
      for (int64_t u = 0; u < spec.spaces[space].n_units; ++u)
        CHECK((scores[static_cast<size_t>(u)] == 0) == (u == unit));
    }
  }
}

TEST_CASE("profile: the removal loss of a layer is that of a pass without it") {
  TinyOptions tiny;
  tiny.n_layers = 3;
  const ModelSpec spec = make_tiny_spec("qwen2", tiny);
  const Checkpoint checkpoint = tiny_checkpoint(spec);
  const nn::Decoder decoder(checkpoint, {});
  const TokenBatches batches = random_batches(6, 10, spec.n_vocab);
  profile::ProfileOptions options;
  options.metrics = {};
  options.text.batch = 3;
  options.removal_tokens = 40;
  const Profile profile = profile::profile_model(decoder, checkpoint, batches, options).profile;
  const at::Tensor ids = ids_of(batches, 0, 4);
  const double base = decoder.sequence_nll(ids).sum().item<double>() / 36;
  CHECK(profile.base_loss == doctest::Approx(base).epsilon(1e-6));
  REQUIRE(profile.removal_loss.size() == 3);
  for (int64_t l = 0; l < 3; ++l) {
    at::Tensor x = decoder.embed(ids);
    for (int64_t other = 0; other < 3; ++other)
      if (other != l) x = decoder.layer(other, x);
    const double without = decoder.token_nll(decoder.final_norm(x), ids).sum(at::kDouble).item<double>() / 36;
    CHECK(profile.removal_loss[static_cast<size_t>(l)] == doctest::Approx(without - base).epsilon(1e-4));
  }
}

TEST_CASE("profile: magnitude is the norm over a unit's weights in all tensors") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const Checkpoint checkpoint = tiny_checkpoint(variant.spec);
    Profile profile;
    profile::add_data_free_metric(profile, checkpoint, Metric::kMagnitude, 0);
    const auto& found = profile.importance.at(Metric::kMagnitude);
    REQUIRE(found.size() == variant.spec.spaces.size());
    std::vector<std::vector<double>> squares;
    for (const auto& space : variant.spec.spaces) squares.emplace_back(static_cast<size_t>(space.n_units));
    for (size_t i = 0; i < variant.spec.tensors.size(); ++i) {
      const TensorSpec& tensor = variant.spec.tensors[i];
      const auto values = values_of(checkpoint.load(i));
      const int64_t columns = tensor.shape.back();
      for (int64_t e = 0; e < static_cast<int64_t>(values.size()); ++e) {
        const std::vector<int64_t> place =
            tensor.shape.size() == 1 ? std::vector{e} : std::vector{e / columns, e % columns};
        for (size_t axis = 0; axis < tensor.axes.size(); ++axis)
          if (const AxisUse& use = tensor.axes[axis]; use.space >= 0)
            squares[static_cast<size_t>(use.space)][static_cast<size_t>(place[axis] / use.block)] +=
                std::pow(values[static_cast<size_t>(e)], 2);
      }
    }
    for (size_t s = 0; s < found.size(); ++s)
      for (size_t u = 0; u < found[s].size(); ++u)
        CHECK(found[s][u] == doctest::Approx(std::sqrt(squares[s][u])).epsilon(1e-5));
  }
}

TEST_CASE("profile: random scores are fixed by the seed, on every platform") {
  const Checkpoint checkpoint = tiny_checkpoint(make_tiny_spec("llama"));
  Profile a, b, c;
  profile::add_data_free_metric(a, checkpoint, Metric::kRandom, 5489);
  profile::add_data_free_metric(b, checkpoint, Metric::kRandom, 5489);
  profile::add_data_free_metric(c, checkpoint, Metric::kRandom, 2);
  CHECK((a.importance == b.importance));
  CHECK((a.importance != c.importance));
  // mt19937_64's first output for its default seed, 14514284786278117030, by definition of the engine.
  CHECK(a.importance.at(Metric::kRandom)[0][0] ==
        doctest::Approx(14514284786278117030.0 / 18446744073709551616.0));
}

TEST_CASE("profile: data that cannot be used is refused with a message") {
  const Checkpoint checkpoint = tiny_checkpoint(make_tiny_spec("llama"));
  const nn::Decoder decoder(checkpoint, {});
  CHECK(message_of([&] { profile::profile_model(decoder, checkpoint, {}, {}); }) ==
        "calibration data: expected sequences of 2 tokens or more, got 0 of 0");
  CHECK(message_of([&] { profile::profile_model(decoder, checkpoint, random_batches(1, 65, 96), {}); }) ==
        "a sequence of 65 tokens is longer than the model's 64");
  const Checkpoint other = tiny_checkpoint(make_tiny_spec("qwen2"));
  CHECK(message_of([&] { profile::profile_model(decoder, other, random_batches(1, 8, 96), {}); }) ==
        "decoder and checkpoint are different models");
  Profile profile;
  CHECK(message_of([&] { profile::add_data_free_metric(profile, checkpoint, Metric::kTaylor, 0); }) ==
        "metric 'taylor' needs calibration data");
}
