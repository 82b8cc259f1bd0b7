#include "pipeline/sweep.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include <cmath>
#include <map>

#include "base/error.h"
#include "data/task.h"
#include "eval/evaluate.h"
#include "pipeline/keys.h"
#include "pipeline/measure_profile.h"
#include "pipeline/reorder_model.h"
#include "pipeline/run.h"
#include "report/sweep_view.h"
#include "support/errors.h"
#include "support/shared_data.h"
#include "support/temporary_directory.h"
#include "support/tiny_model.h"

namespace elastify::pipeline {
namespace {

SweepConfig parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  const test::TemporaryDirectory directory;
  write_text(directory.path() / "sweep.yaml", text);
  return load_sweep(directory.path() / "sweep.yaml", overrides);
}

const std::string kMinimal = "model: m.gguf\noutput: out\neval: {data: held.txt}\n";

/// A tiny model on disk and a sweep over it, with texts sampled from the model.
class TinySweep {
 public:
  TinySweep() { test::write_tiny_hf_model(test::make_tiny_spec("llama"), path("model"), 1); }

  fs::path path(const std::string& name) const { return directory_.path() / name; }
  SweepConfig config(const std::string& output, const std::string& grid) const {
    return parse(
        fmt::format("model: {}\noutput: {}\npreset: none\n"
                    "profile: {{data: self, tokens: 128, seq: 16, removal_tokens: 32}}\n"
                    "reorder: {{levels: [0.5, 0.75], grid: 8, anchor_share: 0.5}}\n"
                    "eval: {{data: self, tokens: 128, seq: 16}}\n"
                    "grid: {}\n",
                    path("model").string(), path(output).string(), grid));
  }
  std::string text(const std::string& name) const { return read_text(path(name)); }

