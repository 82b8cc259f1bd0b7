// Tests `elastify install-check` with fake runtimes: shell scripts in place of llama-bench and node.

#include <nlohmann/json.hpp>

#include <map>

#include "support/program.h"
#include "support/repaired.h"

namespace elastify {
namespace {

using test::Outcome;
using test::run_elastify;
using Json = nlohmann::json;

/// A fake llama-bench whose speed is inversely proportional to the size of the file.
constexpr const char* kBench = R"sh(#!/bin/sh
while [ $# -gt 0 ]; do
  case $1 in -m) model=$2;; -p) n_prompt=$2;; -n) n_gen=$2;; -t) threads=$2;; esac
  shift
done
echo "threads $threads" >> "$0.log"
size=$(stat -Lc %s "$model")
[ "$(head -c 4 "$model")" = GGUF ] || { echo "llama_model_load: error loading model: invalid magic" >&2; exit 1; }
echo "[{\"n_prompt\": $n_prompt, \"n_gen\": 0, \"avg_ts\": $((1000000000 / size))},
       {\"n_prompt\": 0, \"n_gen\": $n_gen, \"avg_ts\": $((100000000 / size))}]"
)sh";

void write_program(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  write_text(path, text);
  fs::permissions(path, fs::perms::owner_all);
}

struct Subject {
  test::TemporaryDirectory work;
  test::RepairedFixture made{test::make_tiny_spec("llama"), plan::Method::kUniform, {true, true, false}};
  fs::path bench = work / "runtime/llama-bench";
  Subject() { write_program(bench, kBench); }

  std::string artifact(const std::string& name, const std::string& options) const {
    const fs::path path = work / name;
    const Outcome done =
        run_elastify(fmt::format("export {} {} -o {}", made.reordered().string(), options, path.string()));
    REQUIRE_MESSAGE(done.status == 0, done.err);
    return path.string();
  }
  Outcome check(const std::string& args) const {
    return run_elastify(
        fmt::format("install-check --runtime llama.cpp={} {}", bench.parent_path().string(), args));
  }
};

/// The reported `loads` by file name, with "+" for a row with an adapter.
std::map<std::string, std::string> rows_of(const std::string& text) {
  std::map<std::string, std::string> rows;
  const Json report = Json::parse(text);
  for (const Json& row : report.at("files"))
    rows[row.at("file").get<std::string>() + (row.contains("adapter") ? "+" : "")] = row.at("loads").dump();
  return rows;
}

}  // namespace

