#include "model/profile.h"

#include <doctest/doctest.h>

#include <cmath>

#include "io/hdf5.h"
#include "model/permutation.h"
#include "support/errors.h"
#include "support/temporary_directory.h"
#include "support/tiny_model.h"

using namespace elastify;
using namespace elastify::test;

namespace {

Profile make_profile(const ModelSpec& spec) {
  Profile profile{.spec_hash = spec_hash(spec),
                  .permutation_digest = "abcd",
                  .importance = {},
                  .removal_loss = {},
                  .block_influence = {},
                  .attention_influence = {},
                  .mlp_influence = {},
                  .inputs = {},
                  .base_loss = 3.25,
                  .corpus = "two stories",
                  .corpus_digest = "abc",
                  .n_tokens = 640,
                  .seq_len = 64,
                  .seed = 11};
  for (const Metric metric : {Metric::kTaylor, Metric::kMagnitude}) {
    for (const AxisSpace& space : spec.spaces) {
      auto& values = profile.importance[metric].emplace_back();
      for (int64_t i = 0; i < space.n_units; ++i) values.push_back(static_cast<float>((i * 7) % 5));
    }
  }
  for (int64_t layer = 0; layer < spec.n_layers; ++layer)
    profile.removal_loss.push_back(0.1 * static_cast<double>(layer));
  return profile;
}

}  // namespace

TEST_CASE("profile: metrics have names, unknown ones are refused with the known") {
  for (const Metric metric : all_metrics()) CHECK(metric_named(name_of(metric)) == metric);
  CHECK_THROWS_WITH_AS(metric_named("fischer"),
                       "unknown metric 'fischer'; known are taylor, taylor-element, fisher, wanda, wifv, "
                       "activation, magnitude, random, imatrix, obs, forward, gram, hybrid",
                       UsageError);
}

TEST_CASE("profile: saved and loaded it is the same, with equal bytes each time") {
  const ModelSpec spec = make_tiny_spec("llama");
  const Profile profile = make_profile(spec);
  const TemporaryDirectory directory;
  save_profile(profile, spec, directory / "a.h5");
  save_profile(profile, spec, directory / "b.h5");
  CHECK(read_text(directory / "a.h5") == read_text(directory / "b.h5"));
  const Profile loaded = load_profile(directory / "a.h5", spec);
  CHECK(loaded.spec_hash == profile.spec_hash);
  CHECK(loaded.importance == profile.importance);
  CHECK(loaded.removal_loss == profile.removal_loss);
  CHECK(loaded.base_loss == 3.25);
  CHECK(loaded.corpus == "two stories");
  CHECK(loaded.corpus_digest == "abc");
  CHECK(loaded.permutation_digest == "abcd");
  CHECK(loaded.n_tokens == 640);
  CHECK(loaded.seq_len == 64);
  CHECK(loaded.seed == 11);
}

TEST_CASE("profile: input means and second moments come back, moments one space at a time") {
  const ModelSpec spec = make_tiny_spec("llama");
  Profile profile = make_profile(spec);
  profile.block_influence.assign(static_cast<size_t>(spec.n_layers), 0.25);
  for (int64_t layer = 0; layer < spec.n_layers; ++layer)
    for (const Site site : kSites) {
      const auto l = static_cast<size_t>(layer);
      const int64_t n = site == Site::kFfnDown ? spec.layer_d_ff[l]
                        : site == Site::kAttnOut
                            ? spec.layer_kv_heads[l] * spec.layers[l].heads_per_group * spec.head_dim
                            : spec.d_model;
      profile.inputs.push_back({std::vector<double>(static_cast<size_t>(n), 0.5 + static_cast<double>(layer)),
                                std::vector<double>(static_cast<size_t>(n), 2)});
    }
  const auto value = [](size_t space, size_t row, size_t column) {
    return static_cast<double>(space) + 1e-3 * static_cast<double>(std::max(row, column)) +
           1e-6 * static_cast<double>(std::min(row, column));
  };
  const auto columns = [&](size_t space) {
    return profile.inputs[4 * (space / 2) + (space % 2 == 0 ? 1 : 3)].mean.size();
  };
  const TemporaryDirectory directory;
  const auto source = [&](size_t space) {
    const size_t n = columns(space);
    std::vector<double> lower(n * n, -1);
    for (size_t row = 0; row < n; ++row)
      for (size_t column = 0; column <= row; ++column) lower[row * n + column] = value(space, row, column);
    return lower;
  };
  save_profile(profile, spec, directory / "a.h5", source);
  save_profile(profile, spec, directory / "b.h5", source);
  CHECK(read_text(directory / "a.h5") == read_text(directory / "b.h5"));
  const Profile loaded = load_profile(directory / "a.h5", spec);
  CHECK(loaded.block_influence == profile.block_influence);
  REQUIRE(loaded.inputs.size() == profile.inputs.size());
  CHECK(loaded.inputs[5].mean == profile.inputs[5].mean);
  CHECK(has_second_moments(directory / "a.h5"));
  for (const size_t space : {size_t{0}, spec.mlp_space(1)}) {
    const SecondMoments moments = load_second_moments(directory / "a.h5", spec, space);
    CHECK(moments.n == static_cast<int64_t>(columns(space)));
    CHECK(moments.n_tokens == 640);
    CHECK(moments.mean[0] == 0.5 + static_cast<double>(spec.spaces[space].layer));
    bool same = true;
    for (size_t row = 0; row < columns(space); ++row)
      for (size_t column = 0; column < columns(space); ++column)
        same = same && moments.xtx[row * columns(space) + column] == value(space, row, column);
    CHECK(same);
  }
  save_profile(make_profile(spec), spec, directory / "none.h5");
  CHECK(!has_second_moments(directory / "none.h5"));
  CHECK(message_of([&] { load_second_moments(directory / "none.h5", spec, 0); }) ==
        (directory / "none.h5").string() + ": layers.0.attn: no second moments");
}

