#include "plan/budget.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "plan/make_plan.h"
#include "support/errors.h"
#include "support/temporary_directory.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

using plan::LatencyPhase;
using plan::LatencyTable;
using plan::Method;
using plan::parse_budget;
using plan::PlanOptions;
using plan::Scale;
using Json = nlohmann::json;

Json row(int64_t n_params, double ms_per_token, int64_t n_gen = 16, int64_t n_prompt = 0) {
  return {{"model_n_params", n_params},
          {"n_prompt", n_prompt},
          {"n_gen", n_gen},
          {"n_threads", 4},
          {"avg_ns", ms_per_token * 1e6 * static_cast<double>(n_gen + n_prompt)}};
}

fs::path write_table(const test::TemporaryDirectory& directory, const Json& rows) {
  write_text(directory / "bench.json", rows.dump());
  return directory / "bench.json";
}

/// A profile with every metric and layer value that some method needs.
Profile make_profile(const ModelSpec& spec) {
  Profile profile;
  profile.spec_hash = spec_hash(spec);
  for (const AxisSpace& space : spec.spaces) {
    auto& scores = profile.importance[Metric::kTaylor].emplace_back();
    for (int64_t unit = 0; unit < space.n_units; ++unit)
      scores.push_back(static_cast<float>((unit * 7919 + space.layer * 31) % 101));
  }
  for (int64_t layer = 0; layer < spec.n_layers; ++layer)
    profile.removal_loss.push_back(1.0 / static_cast<double>(layer + 1));
  return profile;
}

double matrix_bytes(DType type, int64_t n) {
  return static_cast<double>(n * info(type).block_bytes) / static_cast<double>(info(type).block_size);
}

}  // namespace

TEST_CASE("budget: texts are read, written back and refused") {
  for (const char* text : {"decoder", "params", "bytes:q4_k", "bytes:f16", "latency:a/b.json:prompt"})
    CHECK(to_text(parse_budget(text)) == text);
  CHECK(to_text(parse_budget("latency:c:d.json")) == "latency:c:d.json:gen");
  CHECK(parse_budget("latency:t.json:prompt").table == "t.json");
  CHECK_THROWS_AS(parse_budget("bytes:q9"), UsageError);
  CHECK_THROWS_AS(parse_budget("latency:"), UsageError);
  CHECK(test::message_of([] { parse_budget("byte:q8_0"); }) == "budget 'byte:q8_0': not known");
  CHECK(test::hint_of([] { parse_budget(""); }).find("decoder, params, bytes:TYPE") != std::string::npos);
}

TEST_CASE("budget: weights of sub-models are those of their tensors, in every family") {
  for (const auto& [name, spec] : test::tiny_variants()) {
    CAPTURE(name);
    Widths widths = full_widths(spec);
    for (size_t space = 0; space < widths.size(); ++space)
      widths[space] =
          std::max<int64_t>(1, widths[space] * static_cast<int64_t>(space + 1) / 5 % widths[space]);
    const Scale decoder(spec, parse_budget("decoder")), params(spec, parse_budget("params"));
    const Scale bytes(spec, parse_budget("bytes:q8_0"));
    double expected = 0;
    for (const TensorSpec& tensor : spec.tensors) {
      const int64_t n = n_elements(shape_at(tensor, widths));
      expected += tensor.shape.size() > 1 ? matrix_bytes(DType::kQ8_0, n) : 4.0 * static_cast<double>(n);
    }
    CHECK(decoder.of(widths) == n_decoder_params(spec, widths));
    CHECK(params.of(widths) == n_params(spec, widths));
    CHECK(static_cast<double>(bytes.of(widths)) / 32 == doctest::Approx(expected));
    for (const Scale* scale : {&decoder, &params, &bytes}) {
      CHECK(scale->of(full_widths(spec)) == scale->full());
      CHECK(scale->share(full_widths(spec)) == 1);
      CHECK(scale->target(0.5) == std::llround(0.5 * static_cast<double>(scale->full())));
    }
  }
}

