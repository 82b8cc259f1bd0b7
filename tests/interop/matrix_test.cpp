// Tests every kind of file that export writes, width x family x type x repair, in stock llama.cpp (logits),
// node-llama-cpp and @fugood/llama.node (load and generate).

#include <nlohmann/json.hpp>

#include "data/vocabulary.h"
#include "io/gguf.h"
#include "support/elastic_fixture.h"
#include "support/llama_oracle.h"
#include "support/program.h"
#include "support/repaired.h"

namespace elastify {
namespace {

using namespace interop;

/// A spec whose rows are whole blocks of every type at every width. With a square q, qwen2 keeps its own
/// architecture.
ModelSpec spec_of(const std::string& family) {
  return test::make_tiny_spec(family, {.d_model = family == "qwen2" ? 512 : 256,
                                       .head_dim = 64,
                                       .n_kv_heads = 2,
                                       .heads_per_group = 4,
                                       .d_ff = 512,
                                       .n_vocab = 320,
                                       .tied = family == "qwen3"});
}

/// Level 0.4 narrows all layers equally, 0.7 only the second one; and the full model.
ElasticPlan plan_of(const ModelSpec& spec) {
  Widths uniform = full_widths(spec), uneven = uniform;
  for (int64_t layer = 0; layer < spec.n_layers; ++layer) {
    uniform[spec.attention_space(layer)] = 1;
    uniform[spec.mlp_space(layer)] = 256;
  }
  uneven[spec.attention_space(1)] = 1;
  uneven[spec.mlp_space(1)] = 256;
  ElasticPlan plan;
  plan.spec_hash = spec_hash(spec);
  plan.method = "uniform";
  plan.grid = 256;
  plan.levels = {make_level(spec, 0.4, uniform), make_level(spec, 0.7, uneven),
                 make_level(spec, 1, full_widths(spec))};
  return plan;
}

/// Writes a vocabulary, because node-llama-cpp aborts on models without one.
void write_vocabulary(int64_t n_tokens, const fs::path& path) {
  Vocabulary vocabulary;
  vocabulary.kind = TokenizerKind::kSentencePiece;
  vocabulary.pre = "default";
  vocabulary.tokens = {"<unk>", "<s>", "</s>"};
  vocabulary.types = {TokenType::kUnknown, TokenType::kControl, TokenType::kControl};
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary.tokens.push_back(fmt::format("<0x{:02X}>", byte));
    vocabulary.types.push_back(TokenType::kByte);
  }
  for (int64_t i = vocabulary.size(); i < n_tokens; ++i) {
    vocabulary.tokens.push_back(fmt::format("t{}", i));
    vocabulary.types.push_back(TokenType::kNormal);
  }
  for (int64_t i = 0; i < n_tokens; ++i) vocabulary.scores.push_back(static_cast<float>(-i));
  vocabulary.unknown = 0;
  vocabulary.bos = 1;
  vocabulary.eos = 2;
  GgufMetadata keys;
  keys.set("general.architecture", std::string("llama"));
  write_gguf_keys(vocabulary, keys);
  GgufWriter(path, keys, {}).finish();
}

struct Repair {
  const char* name;
  bool adapter, bias;
  bool everywhere = false;  ///< on all seven matrices, not only on o and down
};
constexpr Repair kRepairs[] = {
    {"none", false, false}, {"adapter", true, false}, {"bias", false, true}, {"adapters", true, false, true}};

bool has_llama_node() {
  return fs::exists(fs::path(ELASTIFY_SOURCE_DIR) / "tests/interop/node_modules/@fugood/llama.node");
}

/// Checks that all `jobs` load, in one process.
/// \param prompt  empty: use token ids
void check_loads(const nlohmann::json& jobs, const std::string& runtime, const std::string& prompt = "") {
  CAPTURE(runtime);
  const test::TemporaryDirectory work;
  write_text(work / "list.json", jobs.dump());
  const int status =
      shell(fmt::format("node '{}/tests/interop/load_many.mjs' {} '{}' {} >'{}' 2>'{}'", ELASTIFY_SOURCE_DIR,
                        runtime, (work / "list.json").string(), prompt.empty() ? "" : "'" + prompt + "'",
                        (work / "out").string(), (work / "err").string()));
  size_t n = 0;
  std::istringstream lines(read_text(work / "out"));
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("{")) continue;
    CHECK_MESSAGE(nlohmann::json::parse(line).at("loads").get<bool>(), line);
    ++n;
  }
  const std::string log = read_text(work / "err");
  CHECK_MESSAGE(n == jobs.size(), log.substr(log.size() - std::min<size_t>(log.size(), 2000)));
  CHECK(status == 0);
}

