#include <random>

#include "eval/evaluate.h"
#include "support/decoders.h"
#include "support/errors.h"
#include "support/shared_data.h"

using namespace elastify;
using namespace elastify::test;

namespace {

/// One token per byte, with or without a begin-of-sequence token (1).
class ByteTokenizer : public Tokenizer {
 public:
  explicit ByteTokenizer(bool add_bos) {
    vocabulary_.tokens.resize(96);
    vocabulary_.bos = 1;
    vocabulary_.add_bos = add_bos;
  }
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(2 + static_cast<unsigned char>(c) % 94);
    return ids;
  }
  std::vector<std::vector<int32_t>> encode_all(const std::vector<std::string>& texts) const override {
    std::vector<std::vector<int32_t>> all;
    for (const auto& text : texts) all.push_back(encode(text));
    return all;
  }
  std::string decode(const std::vector<int32_t>&) const override { return ""; }
  const Vocabulary& vocabulary() const override { return vocabulary_; }

 private:
  Vocabulary vocabulary_;
};

struct Score {
  double log_p = 0;
  bool greedy = true;
};

/// Scores one choice on its own, in the plainest way.
Score score(const nn::Decoder& decoder, const Tokenizer& tokenizer, const std::string& context,
            const std::string& continuation, const Widths* widths) {
  std::vector<int32_t> tokens = tokenizer.encode(context + (context.empty() ? "" : " ") + continuation);
  size_t n_context = context.size();
  if (tokenizer.vocabulary().add_bos || context.empty()) {
    tokens.insert(tokens.begin(), 1);
    ++n_context;
  }
  while (tokens.size() > static_cast<size_t>(decoder.spec().max_seq) + 1) {
    tokens.erase(tokens.begin());
    --n_context;
  }
  nn::ForwardOptions options;
  options.widths = widths;
  const at::Tensor ids = at::tensor(tokens).to(at::kLong).unsqueeze(0);
  const auto hidden = decoder.hidden(ids.narrow(1, 0, ids.size(1) - 1), options);
  const auto log_p = at::log_softmax(decoder.logits(hidden)[0], -1);
  Score result;
  for (size_t t = n_context; t < tokens.size(); ++t) {
    const at::Tensor row = log_p[static_cast<int64_t>(t) - 1];
    result.log_p += row[tokens[t]].item<double>();
    result.greedy = result.greedy && row.argmax().item<int64_t>() == tokens[t];
  }
  return result;
}

std::string random_text(std::mt19937_64& random, size_t longest) {
  std::string text;
  const size_t length = 1 + random() % longest;
  for (size_t i = 0; i < length; ++i) text += static_cast<char>('a' + random() % 26);
  return text;
}

}  // namespace

TEST_CASE("multiple choice: results equal those of scoring every choice on its own") {
  const ModelSpec spec = make_tiny_spec("llama");
  const nn::Decoder decoder(tiny_checkpoint(spec), {});
  const Widths narrow = half_widths(spec);
  for (const bool add_bos : {true, false}) {
    for (const Widths* widths : {static_cast<const Widths*>(nullptr), &narrow}) {
      const ByteTokenizer tokenizer(add_bos);
      std::mt19937_64 random(4);
      std::vector<TaskItem> items, items_norm;
      for (int i = 0; i < 60; ++i) {
        TaskItem item;
        const bool shared_context = random() % 3 != 0;
        const std::string context = i == 7 ? "" : random_text(random, i % 10 == 0 ? 90 : 6);
        const size_t n_choices = 2 + random() % 4;
        std::vector<double> sums, means;
        for (size_t c = 0; c < n_choices; ++c) {
          item.contexts.push_back(shared_context ? context : random_text(random, 6));
          item.continuations.push_back(random_text(random, i % 5 == 0 ? 1 : 12));
          sums.push_back(
              score(decoder, tokenizer, item.contexts.back(), item.continuations.back(), widths).log_p);
          means.push_back(sums.back() / static_cast<double>(item.continuations.back().size()));
        }
        item.gold = std::max_element(sums.begin(), sums.end()) - sums.begin();
        items.push_back(item);
        item.gold = std::max_element(means.begin(), means.end()) - means.begin();
        items_norm.push_back(item);
      }
      const auto result = eval::multiple_choice(decoder, tokenizer, items, widths);
      CHECK(result.items == 60);
      CHECK(result.accuracy == 1);
      CHECK(eval::multiple_choice(decoder, tokenizer, items_norm, widths).accuracy_norm == 1);
    }
  }
}

TEST_CASE("multiple choice: a single choice is right when it is the greedy continuation") {
  const nn::Decoder decoder(tiny_checkpoint(make_tiny_spec("llama")), {});
  const ByteTokenizer tokenizer(true);
  std::mt19937_64 random(9);
  std::vector<TaskItem> items;
  int n_greedy = 0;
  for (int i = 0; i < 200; ++i) {
    TaskItem item;
    item.contexts = {random_text(random, 5)};
    item.continuations = {random_text(random, 1)};
    n_greedy += score(decoder, tokenizer, item.contexts[0], item.continuations[0], nullptr).greedy ? 1 : 0;
    items.push_back(item);
  }
  const auto result = eval::multiple_choice(decoder, tokenizer, items, nullptr);
  CHECK(result.accuracy == doctest::Approx(n_greedy / 200.0));
  CHECK(result.accuracy_norm == result.accuracy);
}

TEST_CASE("multiple choice: invalid items are refused with a message") {
  const nn::Decoder decoder(tiny_checkpoint(make_tiny_spec("llama")), {});
  const ByteTokenizer tokenizer(true);
  CHECK(message_of([&] { eval::multiple_choice(decoder, tokenizer, {}, nullptr); }) == "task: no items");
  CHECK(message_of([&] {
          eval::multiple_choice(decoder, tokenizer, {{{"a"}, {"b"}, 1}}, nullptr);
        }) == "task item 0: 1 contexts, 1 continuations, gold 1");
}