TEST_CASE("budget: every method obeys every budget within a grid step, in every family, or says so") {
  const test::TemporaryDirectory directory;
  int64_t n_met = 0, n_noted = 0;
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3"}) {
    const ModelSpec spec = test::make_tiny_spec(
        family, {.n_layers = 4, .d_model = 64, .n_kv_heads = 4, .d_ff = 320, .tied = true});
    const int64_t all = n_params(spec, full_widths(spec));
    const fs::path table =
        write_table(directory, Json::array({row(all / 4, 1), row(all / 2, 2.5), row(all, 4)}));
    const Profile profile = make_profile(spec);
    for (const std::string& budget :
         {std::string("decoder"), std::string("params"), std::string("bytes:q4_0"), std::string("bytes:q6_k"),
          "latency:" + table.string()}) {
      for (const Method method :
           {Method::kUniform, Method::kAnchors, Method::kZscore, Method::kDp, Method::kDpKl}) {
        CAPTURE(family);
        CAPTURE(budget);
        CAPTURE(plan::name_of(method));
        PlanOptions options;
        options.method = method;
        options.budget = parse_budget(budget);
        options.levels = {0.45, 0.6, 0.7, 0.85};
        options.grid = 16;
        const plan::MeasureLoss measure = [&](const Widths& widths) {
          return 1 - Scale(spec, {}).share(widths);
        };
        const ElasticPlan made = plan::make_plan(spec, &profile, options, nullptr, measure);
        CHECK_NOTHROW(check(made, spec));
        CHECK(made.budget == to_text(options.budget));
        CHECK(std::any_of(made.notes.begin(), made.notes.end(), [](const std::string& note) {
                return note.starts_with("MLP widths in steps of 16 split the blocks of ");
              }) == budget.starts_with("bytes:"));
        const Scale scale(spec, options.budget);
        Widths step = full_widths(spec);
        const bool by_layer = method != Method::kUniform && method != Method::kAnchors;
        for (int64_t layer = 0; layer < (by_layer ? 1 : spec.n_layers); ++layer)
          step[spec.mlp_space(layer)] -= options.grid;
        // Methods that narrow all layers together are off by at most half a step of all, others by a step of
        // one layer.
        const double most_off = (by_layer ? 1 : 0.5) * static_cast<double>(scale.full() - scale.of(step)) + 1;
        for (const Level& level : made.levels) {
          CAPTURE(level.nominal);
          CHECK(level.budget_ratio == doctest::Approx(scale.share(level.widths)));
          const auto off =
              std::abs(static_cast<double>(scale.of(level.widths) - scale.target(level.nominal)));
          const std::string place = fmt::format("level {}: keeps", level.nominal);
          const bool noted = std::any_of(made.notes.begin(), made.notes.end(),
                                         [&](const std::string& note) { return note.starts_with(place); });
          CHECK((off <= most_off || noted));
          ++(off <= most_off ? n_met : n_noted);
        }
      }
    }
  }
  CHECK(n_met > 20 * n_noted);
}

TEST_CASE("budget: a level below the reach of a plan is refused with the least that can be met") {
  const ModelSpec spec = test::make_tiny_spec("llama", {.d_ff = 256});
  PlanOptions options;
  options.budget = parse_budget("params");
  options.levels = {0.1};
  const auto plan_it = [&] { plan::make_plan(spec, nullptr, options); };
  CHECK(test::message_of(plan_it).find(
            "level 0.1: the narrowest widths (one KV group, 32 MLP neurons) keep 0.") == 0);
  CHECK(test::message_of(plan_it).find("of the weights") != std::string::npos);
}

TEST_CASE("latency: linear between measured models and never falling; of equally fast ones, the widest") {
  const test::TemporaryDirectory directory;
  const Json rows = Json::array({row(100, 1), row(400, 4), row(200, 2.5), row(300, 1.5), row(200, 2.5),
                                 row(100, 9, 0, 512), row(400, 90, 0, 512)});
  const LatencyTable table(write_table(directory, rows), LatencyPhase::kGen);
  CHECK(table.at(100) == doctest::Approx(1e6));
  CHECK(table.at(150) == doctest::Approx(1.5e6));
  CHECK(table.at(250) == doctest::Approx(2e6));  // 2.5 and 1.5 are pooled
  CHECK(table.at(350) == doctest::Approx(3e6));
  CHECK(table.params_at(1.5e6) == 150);
  CHECK(table.params_at(2e6) == 300);
  CHECK(table.params_at(4e6) == 400);
  CHECK(table.covers(100));
  CHECK(!table.covers(99));
  CHECK(!table.covers(401));
  CHECK(test::message_of([&] {
          table.params_at(0.5e6);
        }).find("is outside the measured range, 100 to 400 parameters, 1 to 4 ms per token") !=
        std::string::npos);
  CHECK(LatencyTable(directory / "bench.json", LatencyPhase::kPrompt).at(400) == doctest::Approx(90e6));
}

