// Tests every metric against its definition, computed from activations of the decoder.

#include <cmath>

#include "profile/profile_model.h"
#include "profile/statistics.h"
#include "support/batches.h"
#include "support/decoders.h"
#include "support/errors.h"
#include "support/tensors.h"

using namespace elastify;
using namespace elastify::test;

namespace {

/// The inputs of the layer's o or down for all sequences, float64 [tokens, columns].
at::Tensor inputs_of(const nn::Decoder& decoder, const TokenBatches& batches, int64_t layer, Site site) {
  std::vector<at::Tensor> rows;
  for (size_t i = 0; i < batches.sequences.size(); ++i) {
    at::Tensor x = decoder.embed(ids_of(batches, i, 1));
    for (int64_t l = 0; l < layer; ++l) x = decoder.trace(l, x).output;
    const at::Tensor input = decoder.site_input(layer, site, decoder.trace(layer, x));
    rows.push_back(input.reshape({-1, input.size(-1)}).to(at::kDouble));
  }
  return at::cat(rows);
}

at::Tensor weight_of(const Checkpoint& checkpoint, Role role, int64_t layer) {
  const HostTensor weight = checkpoint.load(static_cast<size_t>(checkpoint.spec().find(role, layer)));
  return at::tensor(values_of(weight)).view(weight.shape).to(at::kDouble);
}

profile::ProfileOptions with(std::vector<Metric> metrics) {
  profile::ProfileOptions options;
  options.metrics = std::move(metrics);
  options.text.batch = 2;
  options.removal_tokens = 0;
  return options;
}

std::vector<Metric> measured_metrics() {
  std::vector<Metric> metrics;
  for (const Metric metric : all_metrics())
    if (needs_data(metric) && !needs_second_moments(metric)) metrics.push_back(metric);
  return metrics;
}

}  // namespace

TEST_CASE("metrics: wanda, wifv and activation match the definitions in their papers, in every variant") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const ModelSpec& spec = variant.spec;
    const Checkpoint checkpoint = tiny_checkpoint(spec);
    const nn::Decoder decoder(checkpoint, {});
    const TokenBatches batches = random_batches(5, 12, spec.n_vocab);
    const Profile profile = profile::profile_model(decoder, checkpoint, batches,
                                                   with({Metric::kWanda, Metric::kWifv, Metric::kActivation}))
                                .profile;
    for (size_t s = 0; s < spec.spaces.size(); ++s) {
      CAPTURE(spec.spaces[s].name);
      const bool mlp = spec.spaces[s].kind == SpaceKind::kMlp;
      const int64_t layer = spec.spaces[s].layer, n_units = spec.spaces[s].n_units;
      const at::Tensor x = inputs_of(decoder, batches, layer, mlp ? Site::kFfnDown : Site::kAttnOut);
      const at::Tensor w = weight_of(checkpoint, mlp ? Role::kDown : Role::kAttnOut, layer);
      const auto by_unit = [&](const at::Tensor& columns) { return columns.view({n_units, -1}).sum(1); };
      const auto compare = [&](Metric metric, const at::Tensor& expected) {
        CAPTURE(name_of(metric));
        CHECK(relative_difference(at::tensor(profile.importance.at(metric)[s]), expected) < 1e-4);
      };
      const at::Tensor rms = x.square().mean(0).sqrt();
      compare(Metric::kWanda, by_unit(w.abs().mean(0) * rms));
      compare(Metric::kWifv, by_unit(x.var(0, /*unbiased=*/false) * w.square().sum(0)));
      compare(Metric::kActivation, x.view({x.size(0), n_units, -1}).square().sum(2).sqrt().mean(0));
    }
  }
}

TEST_CASE("metrics: second moments are X^T X, and input means those of X") {
  const ModelSpec spec = make_tiny_spec("llama");
  const Checkpoint checkpoint = tiny_checkpoint(spec);
  const nn::Decoder decoder(checkpoint, {});
  const TokenBatches batches = random_batches(5, 12, spec.n_vocab);
  profile::ProfileOptions options = with({});
  options.second_moments = true;
  const auto measured = profile::profile_model(decoder, checkpoint, batches, options);
  REQUIRE(measured.moments);
  const TemporaryDirectory directory;
  save_profile(measured.profile, spec, directory / "p.h5", measured.moments);
  for (size_t s = 0; s < spec.spaces.size(); ++s) {
    CAPTURE(spec.spaces[s].name);
    const Site site = spec.spaces[s].kind == SpaceKind::kMlp ? Site::kFfnDown : Site::kAttnOut;
    const at::Tensor x = inputs_of(decoder, batches, spec.spaces[s].layer, site);
    const SecondMoments moments = load_second_moments(directory / "p.h5", spec, s);
    CHECK(moments.n_tokens == 60);
    CHECK(relative_difference(at::tensor(moments.xtx, at::kDouble).view({x.size(1), x.size(1)}),
                              at::mm(x.t(), x)) < 1e-5);
    CHECK(relative_difference(at::tensor(moments.mean, at::kDouble), x.mean(0)) < 1e-6);
  }
}