TEST_CASE("profile: without layer losses it is saved and loaded, too") {
  const ModelSpec spec = make_tiny_spec("llama");
  Profile profile = make_profile(spec);
  profile.removal_loss.clear();
  profile.importance.clear();
  const TemporaryDirectory directory;
  save_profile(profile, spec, directory / "p.h5");
  const Profile loaded = load_profile(directory / "p.h5", spec);
  CHECK(loaded.removal_loss.empty());
  CHECK(loaded.importance.empty());
}

TEST_CASE("profile: one of another model is refused with the first space that differs") {
  const ModelSpec spec = make_tiny_spec("llama");
  const TemporaryDirectory directory;
  const fs::path path = directory / "p.h5";
  save_profile(make_profile(spec), spec, path);
  const auto message = [&](const ModelSpec& other) {
    return message_of([&] { load_profile(path, other); }).substr(path.string().size() + 2);
  };
  const ModelSpec wider = make_tiny_spec("llama", {.d_ff = 80});
  CHECK(message(wider) == "layers.0.mlp: expected 80 units, got 64");
  CHECK(hint_of([&] { load_profile(path, wider); }) ==
        "this profile was measured on another model; run `elastify profile` again");
  CHECK(message(make_tiny_spec("llama", {.n_layers = 3})) == "layers.2.attn: no magnitude importance");
  CHECK(message(make_tiny_spec("llama", {.n_layers = 1})) == "removal_loss: expected 1 layers, got 2");
  CHECK(message(make_tiny_spec("llama", {.d_model = 64})) == "the profile belongs to another model");

  Hdf5Writer file(path);
  file.attribute("format", std::string_view("elastify.permutation"));
  file.commit();
  CHECK(message(spec) == "not a profile file (attribute format is not elastify.profile)");
}

TEST_CASE("profile: units are ranked most important first and ties keep their order") {
  const ModelSpec spec = make_tiny_spec("llama", {.n_layers = 1, .n_kv_heads = 3, .d_ff = 6});
  Profile profile = make_profile(spec);
  profile.importance[Metric::kTaylor] = {{0.5F, -1.0F, 2.0F}, {1, 3, 1, 3, 0, 3}};
  const Permutation permutation = rank_units(profile, spec, Metric::kTaylor);
  CHECK(permutation.orders == std::vector<std::vector<int64_t>>{{2, 0, 1}, {1, 3, 5, 0, 2, 4}});
  CHECK(permutation.metric == "taylor");
  check(permutation, spec);
}

TEST_CASE("profile: importance that cannot be ranked is refused by space") {
  const ModelSpec spec = make_tiny_spec("llama");
  Profile profile = make_profile(spec);
  CHECK(message_of([&] { rank_units(profile, spec, Metric::kRandom); }) ==
        "the profile has no random importance, only: taylor, magnitude");
  profile.importance[Metric::kTaylor][3][7] = NAN;
  CHECK(message_of([&] { rank_units(profile, spec, Metric::kTaylor); }) ==
        "layers.1.mlp: taylor importance of unit 7 is nan");
  profile.importance[Metric::kTaylor][2][1] = INFINITY;
  CHECK(message_of([&] { rank_units(profile, spec, Metric::kTaylor); }) ==
        "layers.1.attn: taylor importance of unit 1 is inf");
  profile.importance[Metric::kTaylor][0].pop_back();
  CHECK(message_of([&] { rank_units(profile, spec, Metric::kTaylor); }) ==
        "layers.0.attn: expected 2 units, got 1");
}