/// Checks the same runtimes through `elastify install-check`.
void check_install(const fs::path& artifact) {
  const std::string packages = std::string(ELASTIFY_SOURCE_DIR) + "/tests/interop";
  const test::Outcome checked = test::run_elastify(
      fmt::format("install-check {0} --prompt 8 --generate 2 --threads 1 --json --runtime llama.cpp={1} "
                  "--runtime node-llama-cpp={2} --runtime llama.node={2}",
                  artifact.string(), tool("").string(), packages));
  CHECK_MESSAGE(checked.status == 0, checked.out);
  const nlohmann::json report = nlohmann::json::parse(checked.out);
  CHECK(report.at("files").size() == 15);
  for (const auto& row : report.at("files")) {
    CAPTURE(row.dump());
    const bool asked = row.at("runtime") != "llama.cpp" || !row.contains("adapter");
    CHECK(row.at("loads") == (asked ? nlohmann::json(true) : nlohmann::json(nullptr)));
    if (asked) CHECK(row.at("generation_tokens_per_second") > 0);
  }
}

void check_family(const std::string& family) {
  CAPTURE(family);
  const ModelSpec spec = spec_of(family);
  const ElasticPlan plan = plan_of(spec);
  const test::ElasticFixture made(spec, plan);
  write_vocabulary(spec.n_vocab, made.reordered() / "tokenizer.gguf");
  const std::vector<int32_t> ids = some_ids(24, spec.n_vocab);
  const at::Tensor input = at::tensor(std::vector<int64_t>(ids.begin(), ids.end()), at::kLong).unsqueeze(0);
  nlohmann::json jobs = nlohmann::json::array();
  std::map<std::string, int> architectures;
  for (const Repair& repair : kRepairs) {
    CAPTURE(repair.name);
    if (repair.bias && spec.qk_norm) continue;  // no graph has both
    fs::remove_all(made.reordered() / "repairs");
    for (const Level& level : plan.levels)
      if (level.nominal < 1 && (repair.adapter || repair.bias))
        save_repairs(
            test::noisy_repairs(
                spec, level,
                {.adapters = repair.adapter, .biases = repair.bias, .everywhere = repair.everywhere}),
            spec, level, repairs_directory(made.reordered(), level.nominal));
    exporter::ExportOptions options;
    options.types = exporter::weight_types_named("f32,f16,q8_0,q4_0,q4_k");
    const fs::path artifact = made.path() / repair.name;
    for (const auto& file : pipeline::write_artifact(made.reordered(), options,
                                                     nlohmann::ordered_json::object(), artifact, false)) {
      if (file.nominal >= 1 && repair.name != std::string("none")) continue;  // same file as without repairs
      CAPTURE(file.type);
      CAPTURE(file.name);
      const fs::path folder = artifact / file.type;
      const fs::path lora = file.adapter ? folder / file.adapter->name : fs::path();
      CHECK(lora.empty() != (repair.adapter && file.nominal < 1));
      ++architectures[file.architecture];
      jobs.push_back({{"file", (folder / file.name).string()},
                      {"lora", lora.empty() ? nlohmann::json(nullptr) : nlohmann::json(lora.string())},
                      {"n_vocab", spec.n_vocab}});
      const at::Tensor expected = test::repaired_logits(folder, file.nominal, input);
      const at::Tensor found = stock_logits(folder / file.name, ids, spec.n_vocab, lora);
      // ggml rounds the inputs of f16 matrices (adapters included) to f16, and those of quantised matrices to
      // 8 bits.
      const double bound = file.type == "f32" && lora.empty() ? 1e-4 : file.type == "f32" ? 1e-2 : 0.05;
      CAPTURE(rms(expected, found));
      CHECK(rms(expected, found) < bound);
    }
  }
  const bool mistral = family == "mistral";
  CHECK(architectures[mistral ? "llama" : family] > 0);
  CHECK(architectures[family == "qwen3" ? "openelm" : "deci"] > 0);
  exporter::ExportOptions packing;
  packing.types = {DType::kQ8_0};
  packing.packed = true;
  pipeline::write_artifact(made.reordered(), packing, nlohmann::ordered_json::object(),
                           made.path() / "packed", false);
  jobs.push_back(
      {{"file", (made.path() / "packed/model.gguf").string()}, {"lora", nullptr}, {"n_vocab", spec.n_vocab}});
  check_loads(jobs, "node-llama-cpp");
  if (has_llama_node()) check_loads(jobs, "llama.node");
  if (family == "qwen2" && has_llama_node()) check_install(made.path() / "adapter/q8_0");
}

}  // namespace

TEST_SUITE("interop") {
  TEST_CASE("interop: every width, family, type and repair gives our logits and loads in three runtimes") {
    if (!has_oracle()) return;
    if (!has_llama_node()) test::skip("@fugood/llama.node is absent, run tests/interop/setup.sh again");
    for (const char* family : {"llama", "mistral", "qwen2", "qwen3"}) check_family(family);
  }
}

}  // namespace elastify