TEST_CASE("latency: tokens per second are read, too, and unusable files are refused") {
  const test::TemporaryDirectory directory;
  Json rows = Json::array({row(100, 1), row(400, 4)});
  for (Json& one : rows) {
    const double ms = static_cast<double>(one["model_n_params"].get<int64_t>()) / 100;
    one.erase("avg_ns");
    one["avg_ts"] = 1000 / ms;
  }
  CHECK(LatencyTable(write_table(directory, rows), LatencyPhase::kGen).at(250) == doctest::Approx(2.5e6));
  const auto message = [&](const Json& json, LatencyPhase phase = LatencyPhase::kGen) {
    const std::string text = test::message_of([&] { LatencyTable(write_table(directory, json), phase); });
    return text.substr(text.find("bench.json: ") + 12);
  };
  CHECK(message(Json::object()) == "expected a list of measurements");
  CHECK(message(rows, LatencyPhase::kPrompt) ==
        "times for reading a prompt of 0 models, expected at least 2");
  rows[1]["n_threads"] = 2;
  CHECK(message(rows) == "[1]: n_threads: rows with 4 and 2");
  rows[1]["n_threads"] = 4;
  rows[0]["model_type"] = "llama 1B Q4_K - Medium";
  rows[1]["model_type"] = "deci ?B Q5_K - Medium";
  CHECK(message(rows) == "[1]: model_type: rows with Q4_K - Medium and Q5_K - Medium");
  rows[1]["model_type"] = "deci ?B Q4_K - Medium";
  rows[0]["type_k"] = "f16";
  rows[1]["type_k"] = "q8_0";
  CHECK(message(rows) == "[1]: type_k: rows with \"f16\" and \"q8_0\"");
  rows[1]["type_k"] = "f16";
  rows[1] = row(400, 4, 128);
  CHECK(message(rows) == "[1]: n_gen: rows with 16 and 128");
  rows[1] = row(400, -4);
  CHECK(message(rows).find("[1]: expected a positive time per token, got -") == 0);
  rows[1].erase("model_n_params");
  CHECK(message(rows) == "[1]: model_n_params: missing");
}

TEST_CASE("latency: levels are shares of the full model's time, and nothing is extrapolated") {
  const test::TemporaryDirectory directory;
  const ModelSpec spec = test::make_tiny_spec("llama", {.n_layers = 4, .d_model = 64, .d_ff = 512});
  const int64_t all = n_params(spec, full_widths(spec));
  PlanOptions options;
  options.grid = 8;
  options.levels = {0.5};
  const auto use = [&](const Json& rows) {
    options.budget = parse_budget("latency:" + write_table(directory, rows).string());
  };
  // Half of the time is reached at 3/4 of the weights.
  use(Json::array({row(all / 4, 0.5), row(all * 3 / 4, 1), row(all, 2)}));
  const ElasticPlan plan = plan::make_plan(spec, nullptr, options);
  CHECK(plan.levels[0].budget_ratio == doctest::Approx(0.5).epsilon(0.01));
  CHECK(plan.levels[0].total_ratio == doctest::Approx(0.75).epsilon(0.01));

  options.levels = {0.2};
  const auto plan_it = [&] { plan::make_plan(spec, nullptr, options); };
  CHECK(test::message_of(plan_it).find("level 0.2: 0.4 ms per token is outside the measured range, ") == 0);
  CHECK(test::hint_of(plan_it) == "measure a narrower model, or leave out levels below 0.2500");
  use(Json::array({row(all / 4, 0.5), row(all * 3 / 4, 1)}));
  CHECK(test::message_of(plan_it).find(fmt::format(
            "the full model has {} parameters, but the measured ones have", all)) != std::string::npos);
}

}  // namespace elastify