TEST_SUITE("cli") {
  TEST_CASE("cli: install-check loads every model of every layout, with and without its adapter") {
    const Subject subject;
    const std::map<std::string, std::string> plain = {{"full.gguf", "true"},
                                                      {"level-060.gguf", "true"},
                                                      {"level-060.gguf+", "null"},
                                                      {"level-080.gguf", "true"},
                                                      {"level-080.gguf+", "null"}};
    std::map<std::string, std::string> packed = plain, shared, types;
    packed.erase("full.gguf");
    packed["model.gguf"] = "true";
    for (const auto& [name, loads] : plain) {
      std::string first = name;
      shared[first.insert(first.find(".gguf"), "-00001-of-00002")] = loads;
      types["f32/" + name] = types["f16/" + name] = loads;
    }
    const std::tuple<const char*, const char*, std::map<std::string, std::string>> layouts[] = {
        {"plain", "--type f16", plain},
        {"packed", "--type f16 --packed", packed},
        {"shared", "--type f16 --shared-common", shared},
        {"types", "--type f16,f32", types}};
    for (const auto& [name, options, expected] : layouts) {
      CAPTURE(name);
      const Outcome checked = subject.check(subject.artifact(name, options) + " --json");
      REQUIRE_MESSAGE(checked.status == 0, checked.err);
      CHECK((rows_of(checked.out) == expected));
    }
    const Outcome file = subject.check("--json " + (subject.work / "plain/level-060.gguf").string());
    REQUIRE_MESSAGE(file.status == 0, file.err);
    CHECK((rows_of(file.out) == std::map<std::string, std::string>{{"level-060.gguf", "true"}}));
    fs::resize_file(subject.work / "plain/level-060.gguf", 1000);  // now only the runtime can tell
    const Outcome cut = subject.check("--json " + (subject.work / "plain/level-060.gguf").string());
    REQUIRE_MESSAGE(cut.status == 0, cut.err);
    CHECK((rows_of(cut.out) == std::map<std::string, std::string>{{"level-060.gguf", "true"}}));
  }

  TEST_CASE(
      "cli: install-check tells speed and memory, and the runtime's own words where a file does not load") {
    const Subject subject;
    const std::string artifact = subject.artifact("plain", "--type f16");
    write_text(subject.work / "plain/level-060.gguf", "nothing");
    const Outcome checked = subject.check("--threads 3 --json " + artifact);
    CHECK(checked.status == 1);
    const Json report = Json::parse(checked.out);
    CHECK(report.at("all_load") == false);
    CHECK(report.at("runtimes").at(0).at("path") == subject.bench.string());
    for (const Json& row : report.at("files")) {
      if (row.contains("adapter")) {
        CHECK(row.at("message") == "llama-bench takes no adapters");
      } else if (row.at("file") == "level-060.gguf") {
        CHECK(row.at("message") == "llama_model_load: error loading model: invalid magic");
        CHECK_FALSE(row.contains("prompt_tokens_per_second"));
      } else {
        const auto size =
            static_cast<int64_t>(fs::file_size(subject.work / "plain" / row.at("file").get<std::string>()));
        CHECK(row.at("prompt_tokens_per_second") == 1'000'000'000 / size);
        CHECK(row.at("generation_tokens_per_second") == 100'000'000 / size);
        CHECK(row.at("peak_rss_bytes") > 100'000);
      }
    }
    CHECK(read_text(subject.bench.string() + ".log").find("threads 3\n") != std::string::npos);
    const Outcome told = subject.check(artifact);
    CHECK(told.status == 1);
    CHECK(told.out.find("NO     llama_model_load: error loading model: invalid magic") != std::string::npos);
    CHECK(told.out.find("2 of 3 load\n") != std::string::npos);
  }

  TEST_CASE("cli: install-check outlives runtimes that crash, hang or say nothing of use") {
    const Subject subject;
    const std::string artifact = subject.artifact("plain", "--type f16 --levels 1");
    const std::pair<const char*, const char*> runtimes[] = {
        {"echo 'GGML_ASSERT(buffer) failed' >&2; kill -ABRT $$",
         "was ended by signal 6 (Aborted): GGML_ASSERT(buffer) failed"},
        {"sleep 600", "took longer than 1 s"},
        {"echo warming up", "its output is not as expected"},
        {"exit 7", "ended with exit status 7"}};
    for (const auto& [script, message] : runtimes) {
      CAPTURE(script);
      write_program(subject.bench, fmt::format("#!/bin/sh\n{}\n", script));
      const Outcome checked = subject.check("--json --time-limit 1 " + artifact);
      CHECK(checked.status == 1);
      const Json row = Json::parse(checked.out).at("files").at(0);
      CHECK(row.at("loads") == false);
      CHECK_MESSAGE(row.at("message").get<std::string>().starts_with(message), row.dump());
    }
  }

  TEST_CASE("cli: packages of npm are found from the working directory, NODE_PATH and --runtime") {
    const Subject subject;
    const std::string artifact = subject.artifact("plain", "--type f16");
    write_program(subject.work / "bin/node",
                  "#!/bin/sh\necho '{\"prompt_tokens_per_second\": 5, "
                  "\"generation_tokens_per_second\": 4}'\n");
    const fs::path package = subject.work / "app/node_modules/@fugood/llama.node";
    fs::create_directories(package);
    write_text(package / "package.json", R"({"name": "@fugood/llama.node", "version": "1.7.15"})");
    fs::create_directories(subject.work / "app/deeper");
    const std::string at = subject.work.path().string(),
                      path = fmt::format("export PATH={}/bin:/usr/bin:/bin;", at);
    const std::pair<std::string, std::string> ways[] = {
        {fmt::format("cd {}/app/deeper; {}", at, path), ""},
        {fmt::format("cd /; {} export NODE_PATH={}/app/node_modules;", path, at), ""},
        {fmt::format("cd /; {}", path), fmt::format("--runtime llama.node={}/app", at)},
        {fmt::format("cd /; {}", path), fmt::format("--runtime @fugood/llama.node={}", package.string())}};
    for (const auto& [before, options] : ways) {
      CAPTURE(before);
      CAPTURE(options);
      const Outcome checked =
          run_elastify(fmt::format("install-check {} {} --json", artifact, options), before);
      REQUIRE_MESSAGE(checked.status == 0, checked.err);
      const Json report = Json::parse(checked.out);
      CHECK(report.at("runtimes").at(0).at("version") == "1.7.15");
      CHECK(report.at("files").size() == 5);
      for (const Json& row : report.at("files")) CHECK(row.at("generation_tokens_per_second") == 4);
    }
  }

  TEST_CASE("cli: without a runtime, or with one that is not there, install-check says how to get one") {
    const Subject subject;
    const std::string artifact = subject.artifact("plain", "--type f16");
    const Outcome none = run_elastify("install-check " + artifact, "cd /; export PATH=/nowhere;");
    CHECK(none.status == 1);
    CHECK(none.err.find("no runtime found") != std::string::npos);
    CHECK(none.err.find("npm install node-llama-cpp") != std::string::npos);
    const std::pair<const char*, const char*> wrong[] = {
        {"--runtime ollama", "--runtime ollama: not a runtime that is known"},
        {"--runtime llama.cpp=/nowhere", "no llama-bench in /nowhere"},
        {"--runtime node-llama-cpp=/nowhere", "no node-llama-cpp in /nowhere"}};
    for (const auto& [options, message] : wrong) {
      CAPTURE(options);
      const Outcome refused = run_elastify(fmt::format("install-check {} {}", artifact, options));
      CHECK(refused.status == 2);
      CHECK_MESSAGE(refused.err.find(message) != std::string::npos, refused.err);
    }
    const Outcome empty = subject.check(subject.made.model().string());
    CHECK(empty.status == 2);
    CHECK(empty.err.find("not an artifact") != std::string::npos);
  }

  TEST_CASE("cli: a plan is made by the latency table that install-check wrote") {
    const Subject subject;
    const std::string artifact = subject.artifact("plain", "--type f32");
    const std::string table = (subject.work / "latency.json").string();
    const Outcome checked = subject.check(fmt::format("{} --latency-table {} --threads 2", artifact, table));
    REQUIRE_MESSAGE(checked.status == 0, checked.err);
    const Json rows = Json::parse(read_text(table));
    CHECK(rows.size() == 6);
    for (const Json& row : rows) CHECK(row.at("n_threads") == 2);
    for (const char* phase : {"gen", "prompt"}) {
      CAPTURE(phase);
      const Outcome planned = run_elastify(
          fmt::format("plan {} --plan uniform --levels 0.8 --grid 8 --budget latency:{}:{} -o {}/{}.json",
                      subject.made.model().string(), table, phase, subject.work.path().string(), phase));
      REQUIRE_MESSAGE(planned.status == 0, planned.err);
      const Json plan = Json::parse(read_text(subject.work / fmt::format("{}.json", phase)));
      const Json& level = plan.at("levels").at(0);
      CHECK(std::abs(level.at("budget_ratio").get<double>() - 0.8) < 0.1);
      CHECK(plan.at("budget").get<std::string>().find(table) != std::string::npos);
    }
    CHECK(subject.check(fmt::format("{} --latency-table {}", artifact, table)).status == 2);  // it exists
    const Outcome types =
        subject.check(fmt::format("{} --latency-table {}/t.json", subject.artifact("types", "--type f16,f32"),
                                  subject.work.path().string()));
    CHECK(types.status == 2);
    CHECK(types.err.find("a latency table describes one weight type") != std::string::npos);
    const Outcome one = subject.check(
        fmt::format("{}/full.gguf --latency-table {}/t.json", artifact, subject.work.path().string()));
    CHECK(one.status == 1);
    CHECK(one.err.find("needs two models of different size that load, got 1") != std::string::npos);
  }
}

}  // namespace elastify
