// Compares the perplexity of `elastify eval` with stock llama.cpp's on the same windows of tokens.

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>

#include "nn/decoder.h"
#include "pipeline/reorder_model.h"
#include "support/llama_oracle.h"
#include "support/program.h"
#include "support/shared_data.h"

namespace elastify {
namespace {

using namespace interop;

constexpr int64_t kWindow = 256, kTokens = 4096;

struct Case {
  const char* type;
  double bound;  ///< of the relative difference
};

double stock_perplexity(const fs::path& model, const TokenBatches& batches) {
  const test::TemporaryDirectory work;
  std::ofstream out(work / "ids", std::ios::binary);
  for (const auto& sequence : batches.sequences)
    out.write(reinterpret_cast<const char*>(sequence.data()),
              static_cast<std::streamsize>(sequence.size() * sizeof(int32_t)));
  out.close();
  REQUIRE(shell(fmt::format("'{}' '{}' --nll {} '{}' >'{}' 2>'{}'", tool("llama_oracle").string(),
                            model.string(), batches.seq_len, (work / "ids").string(), (work / "out").string(),
                            (work / "err").string())) == 0);
  std::istringstream lines(read_text(work / "out"));
  std::string word;
  double predicted = 0, nll = 0;
  lines >> word >> predicted >> word >> nll;
  REQUIRE(predicted ==
          static_cast<double>(batches.n_tokens()) - static_cast<double>(batches.sequences.size()));
  return std::exp(nll / predicted);
}

}  // namespace

TEST_SUITE("interop") {
  TEST_CASE("interop: perplexity of every level and type is stock llama.cpp's") {
    if (!has_oracle() || !test::has_shared_data()) return;
    const fs::path shared = test::shared_data();
    const std::string text = (shared / "datasets/tinystories/tinystories_v2gpt4_10k_lines.txt").string();
    const test::TemporaryDirectory work;
    const test::Outcome reordered = test::run_elastify(
        fmt::format("reorder {0}/models/stories3M/stories3M-q80.bin --preset none --tokenizer "
                    "{0}/models/stories3M/tok4096.model --data {1} "
                    "--tokens 2048 --plan uniform --levels 0.8 -o {2}/reordered",
                    shared.string(), text, work.path().string()));
    REQUIRE_MESSAGE(reordered.status == 0, reordered.err);
    const test::Outcome exported = test::run_elastify(
        fmt::format("export {0}/reordered --type f32,q8_0,q5_1,q4_0 -o {0}/artifact", work.path().string()));
    REQUIRE_MESSAGE(exported.status == 0, exported.err);
    const fs::path artifact = work / "artifact";
    const pipeline::OpenModel model = pipeline::open_model(artifact / "f32", {}, 1.0);
    const nn::Decoder decoder(model.checkpoint, {});
    const TokenBatches batches =
        pipeline::load_batches(model, decoder, {.data = {text}, .tokens = kTokens, .seq = kWindow}, false);
    for (const Case& each :
         std::initializer_list<Case>{{"f32", 1e-3}, {"q8_0", 5e-3}, {"q5_1", 5e-3}, {"q4_0", 5e-3}})
      for (const char* level : {"1", "0.8"}) {
        CAPTURE(std::string(each.type));
        CAPTURE(std::string(level));
        const fs::path folder = artifact / each.type;
        const test::Outcome evaluated =
            test::run_elastify(fmt::format("eval {} --level {} --data {} --tokens {} --seq {} --json",
                                           folder.string(), level, text, kTokens, kWindow));
        REQUIRE_MESSAGE(evaluated.status == 0, evaluated.err);
        const auto ours = nlohmann::json::parse(evaluated.out).at("perplexity").get<double>();
        const double stock =
            stock_perplexity(pipeline::PlainFiles::of(folder, {})->file(std::atof(level)), batches);
        const double difference = ours / stock - 1;
        MESSAGE(fmt::format("{:<5} level {:<4} elastify {:>10.4f} llama.cpp {:>10.4f} {:>+8.3f} %", each.type,
                            level, ours, stock, 100 * difference));
        CHECK(std::abs(difference) < each.bound);
      }
  }
}

}  // namespace elastify
