#include "pipeline/repairs.h"

#include <set>

#include "base/hash.h"
#include "export/lora_gguf.h"
#include "io/gguf.h"
#include "pipeline/fitting_text.h"
#include "pipeline/reorder_model.h"
#include "pipeline/run.h"
#include "pipeline/verify.h"
#include "recover/closed_form.h"
#include "recover/level_repairs.h"
#include "support/batches.h"
#include "support/errors.h"
#include "support/repaired.h"
#include "support/shared_data.h"

namespace elastify::pipeline {
namespace {

using test::RepairedFixture;

nlohmann::json manifest_of(const RepairedFixture& made) {
  return nlohmann::json::parse(read_text(made.artifact() / "manifest.json"));
}

std::string refutation(const fs::path& output, const fs::path& model) {
  for (const Finding& finding : verify(output, model, {}, {}))
    if (!finding.holds) return finding.claim + ": " + finding.detail;
  return "";
}
std::string detail_of(const fs::path& output, const fs::path& model, const std::string& claim) {
  for (const Finding& finding : verify(output, model, {}, {}))
    if (finding.claim.find(claim) == 0) return finding.detail;
  return "no such claim";
}

using test::NoisyParts;

constexpr NoisyParts kKinds[] = {
    {true, false, false, false},       {false, true, false, false},       {true, true, false, false},
    {false, false, true, false},       {false, true, true, false},        {false, false, false, true},
    {true, false, false, true},        {false, true, true, true},         {true, false, false, false, true},
    {false, true, false, false, true}, {false, false, true, false, true}, {true, true, true, true, true}};

/// Fits repairs of every layer, saves them and loads them again.
at::Tensor logits_with_fits(const nn::Decoder& decoder, const at::Tensor& ids, const Level& level,
                            Compensation compensation, const fs::path& path) {
  recover::ClosedFormOptions options;
  options.compensation = compensation;
  options.rank = 1000;
  options.sequential = options.whole_stream = true;  // adapters and baked weights in the same way
  const ModelSpec& spec = decoder.spec();
  save_repairs(
      recover::to_host(recover::fit_level(decoder, {ids}, level.widths, options), spec, level, compensation),
      spec, level, path);
  const auto repairs = recover::to_tensors(load_repairs(path, spec, level), decoder);
  const c10::NoGradGuard no_gradients;
  nn::ForwardOptions forward;
  forward.widths = &level.widths;
  forward.repairs = &repairs;
  return decoder.logits(decoder.hidden(ids, forward));
}

TEST_SUITE("pipeline") {
  TEST_CASE("repairs: an adapter of full rank out of its file gives the logits of the baked level") {
    const ModelSpec spec = test::make_tiny_spec("llama");
    const nn::Decoder decoder(test::tiny_checkpoint(spec), {});
    const at::Tensor ids = test::random_ids(8, 32, spec.n_vocab);
    const Level level = make_level(spec, 0.5, test::half_widths(spec));
    const test::TemporaryDirectory directory;
    for (const auto& [baked, adapter] : {std::pair{Compensation::kBaked, Compensation::kAdapter},
                                         std::pair{Compensation::kBakedBias, Compensation::kAdapterBias}}) {
      const at::Tensor expected = logits_with_fits(decoder, ids, level, baked, directory / name_of(baked));
      const at::Tensor found = logits_with_fits(decoder, ids, level, adapter, directory / name_of(adapter));
      CHECK(test::relative_difference(found, expected) < 1e-4);
    }
  }

  TEST_CASE("repairs: an exported level with its adapter gives the reordered directory's logits") {
    for (const auto& variant : test::tiny_variants()) {
      if (variant.spec.qk_norm && variant.spec.qkv_bias) continue;  // nothing to export
      for (const auto method : {plan::Method::kUniform, plan::Method::kAnchors, plan::Method::kDp}) {
        if (variant.spec.qk_norm && !variant.spec.tied && method != plan::Method::kUniform) continue;
        for (const NoisyParts& kind : kKinds) {
          if (kind.biases && variant.spec.qk_norm) continue;  // refused, below
          CAPTURE(variant.name);
          CAPTURE(kind.adapters);
          CAPTURE(kind.biases);
          CAPTURE(kind.weights);
          CAPTURE(kind.norm);
          CAPTURE(kind.everywhere);
          const RepairedFixture made(variant.spec, method, kind);
          made.export_as(DType::kF32);
          const at::Tensor ids = test::random_ids(1, 8, variant.spec.n_vocab);
          const at::Tensor expected = test::repaired_logits(made.reordered(), 0.6, ids);
          CHECK(test::relative_difference(test::repaired_logits(made.artifact(), 0.6, ids), expected) < 1e-4);
          CHECK(test::relative_difference(test::repaired_logits(made.reordered(), 0.6, ids, false),
                                          expected) > 1e-2);
          CHECK(refutation(made.reordered(), made.model()) == "");
          CHECK(refutation(made.artifact(), made.model()) == "");
        }
      }
    }
  }

  TEST_CASE("repairs: the manifest lists adapters with their ranks, and says what repairs a level") {
    const RepairedFixture made(test::make_tiny_spec("llama"), plan::Method::kUniform, {true, true, false});
    made.export_as(DType::kF16, DType::kF16);
    const auto manifest = manifest_of(made);
    REQUIRE(manifest.at("adapters").size() == 2);
    const auto& adapter = manifest.at("adapters")[1];
    CHECK(adapter.at("name") == "lora-060.gguf");
    CHECK(adapter.at("sha256") == sha256_file(made.artifact() / "lora-060.gguf"));
    CHECK(adapter.at("bytes") == fs::file_size(made.artifact() / "lora-060.gguf"));
    CHECK(adapter.at("ranks").at("blk.0.attn_output.weight") == 3);
    CHECK(adapter.at("ranks").at("blk.1.attn_output.weight") == 1);
    CHECK(adapter.at("ranks").size() == 3);
    for (const auto& file : manifest.at("files"))
      CHECK(file.at("compensation") == (file.at("level") == 1.0 ? "none" : "adapter+bias"));
    const GgufFile lora = GgufFile::open(made.artifact() / "lora-060.gguf");
    CHECK(std::get<float>(*lora.metadata().find("adapter.lora.alpha")) == 3);
    CHECK(lora.metadata().require_string("general.type") == "adapter");
    CHECK(lora.metadata().require_string("general.architecture") == "llama");
    int64_t n = 0;
    for (const TensorInfo& tensor : lora.tensors()) {
      CHECK(tensor.dtype == DType::kF16);
      n += n_elements(tensor.shape);
    }
    CHECK(adapter.at("n_params") == n);
    const GgufFile level = GgufFile::open(made.artifact() / "level-060.gguf");
    CHECK(level.contains("blk.0.ffn_down.bias"));
    CHECK_FALSE(level.contains("blk.0.ffn_gate.bias"));
    CHECK_FALSE(GgufFile::open(made.artifact() / "full.gguf").contains("blk.0.ffn_down.bias"));
    CHECK(level.metadata().require_string("elastify.repairs") == "bias");
    CHECK(detail_of(made.artifact(), made.model(), "repairs have the shapes") ==
          "lora-060.gguf: adapter: 3 adapters of rank 1 to 3; lora-080.gguf: adapter: 3 adapters of rank 1 "
          "to 3");
    CHECK(detail_of(made.reordered(), made.model(), "repairs have the shapes")
              .find("level-060: adapter+bias: 3 adapters of rank 1 to 3, 3 biases") == 0);
  }

  TEST_CASE("repairs: tensors of a level's own are named where they are not the usual ones, and checked") {
    const ModelSpec spec = test::make_tiny_spec("llama");
    const RepairedFixture made(spec, plan::Method::kUniform, {false, true, true, true, true});
    made.export_as(DType::kF32);
    const auto file = made.artifact() / "level-060.gguf";
    const exporter::HeldRepairs held = held_repairs(file);
    CHECK(name_of(held.parts) == "baked+bias+norm");
    // Five matrices and two norms of two layers, and the biases that these matrices have.
    const LevelRepairs repairs = *find_repairs(
        made.reordered(), spec, find_level(load_plan(made.reordered() / "plan.json", spec), 0.6));
    size_t n_biases = 0;
    for (const LayerRepairs& layer : repairs.layers)
      for (const auto& [role, repair] : layer)
        n_biases += repair.bias && role != Role::kAttnOut && role != Role::kDown ? 1 : 0;
    CHECK(held.own_tensors.size() == 14 + n_biases);
    CHECK(held.own_tensors.front() == "blk.0.attn_norm.weight");
    const std::string proved = detail_of(made.artifact(), made.model(), "every level is a prefix");
    CAPTURE(proved);
    for (const char* part :
         {"own weights: 14 tensors, checked by hash only", "own biases: ", "own norms: 5 tensors"})
      CHECK(proved.find(fmt::format("level-060.gguf: {}", part)) != std::string::npos);
    // A tensor that is not listed must equal the prefix.
    const RepairedFixture plain(spec, plan::Method::kUniform, {false, false, true});
    plain.export_as(DType::kF32);
    CHECK(held_repairs(plain.artifact() / "level-060.gguf").own_tensors.empty());
  }

  TEST_CASE("repairs: q, k and v of one tensor have one adapter, which is taken apart again") {
    const ModelSpec spec = test::make_tiny_spec("qwen3", {.tied = true});
    const RepairedFixture made(spec, plan::Method::kDp, {true, false, false, false, true});
    made.export_as(DType::kF32);
    const GgufFile lora = GgufFile::open(made.artifact() / "lora-060.gguf");
    CHECK(lora.metadata().require_string("general.architecture") == "openelm");
    CHECK(lora.contains("blk.0.attn_qkv.weight.lora_a"));
    CHECK_FALSE(lora.contains("blk.0.attn_q.weight.lora_a"));
    const Level level = find_level(load_plan(made.reordered() / "plan.json", spec), 0.6);
    const LevelRepairs before = *find_repairs(made.reordered(), spec, level);
    const Checkpoint model = Checkpoint::open(made.artifact() / "level-060.gguf");
    const LevelRepairs after = *find_adapter(made.artifact(), model, 0.6);
    for (const TensorSpec* tensor : repairable_tensors(spec, level.widths)) {
      CAPTURE(tensor->name);
      const TensorRepair *a = before.find(*tensor), *b = after.find(*tensor);
      REQUIRE((a == nullptr) == (b == nullptr));
      if (a == nullptr) continue;
      CHECK(a->a->shape == b->a->shape);
      CHECK(test::same_bytes(*a->a, *b->a));
      // Alpha is the largest rank, so b is scaled on export and scaled back on import.
      const auto expected = test::values_of(*a->b), found = test::values_of(*b->b);
      REQUIRE(expected.size() == found.size());
      for (size_t i = 0; i < found.size(); ++i) CHECK(found[i] == doctest::Approx(expected[i]));
    }
    CHECK(detail_of(made.artifact(), made.model(), "repairs have the shapes")
              .find("lora-060.gguf: adapter: ") == 0);
  }

  TEST_CASE("repairs: weights of a level's own are said to be so, never passed as a prefix") {
    const RepairedFixture made(test::make_tiny_spec("llama"), plan::Method::kUniform, {false, false, true});
    made.export_as(DType::kF32);
    CHECK(detail_of(made.artifact(), made.model(), "every level is a prefix")
              .find("level-060.gguf: own weights: 4 tensors, checked by hash only") != std::string::npos);
    CHECK(
        detail_of(made.reordered(), made.model(), "repairs have the shapes").find("own weights: 4 tensors") !=
        std::string::npos);
    // The tensors of a file that states no repairs must equal the prefix.
    const RepairedFixture plain(test::make_tiny_spec("llama"), plan::Method::kUniform, {true, false, false});
    plain.export_as(DType::kF32);
    CHECK(detail_of(plain.artifact(), plain.model(), "every level is a prefix") == "2 level files");
    fs::remove(plain.artifact() / "lora-060.gguf");
    CHECK(refutation(plain.artifact(), plain.model()).find("lora-060.gguf: listed in manifest.json") !=
          std::string::npos);
  }

  TEST_CASE("repairs: qwen2 with biases goes out as deci, qwen3 is refused before anything is written") {
    const RepairedFixture qwen2(test::make_tiny_spec("qwen2"), plan::Method::kUniform, {false, true, false});
    qwen2.export_as(DType::kF32);
    for (const auto& file : manifest_of(qwen2).at("files"))
      CHECK(file.at("architecture") == (file.at("level") == 1.0 ? "qwen2" : "deci"));
    for (const auto method : {plan::Method::kUniform, plan::Method::kAnchors}) {
      const RepairedFixture qwen3(test::make_tiny_spec("qwen3", {.tied = true}), method, {true, true, false});
      CHECK(test::message_of([&] {
              qwen3.export_as(DType::kF32);
            }).find("level-080: compensation 'adapter+bias': no architecture of stock llama.cpp") == 0);
      CHECK(test::hint_of([&] { qwen3.export_as(DType::kF32); }).find("--compensate adapter or baked") !=
            std::string::npos);
      CHECK_FALSE(fs::exists(qwen3.artifact()));
    }
  }

  TEST_CASE("repairs: text that would be one batch is parted, so that some of it is held out") {
    const OpenModel model{test::tiny_checkpoint(test::make_tiny_spec("llama")), std::nullopt, std::nullopt};
    const nn::Decoder decoder(model.checkpoint, {});
    TextOptions text;
    text.data = {"self"};
    text.seq = 16;
    text.batch = 8;
    for (const auto& [n_sequences, sizes] : std::vector<std::pair<int64_t, std::vector<int64_t>>>{
             {1, {1}}, {2, {1, 1}}, {8, {2, 2, 2, 2}}, {9, {8, 1}}, {16, {8, 8}}}) {
      CAPTURE(n_sequences);
      text.tokens = n_sequences * text.seq;
      std::vector<int64_t> found;
      for (const at::Tensor& batch : fitting_batches(model, decoder, text)) {
        found.push_back(batch.size(0));
        CHECK(batch.size(1) == text.seq);
      }
      CHECK(found == sizes);
    }
  }

  TEST_CASE("repairs: guarded fits read no document that they are judged by; short text has no repairs") {
    const test::TemporaryDirectory directory;
    const Vocabulary vocabulary =
        load_vocabulary(fs::path(ELASTIFY_SOURCE_DIR) / "tests/data/tokenizers/gpt-2");
    test::TinyOptions size;
    size.n_vocab = vocabulary.size();
    const ModelSpec spec = test::make_tiny_spec("llama", size);
    const OpenModel model{test::tiny_checkpoint(spec), vocabulary, std::nullopt};
    const nn::Decoder decoder(model.checkpoint, {});
    // Every document repeats one letter, so that its tokens identify it.
    TextOptions text;
    char letter = 'a';
    for (const char* name : {"one.jsonl", "other.jsonl"}) {
      std::string lines;
      for (int i = 0; i < 12; ++i) lines += fmt::format("{{\"text\": \"{}\"}}\n", std::string(300, letter++));
      write_text(directory / name, lines);
      text.data.push_back((directory / name).string());
      if (letter > 'x') letter = 'A';
    }
    text.seq = 16;
    text.batch = 2;
    text.tokens = 0;
    const FittingText parts = guarded_text(model, decoder, text);
    REQUIRE(parts.held_out.sources.size() == 2);
    const auto ids_of = [&](const std::vector<at::Tensor>& batches) {
      std::set<int64_t> ids;
      for (const at::Tensor& batch : batches)
        for (int64_t i = 0; i < batch.numel(); ++i) ids.insert(batch.view({-1})[i].item<int64_t>());
      if (vocabulary.eos) ids.erase(*vocabulary.eos);
      return ids;
    };
    const std::set<int64_t> fitted = ids_of(parts.batches);
    CHECK(fitted.size() > 20);
    for (const auto& source : parts.held_out.sources) {
      const std::set<int64_t> judging = ids_of(source);
      CHECK(!judging.empty());
      for (const int64_t id : judging) CHECK(fitted.count(id) == 0);
    }

    write_text(directory / "short.txt", "a few words, and no more than that");
    text.data = {(directory / "short.txt").string()};
    text.seq = 4;
    recover::ClosedFormOptions options;
    options.compensation = Compensation::kBaked;
    const Level level = make_level(spec, 0.5, test::half_widths(spec));
    const auto count = [&](bool guard) {
      options.guard = guard;
      size_t n = 0;
      const auto repairs = fit_repairs(model, decoder, {level}, options, text);
      for (const auto& layer : repairs.front().layers) n += layer.size();
      return n;
    };
    CHECK(count(false) > 0);
    CHECK(count(true) == 0);
  }

  TEST_CASE(
      "repairs: a level whose repairs the guard drops has none on disk, and its name says what is kept") {
    const test::TemporaryDirectory directory;
    const ModelSpec spec = test::make_tiny_spec("llama");
    test::write_tiny_hf_model(spec, directory / "model", 1);
    const OpenModel model = open_model(directory / "model", {});
    RunConfig config;
    config.reorder.metric = Metric::kRandom;
    config.reorder.plan.levels = {0.5, 1.0};
    config.reorder.plan.grid = 8;
    config.reorder.repair.compensation = compensation_named("baked+norm");
    config.reorder.repair.ridge = 1e-4;
    config.profile.text = {.data = {"self"}, .tokens = 2 * 16, .seq = 16, .batch = 1};  // noise
    const Calibration calibration = calibration_of(config);
    for (const bool guard : {false, true}) {
      CAPTURE(guard);
      config.reorder.repair.guard = guard;
      const fs::path little = directory / (guard ? "little-guarded" : "little");
      write_reordered(model, {nullptr, nullptr, &calibration}, config, little, false);
      const fs::path repairs = repairs_directory(little, 0.5);
      if (!guard)
        CHECK(find_repairs(little, spec, load_plan(little / "plan.json", spec).levels[0])->compensation ==
              compensation_named("baked+norm"));
      if (guard && fs::exists(repairs))
        CHECK(find_repairs(little, spec, load_plan(little / "plan.json", spec).levels[0])->compensation ==
              Compensation::kNorm);
      CHECK(refutation(little, directory / "model") == "");
    }
  }

  TEST_CASE("repairs: an adapter that does not belong to the level's file is refused by name") {
    const RepairedFixture made(test::make_tiny_spec("llama"), plan::Method::kUniform, {true, false, false});
    made.export_as(DType::kF32);
    const at::Tensor ids = test::random_ids(1, 8, 96);
    fs::copy_file(made.artifact() / "lora-080.gguf", made.artifact() / "lora-060.gguf",
                  fs::copy_options::overwrite_existing);
    const std::string said = test::message_of([&] { test::repaired_logits(made.artifact(), 0.6, ids); });
    CAPTURE(said);
    CHECK(said.find("lora-060.gguf: ") != std::string::npos);
    CHECK(said.find("lora_A.weight: expected shape [") != std::string::npos);
    fs::copy_file(made.artifact() / "level-080.gguf", made.artifact() / "lora-060.gguf",
                  fs::copy_options::overwrite_existing);
    CHECK(test::message_of([&] {
            test::repaired_logits(made.artifact(), 0.6, ids);
          }).find("general.type: expected \"adapter\", got \"model\"") != std::string::npos);
    made.export_as(DType::kF32);
    fs::create_directories(made.reordered() / "repairs/level-033");
    CHECK(refutation(made.reordered(), made.model()).find("repairs/level-033: the plan has no such level") !=
          std::string::npos);
  }

  TEST_CASE("repairs: a run fits, exports and evaluates them, and fits again when an option changes") {
    if (!test::has_shared_data()) return;
    const test::TemporaryDirectory directory;
    RunConfig config;
    config.model = (test::shared_data() / "models/stories260K/stories260K.bin").string();
    config.tokenizer = (test::shared_data() / "models/stories260K/tok512.model").string();
    config.output = (directory / "out").string();
    config.profile.text.data = {
        (test::shared_data() / "datasets/tinystories/tinystories_v2gpt4_10k_lines.txt").string()};
    config.profile.text.tokens = 4096;
    config.profile.text.seq = 64;
    config.reorder.plan.levels = {0.6, 1.0};
    config.eval.text.data = {
        (test::shared_data() / "datasets/tinystories/tinystories_v1_valid_head_0.8MB.txt").string()};
    config.eval.text.tokens = 1024;
    config.eval.text.seq = 64;
    config.eval.baseline = false;
    const double plain = run(config, false).at("levels")[0].at("perplexity");
    config.reorder.repair.compensation = Compensation::kAdapterBias;
    config.reorder.repair.rank = 8;
    const auto report = run(config, false);
    CHECK(report.at("levels")[0].at("perplexity").get<double>() < plain);
    CHECK(report.at("levels")[0].at("repairs") == "adapter+bias");
    CHECK(report.at("levels")[1].at("repairs") == "none");
    CHECK(fs::exists(directory / "out/artifact/lora-060.gguf"));
    const fs::path adapter = directory / "out/reordered/repairs/level-060/adapter_model.safetensors";
    const auto profiled = fs::last_write_time(directory / "out/profile.h5"),
               fitted = fs::last_write_time(adapter);
    const std::string before = sha256_file(adapter);
    CHECK(run(config, false) == report);
    CHECK(fs::last_write_time(adapter) == fitted);
    config.reorder.repair.rank = 4;
    run(config, false);
    CHECK(fs::last_write_time(directory / "out/profile.h5") == profiled);
    CHECK(sha256_file(adapter) != before);
    config.reorder.repair.rank = 8;
    run(config, false);
    CHECK(sha256_file(adapter) == before);
    config.reorder.repair.compensation = Compensation::kNone;
    run(config, false);
    CHECK_FALSE(fs::exists(directory / "out/reordered/repairs"));
    CHECK_FALSE(fs::exists(directory / "out/artifact/lora-060.gguf"));
  }
}

}  // namespace
}  // namespace elastify::pipeline
