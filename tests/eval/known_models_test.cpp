// Figures of these models that were measured elsewhere.

#include <cmath>
#include <sstream>

#include "base/file.h"
#include "data/tokenizer.h"
#include "support/decoders.h"
#include "support/shared_data.h"

using namespace elastify;

namespace {

/// Cuts a text into windows of whole paragraphs, as many as fit into `limit` tokens together with a bos.
std::vector<std::string> windows_of(const Tokenizer& tokenizer, const std::string& text, size_t limit) {
  std::vector<std::string> windows;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.empty()) continue;
    const std::string longer = windows.empty() ? line : windows.back() + "\n\n" + line;
    if (!windows.empty() && tokenizer.encode(longer).size() < limit) {
      windows.back() = longer;
    } else {
      windows.push_back(line);
    }
  }
  return windows;
}

double bits_per_byte(const std::string& model, const std::string& tokenizer_file) {
  const fs::path models = test::shared_data() / "models";
  const auto tokenizer = make_tokenizer(load_vocabulary(models / model, models / tokenizer_file));
  std::string text =
      read_text(test::shared_data() / "datasets/tinystories/tinystories_v1_valid_head_0.8MB.txt");
  text.resize(text.rfind('\n', 200000));
  const torch::NoGradGuard no_grad;
  const nn::Decoder decoder(Checkpoint::open(models / model), {});
  double nats = 0, n_bytes = 0;
  for (const std::string& window : windows_of(*tokenizer, text, 100)) {
    std::vector<int64_t> ids{tokenizer->vocabulary().bos.value()};
    for (const int32_t id : tokenizer->encode(window)) ids.push_back(id);
    nats += decoder.sequence_nll(at::tensor(ids).unsqueeze(0)).item<double>();
    n_bytes += static_cast<double>(window.size());
  }
  return nats / std::log(2.0) / n_bytes;
}

}  // namespace

TEST_CASE(
    "known models: stories3M has 0.682 bits per byte on the tinystories validation text, stories260K 1.042") {
  if (!test::has_shared_data()) return;
  CHECK(bits_per_byte("stories3M/stories3M-q80.bin", "stories3M/tok4096.model") ==
        doctest::Approx(0.682).epsilon(0.02));
  CHECK(bits_per_byte("stories260K/stories260K.bin", "stories260K/tok512.model") ==
        doctest::Approx(1.042).epsilon(0.02));
}
