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
                  .importance = {},
                  .removal_loss = {},
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
  for (const Metric metric : {Metric::kTaylor, Metric::kMagnitude, Metric::kRandom})
    CHECK(metric_named(name_of(metric)) == metric);
  CHECK_THROWS_WITH_AS(metric_named("fisher"),
                       "unknown metric \"fisher\"; known are taylor, magnitude, random", UsageError);
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
  CHECK(loaded.n_tokens == 640);
  CHECK(loaded.seq_len == 64);
  CHECK(loaded.seed == 11);
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
