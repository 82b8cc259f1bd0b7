// Tests the text and the plot of `elastify inspect profile.h5`.

#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "io/hdf5.h"
#include "model/profile.h"
#include "support/program.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

using test::run_elastify;

/// Two layers with 2 KV groups and 64 neurons. In layer 0, all units are equally important; in layer 1, a
/// quarter of them has all the importance.
Profile make_profile(const ModelSpec& spec) {
  Profile profile;
  profile.spec_hash = spec_hash(spec);
  profile.corpus = "a & b.txt";
  profile.corpus_digest = "abc";
  profile.base_loss = 3.25;
  profile.n_tokens = 640;
  profile.seq_len = 64;
  for (const Metric metric : {Metric::kTaylor, Metric::kWanda})
    for (const AxisSpace& space : spec.spaces) {
      auto& values = profile.importance[metric].emplace_back();
      for (int64_t i = 0; i < space.n_units; ++i)
        values.push_back(space.layer == 0 || space.kind == SpaceKind::kAttention || i % 4 == 3 ? 2.0F : 0.0F);
    }
  return profile;
}

void add_layers(Profile& profile) {
  profile.removal_loss = {1.5, -0.25};
  profile.block_influence = {0.5, 0.125};
  profile.attention_influence = {0.25, 0.0625};
  profile.mlp_influence = {0.375, 0.09375};
}

struct Saved {
  test::TemporaryDirectory directory;
  ModelSpec spec = test::make_tiny_spec("llama");
  fs::path path = directory / "p.h5";

