// Tests commands on a level's file that lacks attention and a whole layer.

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "support/elastic_fixture.h"
#include "support/program.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

using nlohmann::json;
using test::run_elastify;

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_SUITE("cli depth") {
  TEST_CASE("depth: a level's file is inspected and evaluated like the level of the model it was made from") {
    const ModelSpec spec = test::make_tiny_spec("llama", {.n_layers = 4});
    const test::ElasticFixture made(spec, test::shallow_plan(spec));
    const std::string file = (made.artifact() / "level-060.gguf").string();

    const auto text = run_elastify("inspect " + file);
    CHECK_MESSAGE(text.status == 0, text.err);
    CHECK(has(text.out, "  left out   layers.1.attn, layers.2.attn, layers.2.mlp\n"));
    const auto inspected = json::parse(run_elastify("inspect --json " + file).out);
    CHECK(inspected.at("layer_kv_heads") == json{2, 0, 0, 2});
    CHECK(inspected.at("layer_d_ff") == json{64, 64, 0, 64});
    CHECK(inspected.at("n_params") == n_params(spec, test::shallow_widths(spec)));
    CHECK(inspected.at("spaces").at(2).at("params_per_unit") == 0);

    std::vector<double> losses;
    for (const std::string& model : {file, made.artifact().string() + " --level 0.6"}) {
      const auto result =
          run_elastify(fmt::format("eval {} --data self --seq 16 --tokens 64 --threads 1 --json", model));
      CHECK_MESSAGE(result.status == 0, result.err);
      losses.push_back(json::parse(result.out).at("nll").get<double>());
    }
    CHECK(losses[0] == losses[1]);
    const auto views = run_elastify(fmt::format("eval {} --level 0.6 --data self --seq 16 --tokens 64 --json",
                                                made.reordered().string()));
    CHECK_MESSAGE(views.status == 0, views.err);
    const auto proof =
        run_elastify(fmt::format("verify {} --against {}", made.artifact().string(), made.model().string()));
    CHECK_MESSAGE(proof.status == 0, (proof.out + proof.err));
  }

  TEST_CASE("depth: what needs every layer refuses such a file and says which to take") {
    const ModelSpec spec = test::make_tiny_spec("llama", {.n_layers = 4});
    const test::ElasticFixture made(spec, test::shallow_plan(spec));
    const std::string file = (made.artifact() / "level-060.gguf").string();
    const std::string out = (made.path() / "out").string();
    for (const auto& [command, work] :
         {std::pair(fmt::format("profile {} --data self --seq 16 --tokens 64 -o {}.h5", file, out),
                    "profiling"),
          std::pair(fmt::format("reorder {} --metric magnitude --plan uniform -o {}", file, out),
                    "reordering")}) {
      const auto result = run_elastify(command);
      CHECK(result.status == 1);
      CHECK_MESSAGE(has(result.err, fmt::format("layers.1.attn has no units: {} takes a model whose layers "
                                                "are complete",
                                                work)),
                    result.err);
      CHECK(has(result.err, "take the model it was made from"));
      CHECK_FALSE(fs::exists(out));
    }
  }
}

}  // namespace
}  // namespace elastify