 private:
  test::TemporaryDirectory directory_;
};

/// Kept evaluations and their times of writing.
std::map<std::string, fs::file_time_type> kept(const fs::path& output) {
  std::map<std::string, fs::file_time_type> files;
  for (const auto& entry : fs::directory_iterator(output / ".points"))
    files[entry.path().filename().string()] = fs::last_write_time(entry.path());
  return files;
}

/// Writes a task of four questions.
/// \returns the file's name
std::string write_task(const fs::path& file) {
  std::string lines;
  for (const char* animal : {"cat", "dog", "bird", "fish"})
    lines += fmt::format(
        "{{\"query\": \"One day, a little {}\", \"choices\": [\"went to the park.\", "
        "\"qqq zzz xxx.\"], \"gold\": 0}}\n",
        animal);
  write_text(file, lines);
  return file.string();
}

TEST_SUITE("pipeline") {
  TEST_CASE("sweep: points are all combinations, in the order written, the last axis fastest") {
    const SweepConfig config =
        parse(kMinimal +
              "grid:\n  reorder.metric: [taylor, random]\n  seed: [5, 0x3]\n"
              "  profile.data: [self, [a.txt, b.txt]]\n  reorder.anchor_share: 0.25\n");
    REQUIRE(config.points.size() == 8);
    std::vector<std::string> seen;
    for (const SweepPoint& point : config.points) {
      REQUIRE(point.values.size() == 4);
      seen.push_back(point.values[0] + " " + point.values[1] + " " + point.values[2]);
      CHECK(point.values[3] == "0.25");
      CHECK(point.config.reorder.plan.anchor_share == 0.25);
      CHECK(std::string(name_of(point.config.reorder.metric)) == point.values[0]);
      CHECK(std::to_string(point.config.seed) == point.values[1]);
      CHECK(point.config.profile.text.seed == point.config.seed);
    }
    CHECK(seen == std::vector<std::string>{"taylor 5 self", "taylor 5 a.txt+b.txt", "taylor 3 self",
                                           "taylor 3 a.txt+b.txt", "random 5 self", "random 5 a.txt+b.txt",
                                           "random 3 self", "random 3 a.txt+b.txt"});
    CHECK(config.points[1].config.profile.text.data == std::vector<std::string>{"a.txt", "b.txt"});
    CHECK(config.base.seed == 0);
    // The resolved configuration is JSON, which is valid YAML, so it can be loaded as a sweep.
    const std::string resolved = to_json(config).dump(2);
    CHECK(to_json(parse(resolved)).dump(2) == resolved);
  }

  TEST_CASE("sweep: rows are named sets of options, each at every point of the grid") {
    const SweepConfig config = parse(kMinimal +
                                     "grid: {seed: [3, 4]}\nrows:\n  - {name: paper, reorder.metric: "
                                     "taylor-element, reorder.plan: anchors}\n"
                                     "  - {name: ours, reorder.metric: gram, reorder.plan: dp}\n");
    REQUIRE(config.points.size() == 4);
    CHECK(config.points[1].values == std::vector<std::string>{"paper", "4"});
    CHECK(config.points[2].values == std::vector<std::string>{"ours", "3"});
    CHECK((config.points[2].config.reorder.metric == Metric::kGram));
    CHECK(config.points[2].config.profile.second_moments);
    CHECK_FALSE(config.points[1].config.profile.second_moments);
    const std::string resolved = to_json(config).dump(2);
    CHECK(to_json(parse(resolved)).dump(2) == resolved);
    CHECK(parse(kMinimal + "rows: [{name: a, seed: 1}]\n").points.size() == 1);
  }

  TEST_CASE("sweep: --set narrows or adds an axis, and does not fight one") {
    const std::string text = kMinimal + "grid:\n  reorder.metric: [taylor, random]\n";
    CHECK(parse(text, {"grid.reorder.metric=magnitude"}).points.size() == 1);
    CHECK(parse(text, {"grid.seed=[0, 1, 2]"}).points.size() == 6);
    CHECK_THROWS_WITH_AS(parse(text, {"reorder.metric=magnitude"}),
                         doctest::Contains("the grid varies this option"), UsageError);
  }

  TEST_CASE("sweep: a bad grid is refused with line, key and a way out") {
    struct Bad {
      std::string text, message, hint;
    };
    const std::vector<Bad> table{
        {"", "sweep.yaml: grid is missing", "grid: {reorder.metric: [taylor, magnitude]}"},
        {"grid: {}\n", "sweep.yaml: grid is missing", ""},
        {"rows:\n", "sweep.yaml: grid is missing", ""},
        {"grid: 7\n", "sweep.yaml:4: grid: expected a section of options and lists of values, got '7'", ""},
        {"grid:\n  reorder.metrc: [taylor]\n", "sweep.yaml:5: unknown key 'grid.reorder.metrc'",
         "did you mean 'reorder.metric'?"},
        {"grid:\n  reorder:\n    metric: [taylor]\n", "sweep.yaml:5: grid.reorder: expected a list of values",
         "reorder.metric: [...]"},
        {"grid:\n  seed: {}\n", "sweep.yaml:5: grid.seed: expected a list of values, got a section", ""},
        {"grid:\n  seed: []\n", "sweep.yaml:5: grid.seed: expected a list of values, got none", ""},
        {"grid:\n  seed:\n", "sweep.yaml:5: grid.seed: expected a list of values, got none", ""},
        {"grid:\n  seed: [0]\n  seed: [1]\n", "sweep.yaml:6: grid.seed: is given twice", ""},
        {"grid:\n  seed: [1,\n         0x1]\n", "sweep.yaml:6: grid.seed: 1 is listed twice", ""},
        {"grid:\n  seed: [0, -1]\n", "sweep.yaml:5: seed: expected at least 0, got -1", ""},
        {"grid:\n  seed: [0]\n  reorder.metric:\n    - taylor\n    - tailor\n",
         "sweep.yaml:8: reorder.metric: ", ""},
        {"grid:\n  reorder.plan: [uniform, ~]\n", "sweep.yaml:5: reorder.plan: expected a name, got nothing",
         ""},
        {"grid:\n  profile.metrics: [taylor]\n",
         "sweep.yaml:5: grid.profile.metrics: this option cannot be swept", "reorder.metric"},
        {"grid:\n  reorder.levels: [0.5]\n", "grid.reorder.levels: this option cannot be swept",
         "outside of the grid"},
        {"grid:\n  model: [a, b]\n", "grid.model: this option cannot be swept", "the same for all"},
        {"grid:\n  eval.seq: [64]\n", "grid.eval.seq: this option cannot be swept", ""},
        {"rows: {}\n", "sweep.yaml:4: rows: expected a list of sets of options, got", "rows: [{name: ours"},
        {"rows:\n  - ours\n", "sweep.yaml:5: rows: expected a set of options, got 'ours'",
         "rows: [{name: ours"},
        {"rows:\n  - {seed: 1}\n", "sweep.yaml:5: rows: a row has no name", ""},
        {"rows:\n  - {name: a, seed: 1}\n  - {name: a}\n", "sweep.yaml:6: rows: two rows are named 'a'", ""},
        {"rows:\n  - {name: a, reorder.metrc: x}\n", "sweep.yaml:5: unknown key 'rows.reorder.metrc'",
         "did you mean 'reorder.metric'?"},
        {"rows:\n  - {name: a, model: x}\n", "sweep.yaml:5: rows.model: this option cannot be swept", ""},
        {"rows:\n  - {name: a, seed: 1}\ngrid: {seed: [2]}\n",
         "sweep.yaml:5: rows: seed is varied by the grid, too", ""},
        {"grid:\n  export.type: [f16]\n", "grid.export.type: this option cannot be swept", ""},
        {"grid:\n  seed: [0]\nreorder:\n  metrc: x\n", "sweep.yaml:7: unknown key 'reorder.metrc'", ""},
    };
    for (const Bad& bad : table) {
      CAPTURE(bad.text);
      try {
        parse(kMinimal + bad.text);
        FAIL("accepted");
      } catch (const UsageError& error) {
        CAPTURE(error.what());
        CHECK(std::string(error.what()).find(bad.message) != std::string::npos);
        CHECK(error.hint().find(bad.hint) != std::string::npos);
      }
    }
    std::string many = kMinimal + "grid:\n";
    for (const char* key : {"seed", "profile.tokens", "profile.batch"}) {
      many += fmt::format("  {}: [1", key);
      for (int i = 2; i <= 30; ++i) many += fmt::format(", {}", i);
      many += "]\n";
    }
    CHECK_THROWS_WITH_AS(parse(many), doctest::Contains("more than 10000 points"), UsageError);
  }

  TEST_CASE("sweep: a run refuses a sweep's file, and says what it is") {
    const test::TemporaryDirectory directory;
    for (const char* varied : {"grid:\n  seed: [0, 1]\n", "rows:\n  - {name: a, seed: 1}\n"}) {
      CAPTURE(varied);
      write_text(directory.path() / "sweep.yaml", kMinimal + varied);
      try {
        load_config(directory.path() / "sweep.yaml");
        FAIL("accepted");
      } catch (const UsageError& error) {
        CHECK(std::string(error.what()).find("sweep.yaml:") != std::string::npos);
        CHECK(error.hint().find("elastify sweep") != std::string::npos);
      }
    }
  }

  TEST_CASE("sweep: keys go by the content of importance matrices and tables of latencies") {
    const test::TemporaryDirectory directory;
    const fs::path table = directory.path() / "latency.json";
    RunConfig config;
    CHECK_FALSE(key_of(config, options::Result::kWidths).at("contents").contains("latencies"));
    CHECK_FALSE(key_of(config, options::Result::kProfile).at("contents").contains("imatrix"));
    config.reorder.plan.budget.table = table;
    config.profile.imatrix = table.string();
    const auto hashes = [&] {
      return std::pair(key_of(config, options::Result::kWidths), key_of(config, options::Result::kProfile));
    };
    write_text(table, "[1]");
    const auto one = hashes();
    write_text(table, "[2]");
    CHECK(hashes().first != one.first);
    CHECK(hashes().second != one.second);
    write_text(table, "[1]");
    CHECK((hashes() == one));
  }

  TEST_CASE("sweep: a level out of reach is said before anything is measured") {
    const TinySweep tiny;
    SweepConfig config = tiny.config("out", "{reorder.metric: [taylor, random]}");
    for (SweepPoint& point : config.points) {
      point.config.reorder.plan.levels = {0.01};
      point.config.sources["reorder.levels"] = "--set";
    }
    CHECK_THROWS_WITH_AS(sweep(config, false), doctest::Contains("taylor: level 0.01"), Error);
    CHECK_FALSE(fs::exists(tiny.path("out")));
  }

  TEST_CASE("sweep: rows are compared with the first one, over the seeds") {
    const TinySweep tiny;
    const SweepConfig config = tiny.config(
        "out",
        "{seed: [0, 1]}\nrows: [{name: chance, reorder.metric: random}, {name: searched, reorder.metric: "
        "gram, reorder.plan: dp, reorder.compensate: baked}]");
    const auto report = sweep(config, false);
    REQUIRE(report.at("points").size() == 4);
    CHECK(report.at("points")[3].at("name") == "searched, seed 1");
    const std::string table = report::sweep_table(report);
    CAPTURE(table);
    CHECK(table.find(
              "excess nats per token (± standard deviation), share of chance's at the same true ratio") !=
          std::string::npos);
    const auto excess = [&](size_t point) {
      return report.at("points")[point].at("levels")[0].at("excess_nll").get<double>();
    };
    CHECK(table.find(fmt::format("searched  {:.3f} ±", (excess(2) + excess(3)) / 2)) != std::string::npos);
    CHECK(tiny.text("out/sweep.csv").find("row,seed,level,") == 0);
    // Measured plans are kept.
    const auto first = kept(tiny.path("out"));
    CHECK(sweep(config, false) == report);
    CHECK((kept(tiny.path("out")) == first));
  }

  TEST_CASE("sweep: what a row gives does not depend on the rows beside it") {
    const TinySweep tiny;
    const std::string searched = "{name: searched, reorder.metric: gram, reorder.plan: dp+kl}";
    const std::string anchored = "{name: anchored, reorder.plan: anchors}";
    const auto alone = sweep(tiny.config("alone", "{seed: 0}\nrows: [" + searched + "]"), false);
    const auto beside =
        sweep(tiny.config("beside", "{seed: 0}\nrows: [" + anchored + ", " + searched + "]"), false);
    CHECK(alone.at("points")[0].at("levels") == beside.at("points")[1].at("levels"));
    const Checkpoint model = open_model(tiny.path("model"), {}).checkpoint;
    const fs::path profile = fs::directory_iterator(tiny.path("alone/.profiles"))->path();
    CHECK(load_profile(profile, model.spec()).removal_loss.size() ==
          static_cast<size_t>(model.spec().n_layers));
  }

  TEST_CASE("sweep: repairs fitted on more text leave order and widths as they are") {
    const TinySweep tiny;
    const std::string row = "reorder.metric: gram, reorder.plan: dp, reorder.compensate: baked";
    const auto report =
        sweep(tiny.config("out", "{seed: 0}\nrows: [{name: as profiled, " + row +
                                     "}, {name: as much, reorder.fit_tokens: 128, " + row +
                                     "}, {name: more, reorder.fit_tokens: 256, " + row + "}]"),
              false);
    const auto level = [&](size_t point, const char* column) {
      return report.at("points")[point].at("levels")[0].at(column).get<double>();
    };
    CHECK(level(0, "true_ratio") == level(2, "true_ratio"));
    CHECK(level(0, "excess_nll") == level(1, "excess_nll"));
    CHECK(level(0, "excess_nll") != level(2, "excess_nll"));
    size_t n_plans = 0;
    for (const auto& [name, when] : kept(tiny.path("out"))) n_plans += name.rfind("plan-", 0) == 0 ? 1 : 0;
    CHECK(n_plans == 1);
  }

  TEST_CASE("sweep: tasks need a tokenizer, and are for sweeps") {
    const TinySweep tiny;
    const std::string grid = "{seed: 0}";
    SweepConfig config = tiny.config("out", grid);
    config.base.eval.tasks = {write_task(tiny.path("task.jsonl"))};
    CHECK(test::message_of([&] { sweep(config, false); }).find("the model carries no tokenizer") !=
          std::string::npos);
    fs::create_directories(tiny.path("other"));
    config.base.eval.tasks.push_back(write_task(tiny.path("other/task.jsonl")));
    CHECK(test::message_of([&] { sweep(config, false); }).find("are both called 'task'") !=
          std::string::npos);
    write_text(tiny.path("run.yaml"), "model: m\noutput: out\neval: {data: a.txt, tasks: [b.jsonl]}\n");
    CHECK(test::message_of([&] { load_config(tiny.path("run.yaml")); }) ==
          fmt::format("{}: eval.tasks: a run is measured on text alone", tiny.path("run.yaml").string()));
  }

  TEST_CASE("sweep: accuracies on tasks are those of the sub-models, beside their perplexities") {
    if (!test::has_shared_data()) return;
    const fs::path models = test::shared_data() / "models/stories260K";
    const fs::path model = models / "stories260K.bin", tokenizer = models / "tok512.model";
    const test::TemporaryDirectory directory;
    const fs::path task = directory.path() / "weather.jsonl";
    SweepConfig config = parse(fmt::format(
        "model: {}\ntokenizer: {}\noutput: {}\npreset: none\n"
        "profile: {{data: self, tokens: 512, seq: 64}}\n"
        "reorder: {{levels: 0.5}}\neval: {{data: self, tokens: 256, seq: 64, tasks: [{}], items: 3}}\n"
        "rows: [{{name: taylor, reorder.metric: taylor}}, {{name: chance, reorder.metric: random}}]\n",
        model.string(), tokenizer.string(), (directory.path() / "out").string(), write_task(task)));
    const auto report = sweep(config, false);
    const OpenModel open = open_model(model, tokenizer);
    const nn::Decoder decoder(open.checkpoint, {});
    auto items = load_task(task);
    items.resize(3);
    const auto expected = eval::multiple_choice(decoder, *make_tokenizer(*open.vocabulary), items, nullptr);
    CHECK(report.at("tasks").at("weather").at("accuracy_norm").get<double>() == expected.accuracy_norm);
    CHECK(report.at("tasks").at("weather").at("items") == 3);
    for (const auto& point : report.at("points"))
      CHECK(point.at("levels")[0].at("tasks").at("weather").at("items") == 3);
    const std::string table = report::sweep_table(report);
    CAPTURE(table);
    CHECK(table.find(fmt::format("accuracy per character, mean of weather; full model: {:.3f}",
                                 expected.accuracy_norm)) != std::string::npos);
    CHECK(read_text(directory.path() / "out/sweep.csv").find(",excess_nll,weather\n") != std::string::npos);
    CHECK(sweep(config, false) == report);  // from kept results
  }

  TEST_CASE("sweep: an interrupted sweep goes on to the same bytes and computes nothing twice") {
    const TinySweep tiny;
    const std::string grid =
        "{reorder.metric: [taylor, magnitude, random], reorder.plan: [uniform, anchors]}";
    const auto report = sweep(tiny.config("a", grid), false);
    REQUIRE(report.at("points").size() == 6);
    CHECK(report.at("points")[1].at("name") == "taylor, anchors");
    const std::string csv = tiny.text("a/sweep.csv");
    CHECK(csv.find("reorder.metric,reorder.plan,level,true_ratio,total_ratio,perplexity,bits_per_byte,nll,"
                   "excess_nll\ntaylor,uniform,0.5,") == 0);
    CHECK(std::count(csv.begin(), csv.end(), '\n') == 1 + 6 * 3);

    // All six points share one profile, and the full model is evaluated once.
    CHECK(std::distance(fs::directory_iterator(tiny.path("a/.profiles")), fs::directory_iterator{}) == 1);
    const auto first = kept(tiny.path("a"));
    CHECK(first.size() <= 1 + 6 * 2);

    // Restore the state of a sweep that stopped half-way.
    for (const char* name : {"sweep.csv", "sweep.json", "sweep.svg"}) fs::remove(tiny.path("a") / name);
    size_t n = 0;
    for (const auto& [name, time] : first)
      if (n++ % 2 == 0) fs::remove(tiny.path("a/.points") / name);
    const auto survivors = kept(tiny.path("a"));
    CHECK(sweep(tiny.config("a", grid), false) == report);
    CHECK(tiny.text("a/sweep.csv") == csv);
    const auto again = kept(tiny.path("a"));
    CHECK(again.size() == first.size());
    for (const auto& [name, time] : survivors) CHECK(again.at(name) == time);

    // A new sweep in another directory writes the same bytes.
    sweep(tiny.config("b", grid), false);
    CHECK(tiny.text("b/sweep.csv") == csv);
    CHECK(tiny.text("b/sweep.svg") == tiny.text("a/sweep.svg"));

    // The report shows kept results until --force discards them.
    const fs::path victim = tiny.path("a/.points") / first.begin()->first;
    auto changed = nlohmann::json::parse(read_text(victim));
    changed["nll"] = 1.25;
    write_text(victim, changed.dump());
    sweep(tiny.config("a", grid), false);
    CHECK(tiny.text("a/sweep.csv") != csv);
    sweep(tiny.config("a", grid), true);
    CHECK(tiny.text("a/sweep.csv") == csv);
  }

  TEST_CASE("sweep: a grid that grew measures only what is new") {
    const TinySweep tiny;
    sweep(tiny.config("out", "{reorder.metric: [magnitude, taylor]}"), false);
    const auto before = kept(tiny.path("out"));
    const std::string grid =
        "{reorder.metric: [random, magnitude, taylor], reorder.plan: [uniform, anchors]}";
    const auto grown = sweep(tiny.config("out", grid), false);
    CHECK(std::distance(fs::directory_iterator(tiny.path("out/.profiles")), fs::directory_iterator{}) == 1);
    const auto after = kept(tiny.path("out"));
    for (const auto& [name, time] : before) CHECK(after.at(name) == time);
    auto whole = sweep(tiny.config("whole", grid), false);
    CHECK(whole.at("points") == grown.at("points"));
  }

  TEST_CASE("sweep: points that differ in nothing share their evaluations") {
    const TinySweep tiny;
    const auto report = sweep(tiny.config("out", "{reorder.metric: [magnitude], seed: [0, 1]}"), false);
    CHECK(kept(tiny.path("out")).size() == 3);  // two levels and the full model
    CHECK(report.at("points")[0].at("levels") == report.at("points")[1].at("levels"));
    CHECK(report.at("points")[1].at("name") == "seed 1");
    CHECK(report.at("points")[1].at("options").at("seed") == 1);
  }

  TEST_CASE("sweep: what a point says is what the reordered model on disk gives") {
    const TinySweep tiny;
    const SweepConfig config =
        tiny.config("out", "{reorder.metric: [taylor, random], reorder.plan: anchors}");
    const auto report = sweep(config, false);
    const OpenModel source = open_model(tiny.path("model"), {});
    const nn::Decoder original(source.checkpoint, {});
    const TextOptions& text = config.base.eval.text;
    const TokenBatches batches = load_batches(source, original, text, false);
    for (size_t p = 0; p < config.points.size(); ++p) {
      RunConfig point = config.points[p].config;
      point.profile.metrics = {point.reorder.metric};
      const Profile profile = measure_profile(source, point.compute, point.profile).profile;
      const fs::path written = tiny.path(fmt::format("reordered{}", p));
      const ElasticPlan plan = write_reordered(source, {&profile}, point, written, false);
      const OpenModel elastic = open_model(written, {});
      const nn::Decoder decoder(elastic.checkpoint, {});
      const auto& levels = report.at("points")[p].at("levels");
      REQUIRE(levels.size() == plan.levels.size());
      for (size_t i = 0; i < levels.size(); ++i) {
        const auto expected = eval::perplexity(decoder, batches, &plan.levels[i].widths, text.batch);
        CHECK(levels[i].at("true_ratio") == plan.levels[i].decoder_ratio);
        CHECK(levels[i].at("nll").get<double>() == doctest::Approx(expected.nll).epsilon(1e-6));
        CHECK(levels[i].at("perplexity").get<double>() == doctest::Approx(expected.perplexity).epsilon(1e-5));
        CHECK(levels[i].at("excess_nll").get<double>() ==
              doctest::Approx(expected.nll - report.at("full").at("nll").get<double>()).epsilon(1e-5));
      }
      CHECK(levels.back().at("excess_nll") == 0);
    }
  }

  TEST_CASE("sweep: its values are those of runs with the same options") {
    if (!test::has_shared_data()) return;
    const test::TemporaryDirectory directory;
    const fs::path models = test::shared_data() / "models/stories260K";
    const fs::path texts = test::shared_data() / "datasets/tinystories";
    const std::string common = fmt::format(
        "model: {0}/stories260K.bin\ntokenizer: {0}/tok512.model\noutput: {2}\npreset: none\n"
        "profile: {{data: {1}/tinystories_v2gpt4_10k_lines.txt, tokens: 1024, seq: 64}}\n"
        "reorder: {{levels: [0.6]}}\n"
        "eval: {{data: {1}/tinystories_v1_valid_head_0.8MB.txt, tokens: 1024, seq: 64, baseline: true}}\n",
        models.string(), texts.string(), (directory / "run").string());
    write_text(directory / "run.yaml", common);
    const auto expected = run(load_config(directory / "run.yaml"), false);
    write_text(directory / "sweep.yaml", common + "grid: {reorder.metric: [taylor, random]}\n");
    const auto report =
        sweep(load_sweep(directory / "sweep.yaml", {"output=" + (directory / "sweep").string()}), false);
    for (size_t i = 0; i < 2; ++i) {
      const auto& level = expected.at("levels")[i];
      for (const auto& [p, key] : {std::pair{0, "perplexity"}, std::pair{1, "perplexity_random_order"}})
        CHECK(report.at("points")[static_cast<size_t>(p)].at("levels")[i].at("perplexity").get<double>() ==
              doctest::Approx(level.at(key).get<double>()).epsilon(1e-4));
      CHECK(report.at("points")[0].at("levels")[i].at("true_ratio") == level.at("true_ratio"));
    }
  }

  TEST_CASE("sweep: the table has a row per point and marks the best of a level") {
    const TinySweep tiny;
    const auto report = sweep(tiny.config("out", "{reorder.metric: [taylor, random], seed: [0, 7]}"), false);
    const std::string table = report::sweep_table(report);
    CAPTURE(table);
    CHECK(table.find("metric  seed        0.5      0.75         1\ntaylor  0     ") == 0);
    CHECK(table.find("\nrandom  7     ") != std::string::npos);
    CHECK(std::count(table.begin(), table.end(), '*') >= 3);
    const std::string svg = tiny.text("out/sweep.svg");
    for (const char* name : {"taylor, seed 0", "taylor, seed 7", "random, seed 0", "random, seed 7"})
      CHECK(svg.find(std::string(">") + name + "</text>") != std::string::npos);
  }
}

}  // namespace
}  // namespace elastify::pipeline