TEST_CASE("metrics: fisher sums the squares of the mask gradients whose absolute values taylor sums") {
  const ModelSpec spec = make_tiny_spec("qwen2");
  const Checkpoint checkpoint = tiny_checkpoint(spec);
  const nn::Decoder decoder(checkpoint, {});
  const TokenBatches batches = random_batches(4, 12, spec.n_vocab);
  const auto metrics = with({Metric::kTaylor, Metric::kFisher});
  const Profile all = profile::profile_model(decoder, checkpoint, batches, metrics).profile;
  std::vector<at::Tensor> squares, sizes;
  for (const auto& space : spec.spaces) {
    squares.push_back(at::zeros({space.n_units}));
    sizes.push_back(at::zeros({space.n_units}));
  }
  for (const auto& sequence : batches.sequences) {
    TokenBatches one = batches;
    one.sequences = {sequence};
    const Profile alone = profile::profile_model(decoder, checkpoint, one, metrics).profile;
    for (size_t s = 0; s < spec.spaces.size(); ++s) {
      sizes[s] += at::tensor(alone.importance.at(Metric::kTaylor)[s]);
      squares[s] += at::tensor(alone.importance.at(Metric::kTaylor)[s]).square();
    }
  }
  for (size_t s = 0; s < spec.spaces.size(); ++s) {
    CHECK(relative_difference(at::tensor(all.importance.at(Metric::kTaylor)[s]), sizes[s]) < 1e-4);
    CHECK(relative_difference(at::tensor(all.importance.at(Metric::kFisher)[s]), squares[s]) < 1e-4);
  }
}

TEST_CASE("metrics: taylor-element is |w dL/dw| over all weights of the unit, gradients over all data") {
  for (const char* family : {"llama", "qwen2"}) {
    CAPTURE(family);
    const ModelSpec spec = make_tiny_spec(family, {.n_layers = 1});
    const Checkpoint checkpoint = tiny_checkpoint(spec);
    const nn::Decoder decoder(checkpoint, {});
    const TokenBatches batches = random_batches(3, 12, spec.n_vocab);
    const Profile profile =
        profile::profile_model(decoder, checkpoint, batches, with({Metric::kTaylorElement})).profile;
    const at::Tensor ids = ids_of(batches, 0, 3);
    const auto trace = decoder.trace(0, decoder.embed(ids));
    std::map<Role, at::Tensor> gradients;
    decoder.backward(0, trace, decoder.loss_and_gradient(trace.output, ids).gradient, {},
                     [&](Role role, const at::Tensor& gradient) { gradients[role] = gradient.clone(); });
    for (size_t s = 0; s < spec.spaces.size(); ++s)
      for (int64_t unit = 0; unit < spec.spaces[s].n_units; ++unit) {
        double expected = 0;
        for (size_t i = 0; i < spec.tensors.size(); ++i)
          for (size_t axis = 0; axis < spec.tensors[i].axes.size(); ++axis) {
            const AxisUse& use = spec.tensors[i].axes[axis];
            if (use.space != static_cast<int64_t>(s)) continue;
            const Role role = spec.tensors[i].role;
            expected += (gradients.at(role) * weight_of(checkpoint, role, 0))
                            .narrow(static_cast<int64_t>(axis), unit * use.block, use.block)
                            .abs()
                            .sum()
                            .item<double>();
          }
        CHECK(profile.importance.at(Metric::kTaylorElement)[s][static_cast<size_t>(unit)] ==
              doctest::Approx(expected).epsilon(1e-4));
      }
  }
}

TEST_CASE("metrics: a layer's influence is 1 - cos over it") {
  const ModelSpec spec = make_tiny_spec("llama");
  const Checkpoint checkpoint = tiny_checkpoint(spec);
  const nn::Decoder decoder(checkpoint, {});
  const TokenBatches batches = random_batches(4, 12, spec.n_vocab);
  const Profile profile =
      profile::profile_model(decoder, checkpoint, batches, with({Metric::kWanda})).profile;
  at::Tensor x = decoder.embed(ids_of(batches, 0, 4));
  for (int64_t l = 0; l < spec.n_layers; ++l) {
    const auto trace = decoder.trace(l, x);
    const auto angle = [](const at::Tensor& a, const at::Tensor& b) {
      return 1 - at::cosine_similarity(a.to(at::kDouble), b.to(at::kDouble), -1).mean().item<double>();
    };
    const auto i = static_cast<size_t>(l);
    CHECK(profile.block_influence[i] == doctest::Approx(angle(trace.input, trace.output)).epsilon(1e-4));
    CHECK(profile.attention_influence[i] == doctest::Approx(angle(trace.input, trace.middle)).epsilon(1e-4));
    CHECK(profile.mlp_influence[i] == doctest::Approx(angle(trace.middle, trace.output)).epsilon(1e-4));
    x = trace.output;
  }
}