  std::string inspect(const std::string& flags = "") const {
    const auto outcome = run_elastify(fmt::format("inspect {} {}", path.string(), flags));
    CAPTURE(outcome.err);
    CHECK(outcome.status == 0);
    return outcome.out;
  }
};

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_SUITE("cli inspect") {
  TEST_CASE("inspect: a profile is told by layer and by metric") {
    const Saved saved;
    Profile profile = make_profile(saved.spec);
    add_layers(profile);
    save_profile(profile, saved.spec, saved.path);
    const std::string text = saved.inspect();
    CAPTURE(text);
    CHECK(has(text, ": 2 layers, 640 tokens of a & b.txt, in sequences of 64, seed 0\n"));
    CHECK(has(text, "  loss of the whole model 3.2500 nats per token; metrics taylor, wanda\n"));
    CHECK(has(text, "\nlayer   removal influence      attn       mlp  attn 50%   mlp 50%\n"));
    CHECK(has(text,
              "\n    0    1.5000    0.5000    0.2500    0.3750       50%       50%  ####################\n"));
    CHECK(has(text, "\n    1   -0.2500    0.1250    0.0625    0.0938       50%      100%\n"));
    CHECK(has(text,
              "\nwanda           64 neurons            50%      75%          56%   layer 0 (50%)  layer 1 "
              "(100%)\n"));
    CHECK(has(text, "input means no; second moments no\n"));
  }

  TEST_CASE("inspect: --json has the same numbers, by layer") {
    const Saved saved;
    Profile profile = make_profile(saved.spec);
    add_layers(profile);
    save_profile(profile, saved.spec, saved.path);
    const auto json = nlohmann::json::parse(saved.inspect("--json"));
    CHECK(json.at("n_layers") == 2);
    CHECK(json.at("tokens") == 640);
    CHECK(json.at("metrics") == nlohmann::json{"taylor", "wanda"});
    CHECK(json.at("removal_loss") == nlohmann::json{1.5, -0.25});
    CHECK(json.at("block_influence") == nlohmann::json{0.5, 0.125});
    CHECK(json.at("attention_influence") == nlohmann::json{0.25, 0.0625});
    CHECK(json.at("mlp_influence") == nlohmann::json{0.375, 0.09375});
    CHECK(json.at("input_means") == false);
    CHECK(json.at("second_moments") == nlohmann::json{{"spaces", 0}, {"bytes", 0}});
    REQUIRE(json.at("concentration").size() == 4);
    const auto& mlp = json.at("concentration")[1];
    CHECK(mlp.at("metric") == "taylor");
    CHECK(mlp.at("space") == "mlp");
    CHECK(mlp.at("n_units") == nlohmann::json{64, 64});
    const auto near = [](const nlohmann::json& found, double expected) {
      return std::abs(found.get<double>() - expected) < 1e-9;
    };
    CHECK(near(mlp.at("top_20_percent").at("layers")[0], 0.2));
    CHECK(near(mlp.at("top_20_percent").at("layers")[1], 0.8));
    CHECK(near(mlp.at("top_50_percent").at("mean"), 0.75));
    CHECK(near(mlp.at("units_for_90_percent").at("layers")[0], 0.9));
    CHECK(near(mlp.at("units_for_90_percent").at("layers")[1], 0.225));
  }

  TEST_CASE("inspect: a profile of nothing but importance, or of nothing but layers, is told, too") {
    const Saved saved;
    Profile profile = make_profile(saved.spec);
    profile.importance.erase(Metric::kTaylor);
    profile.importance[Metric::kWanda][1][5] = NAN;
    save_profile(profile, saved.spec, saved.path);
    const std::string text = saved.inspect();
    CAPTURE(text);
    CHECK(has(text, "\nlayer  attn 50%   mlp 50%\n    0       50%       51%\n"));
    CHECK(has(text, "1 units have an importance that is not a number"));
    profile.importance.clear();
    add_layers(profile);
    save_profile(profile, saved.spec, saved.path);
    CHECK(has(saved.inspect(), "metrics none"));
    profile = Profile{};
    profile.spec_hash = spec_hash(saved.spec);
    save_profile(profile, saved.spec, saved.path);
    CHECK(has(saved.inspect("--plot " + (saved.directory / "empty.svg").string()), ": 0 layers, 0 tokens"));
  }

  TEST_CASE("inspect: second moments are counted with the bytes that they take") {
    const Saved saved;
    Profile profile = make_profile(saved.spec);
    for (int64_t layer = 0; layer < 2; ++layer)
      for (const int64_t n : {32, 32, 32, 64})
        profile.inputs.push_back({std::vector<double>(static_cast<size_t>(n), 0.5),
                                  std::vector<double>(static_cast<size_t>(n), 2)});
    save_profile(profile, saved.spec, saved.path, [](size_t space) {
      const size_t n = space % 2 == 0 ? 32 : 64;
      return std::vector<double>(n * n, 1);
    });
    CHECK(has(saved.inspect(), "input means yes; second moments of 4 spaces, 0.1 MB\n"));
    const auto json = nlohmann::json::parse(saved.inspect("--json"));
    CHECK(json.at("second_moments") == nlohmann::json{{"spaces", 4}, {"bytes", 2 * 8 * (32 * 32 + 64 * 64)}});
  }

  TEST_CASE("inspect: --plot draws a panel per metric and kind of space, and the layers") {
    const Saved saved;
    Profile profile = make_profile(saved.spec);
    add_layers(profile);
    save_profile(profile, saved.spec, saved.path);
    const std::string plot = (saved.directory / "p.svg").string();
    CHECK(has(saved.inspect("--plot " + plot), "plot -> " + plot));
    const std::string svg = read_text(plot);
    for (const char* title : {"p.h5: 640 tokens of a &amp; b.txt", "Loss when a layer is left out",
                              "Influence on the residual stream", "taylor: KV groups (2 per layer)",
                              "taylor: neurons (64 per layer)", "wanda: KV groups (2 per layer)",
                              "wanda: neurons (64 per layer)"}) {
      CAPTURE(title);
      CHECK(has(svg, fmt::format(">{}</text>", title)));
    }
    CHECK(has(svg, "viewBox=\"0 0 1120 1130\""));
    CHECK_FALSE(has(svg, "nan"));
    const auto again = run_elastify(fmt::format("inspect {} --plot {}", saved.path.string(), plot));
    CHECK(again.status == 2);
    CHECK(has(again.err, "exists already"));
    saved.inspect("--force --plot " + plot);
    CHECK(read_text(plot) == svg);
  }

  TEST_CASE("inspect: what is not a profile is refused by place, and only profiles are drawn") {
    const Saved saved;
    const auto error = [&](const std::string& flags = "") {
      const auto outcome = run_elastify(fmt::format("inspect {} {}", saved.path.string(), flags));
      CHECK(outcome.status != 0);
      return outcome.err;
    };
    const auto with = [&](const std::string& place, size_t n) {
      Hdf5Writer file(saved.path);
      for (const char* name : {"spec_hash", "corpus", "corpus_digest"})
        file.attribute(name, std::string_view("x"));
      file.attribute("format", std::string_view("elastify.profile"));
      for (const char* name : {"tokens", "seq_len", "seed"}) file.attribute(name, int64_t{1});
      file.attribute("base_loss", 1.0);
      if (!place.empty()) file.write(place, std::span<const float>(std::vector<float>(n, 1)));
      file.commit();
    };
    with("/importance/taylor/layers.1.mlp", 4);
    CHECK(has(error(), "p.h5: /importance/taylor: layers.0.mlp is missing"));
    with("/importance/taylor/layer.0.mlp", 4);
    CHECK(has(error(), "p.h5: layer.0.mlp: expected a space such as layers.0.mlp"));
    with("/importance/taylor/layers.0.mlp", 0);
    CHECK(has(error(), "p.h5: /importance/taylor/layers.0.mlp: no units"));
    with("/layers/removal_loss", 4);
    CHECK(has(error(), "/layers/removal_loss: expected float64, got float32"));
    Hdf5Writer other(saved.path);
    other.attribute("format", std::string_view("elastify.permutation"));
    other.commit();
    CHECK(has(error(), "p.h5: an HDF5 file, but not a profile"));

    test::write_tiny_hf_model(saved.spec, saved.directory / "model", 1);
    const auto model = run_elastify(fmt::format("inspect {} --plot {}", (saved.directory / "model").string(),
                                                (saved.directory / "m.svg").string()));
    CHECK(model.status == 2);
    CHECK(has(model.err, "--plot draws profiles"));
  }
}

}  // namespace
}  // namespace elastify
