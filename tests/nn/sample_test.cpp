#include "nn/sample.h"

#include "support/decoders.h"

using namespace elastify;
using namespace elastify::test;

TEST_CASE("sample: sequences begin as told, stay in the vocabulary, and are the same for a seed") {
  const nn::Decoder decoder(tiny_checkpoint(make_tiny_spec("llama")), {});
  const auto sequences = nn::sample_sequences(decoder, 5, 20, 7, 3);
  REQUIRE(sequences.size() == 5);
  for (const auto& sequence : sequences) {
    REQUIRE(sequence.size() == 20);
    CHECK(sequence[0] == 7);
    for (const int32_t id : sequence) CHECK((id >= 0 && id < 96));
  }
  CHECK(sequences == nn::sample_sequences(decoder, 5, 20, 7, 3));
  CHECK(sequences != nn::sample_sequences(decoder, 5, 20, 7, 4));
}

TEST_CASE("sample: tokens come as often as the model says") {
  const nn::Decoder decoder(tiny_checkpoint(make_tiny_spec("qwen3")), {});
  constexpr int64_t kSamples = 20000;
  at::Tensor counts = at::zeros({96}, at::kDouble);
  for (const auto& sequence : nn::sample_sequences(decoder, kSamples, 2, 7, 1)) counts[sequence[1]] += 1;
  const at::Tensor p =
      at::softmax(decoder.logits(decoder.hidden(at::full({1, 1}, 7, at::kLong)))[0][0], -1).to(at::kDouble);
  const at::Tensor deviation = (counts / kSamples - p) / at::sqrt(p * (1 - p) / kSamples + 1e-12);
  CHECK(deviation.abs().max().item<double>() < 5);
}