TEST_CASE("metrics: streaming gives the same values, in every variant") {
  for (const TinyVariant& variant : tiny_variants()) {
    CAPTURE(variant.name);
    const ModelSpec& spec = variant.spec;
    const Checkpoint checkpoint = tiny_checkpoint(spec);
    const TokenBatches batches = random_batches(5, 12, spec.n_vocab);
    profile::ProfileOptions options = with(measured_metrics());
    options.second_moments = true;
    options.removal_tokens = 30;
    const auto resident = profile::profile_model(nn::Decoder(checkpoint, {}), checkpoint, batches, options);
    const TemporaryDirectory directory;
    const auto streamed = profile::profile_model(nn::Decoder(checkpoint, {.streamed = true}), checkpoint,
                                                 batches, options, {}, directory / "work");
    CHECK(streamed.profile.base_loss == doctest::Approx(resident.profile.base_loss).epsilon(1e-6));
    const auto same = [](const auto& a, const auto& b) {
      REQUIRE(a.size() == b.size());
      for (size_t i = 0; i < a.size(); ++i)
        CHECK(a[i] == doctest::Approx(b[i]).epsilon(1e-5).scale(std::abs(static_cast<double>(b[i])) * 1e-3));
    };
    same(streamed.profile.removal_loss, resident.profile.removal_loss);
    same(streamed.profile.block_influence, resident.profile.block_influence);
    for (const Metric metric : options.metrics)
      for (size_t s = 0; s < spec.spaces.size(); ++s) {
        CAPTURE(name_of(metric));
        same(streamed.profile.importance.at(metric)[s], resident.profile.importance.at(metric)[s]);
      }
    CHECK(relative_difference(at::tensor(streamed.moments(1), at::kDouble),
                              at::tensor(resident.moments(1), at::kDouble)) < 1e-5);
  }
}

TEST_CASE("metrics: computed in bfloat16, the order of the units stays much the same") {
  const ModelSpec spec = make_tiny_spec("llama");
  const Checkpoint checkpoint = tiny_checkpoint(spec);
  const TokenBatches batches = random_batches(8, 32, spec.n_vocab);
  const auto options = with(measured_metrics());
  const Profile exact =
      profile::profile_model(nn::Decoder(checkpoint, {}), checkpoint, batches, options).profile;
  const Profile rounded =
      profile::profile_model(nn::Decoder(checkpoint, {.dtype = "bf16"}), checkpoint, batches, options)
          .profile;
  for (const Metric metric : options.metrics) {
    CAPTURE(name_of(metric));
    CHECK(rank_correlation(rounded.importance.at(metric)[1], exact.importance.at(metric)[1]) > 0.95);
  }
}

TEST_CASE("metrics: unfinished work is refused, resumed or replaced, as asked") {
  using Existing = profile::WorkOptions::Existing;
  const ModelSpec spec = make_tiny_spec("llama");
  const Checkpoint checkpoint = tiny_checkpoint(spec);
  const nn::Decoder decoder(checkpoint, {});
  const TokenBatches batches = random_batches(5, 12, spec.n_vocab),
                     others = random_batches(5, 12, spec.n_vocab, 9);
  const TemporaryDirectory directory;
  const fs::path work = directory / "work";
  const auto measure = [&](const TokenBatches& data, Existing existing) {
    profile::WorkOptions options;
    options.existing = existing;
    options.save_every = 0;
    return profile::profile_model(decoder, checkpoint, data, with({Metric::kTaylor}), options, work).profile;
  };
  const Profile first = measure(batches, Existing::kRefuse);
  CHECK(message_of([&] { measure(batches, Existing::kRefuse); }) ==
        work.string() + ": holds unfinished work");
  CHECK((measure(batches, Existing::kResume).importance == first.importance));
  CHECK(message_of([&] { measure(others, Existing::kResume); }) ==
        work.string() +
            ": the unfinished work there was started with another model, other data or other options");
  CHECK((measure(others, Existing::kResumeOrReplace).importance != first.importance));
}
