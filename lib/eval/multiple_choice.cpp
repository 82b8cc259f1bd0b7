#include <torch/torch.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <span>

#include "base/error.h"
#include "base/progress.h"
#include "eval/evaluate.h"
#include "nn/torch_error.h"

namespace elastify::eval {
namespace {

constexpr int64_t kTokensPerPass = 2048;  ///< in a batch, padding included
constexpr int64_t kLogitRows = 128;

/// One choice of an item as tokens. Its score is the log-likelihood of `continuation` after `context`.
struct Request {
  std::vector<int32_t> context;       ///< at least one token
  std::vector<int32_t> continuation;  ///< may be empty: then log_p is 0
  double log_p = 0;
  bool greedy = true;  ///< whether every token is the most likely one
};

bool is_space(char c) {
  return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

/// Returns the context, and context and continuation together. White space at the context's end belongs to
/// the continuation, because tokens carry their space in front.
/// Source: EleutherAI/lm-evaluation-harness, lm_eval/api/model.py, _encode_pair
std::pair<std::string, std::string> join_texts(std::string context, const std::string& continuation) {
  size_t end = context.size();
  while (end > 0 && is_space(context[end - 1])) --end;
  const bool needs_space = end == context.size() && (continuation.empty() || !is_space(continuation[0]));
  std::string whole = end == 0 ? continuation : context + (needs_space ? " " : "") + continuation;
  context.resize(end);
  return {std::move(context), std::move(whole)};
}

/// Returns the token that a sequence starts with, so that its first text token is predicted, too.
std::optional<int64_t> prefix_token(const Vocabulary& vocabulary, bool empty_context) {
  if (vocabulary.add_bos && vocabulary.bos) return vocabulary.bos;
  if (!empty_context) return std::nullopt;
  return vocabulary.bos ? vocabulary.bos : vocabulary.eos;
}

std::vector<Request> make_requests(const Tokenizer& tokenizer, const std::vector<TaskItem>& items,
                                   int64_t max_seq) {
  std::vector<std::string> texts;
  for (size_t i = 0; i < items.size(); ++i) {
    const TaskItem& item = items[i];
    const auto n_choices = static_cast<int64_t>(item.continuations.size());
    if (n_choices == 0 || item.contexts.size() != item.continuations.size() || item.gold < 0 ||
        item.gold >= n_choices)
      fail("task item {}: {} contexts, {} continuations, gold {}", i, item.contexts.size(), n_choices,
           item.gold);
    for (size_t c = 0; c < item.contexts.size(); ++c) {
      auto [context, whole] = join_texts(item.contexts[c], item.continuations[c]);
      texts.push_back(std::move(context));
      texts.push_back(std::move(whole));
    }
  }
  const auto encoded = tokenizer.encode_all(texts);
  std::vector<Request> requests;
  for (size_t i = 0; i < encoded.size(); i += 2) {
    const auto &context = encoded[i], &whole = encoded[i + 1];
    const auto common = std::mismatch(context.begin(), context.end(), whole.begin(), whole.end()).second;
    std::vector<int32_t> tokens;
    const auto prefix = prefix_token(tokenizer.vocabulary(), common == whole.begin());
    if (prefix) tokens.push_back(static_cast<int32_t>(*prefix));
    tokens.insert(tokens.end(), whole.begin(), whole.end());
    int64_t n_context = std::max<int64_t>(1, (common - whole.begin()) + (prefix ? 1 : 0));
    // The last token is only predicted, never fed in.
    if (const int64_t excess = static_cast<int64_t>(tokens.size()) - 1 - max_seq; max_seq > 0 && excess > 0) {
      tokens.erase(tokens.begin(), tokens.begin() + excess);
      n_context = std::max<int64_t>(1, n_context - excess);
    }
    if (tokens.empty())
      fail("task item: a choice without text, and no begin-of-sequence token to start with");
    requests.push_back(
        {{tokens.begin(), tokens.begin() + n_context}, {tokens.begin() + n_context, tokens.end()}});
  }
  return requests;
}

/// Adds the log p of the targets, given their hidden states, to the requests that own the rows.
void score_rows(const nn::Decoder& decoder, const at::Tensor& rows, std::span<const int64_t> targets,
                std::span<Request* const> owners) {
  for (int64_t first = 0; first < rows.size(0); first += kLogitRows) {
    const int64_t n = std::min(kLogitRows, rows.size(0) - first);
    const at::Tensor logits = decoder.logits(rows.narrow(0, first, n)).to(at::kFloat);
    const at::Tensor ids = at::tensor(at::IntArrayRef(targets.data() + first, static_cast<size_t>(n)))
                               .to(logits.device())
                               .unsqueeze(1);
    const at::Tensor target_logits = logits.gather(1, ids);
    const at::Tensor log_p =
        (target_logits - logits.logsumexp(1, true)).to(at::kCPU, at::kDouble).contiguous();
    const at::Tensor greedy = (logits.argmax(1, true) == ids).to(at::kCPU).contiguous();
    for (int64_t i = 0; i < n; ++i) {
      Request& request = *owners[static_cast<size_t>(first + i)];
      request.log_p += log_p.data_ptr<double>()[i];
      request.greedy = request.greedy && greedy.data_ptr<bool>()[i];
    }
  }
}

/// Choices with the same context, which is fed in once for all of them.
struct Group {
  std::vector<Request*> requests;
  const std::vector<int32_t>& context() const { return requests[0]->context; }
  size_t n_read() const {  ///< tokens fed in for the longest continuation; its last token is not
    size_t longest = 1;
    for (const Request* request : requests) longest = std::max(longest, request->continuation.size());
    return longest - 1;
  }
};

/// Groups requests by context. The groups are sorted by the context's length, then by the continuations'.
std::vector<Group> group_requests(std::vector<Request>& requests) {
  std::map<std::span<const int32_t>, Group, decltype([](auto a, auto b) {
             if (a.size() != b.size()) return a.size() < b.size();
             return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
           })>
      by_context;
  for (Request& request : requests) by_context[request.context].requests.push_back(&request);
  std::vector<Group> groups;
  for (auto& [context, group] : by_context) groups.push_back(std::move(group));
  std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) {
    return std::pair(a.context().size(), a.n_read()) < std::pair(b.context().size(), b.n_read());
  });
  return groups;
}

/// Scores groups whose contexts have the same length. The contexts are one batch. The continuations, padded
/// on the right, are another batch that reads the keys and values of the contexts.
void score_groups(const nn::Decoder& decoder, std::span<const Group> groups,
                  const nn::ForwardOptions& options) {
  const auto n_groups = static_cast<int64_t>(groups.size());
  const auto n_context = static_cast<int64_t>(groups[0].context().size());
  const auto longs = at::TensorOptions().dtype(at::kLong);
  at::Tensor context_ids = at::empty({n_groups, n_context}, longs);
  std::vector<Request*> rows;
  std::vector<int64_t> group_of_row;
  int64_t n_read = 0;
  for (int64_t g = 0; g < n_groups; ++g) {
    const Group& group = groups[static_cast<size_t>(g)];
    std::copy(group.context().begin(), group.context().end(),
              context_ids.data_ptr<int64_t>() + g * n_context);
    rows.insert(rows.end(), group.requests.begin(), group.requests.end());
    group_of_row.resize(rows.size(), g);
    n_read = std::max(n_read, static_cast<int64_t>(group.n_read()));
  }
  nn::KvCache cache;
  const at::Tensor after_context =
      decoder.hidden(context_ids, options, n_read > 0 ? &cache : nullptr).select(1, -1);
  const at::Tensor rows_group = at::tensor(group_of_row).to(decoder.device());
  std::vector<at::Tensor> predicting;
  std::vector<int64_t> targets, places;
  std::vector<Request*> owners;
  for (size_t r = 0; r < rows.size(); ++r) {
    if (rows[r]->continuation.empty()) continue;
    places.push_back(group_of_row[r]);
    targets.push_back(rows[r]->continuation[0]);
    owners.push_back(rows[r]);
  }
  if (places.empty()) return;
  predicting.push_back(after_context.index_select(0, at::tensor(places).to(decoder.device())));
  if (n_read > 0) {
    const auto n_rows = static_cast<int64_t>(rows.size());
    for (auto* store : {&cache.keys, &cache.values})
      for (at::Tensor& part : *store) part = part.narrow(2, 0, n_context).index_select(0, rows_group);
    at::Tensor ids = at::zeros({n_rows, n_read}, longs);
    places.clear();
    for (int64_t r = 0; r < n_rows; ++r) {
      const auto& continuation = rows[static_cast<size_t>(r)]->continuation;
      for (int64_t t = 0; t + 1 < static_cast<int64_t>(continuation.size()); ++t) {
        ids.data_ptr<int64_t>()[r * n_read + t] = continuation[static_cast<size_t>(t)];
        places.push_back(r * n_read + t);
        targets.push_back(continuation[static_cast<size_t>(t + 1)]);
        owners.push_back(rows[static_cast<size_t>(r)]);
      }
    }
    const at::Tensor hidden = decoder.hidden(ids, options, &cache).flatten(0, 1);
    predicting.push_back(hidden.index_select(0, at::tensor(places).to(decoder.device())));
  }
  score_rows(decoder, at::cat(predicting), targets, owners);
}

int64_t n_characters(const std::string& text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

}  // namespace

TaskResult multiple_choice(const nn::Decoder& decoder, const Tokenizer& tokenizer,
                           const std::vector<TaskItem>& items, const Widths* widths,
                           const nn::LevelRepair* repairs) {
  if (items.empty()) fail("task: no items");
  const c10::NoGradGuard no_gradients;
  nn::ForwardOptions options;
  options.widths = widths;
  options.repairs = repairs;
  auto requests = make_requests(tokenizer, items, decoder.spec().max_seq);
  const auto groups = group_requests(requests);

  Progress progress("multiple choice", static_cast<int64_t>(requests.size()), "choices");
  for (size_t first = 0; first < groups.size();) {
    const auto n_context = static_cast<int64_t>(groups[first].context().size());
    size_t last = first;
    int64_t n_rows = 0, n_read = 0, n_requests = 0;
    for (; last < groups.size() && static_cast<int64_t>(groups[last].context().size()) == n_context; ++last) {
      const int64_t rows = n_rows + static_cast<int64_t>(groups[last].requests.size());
      const int64_t read = std::max(n_read, static_cast<int64_t>(groups[last].n_read()));
      const int64_t n_contexts = static_cast<int64_t>(last - first) + 1;
      if (last > first && std::max(n_contexts * n_context, rows * read) > kTokensPerPass) break;
      n_rows = rows;
      n_read = read;
      n_requests = rows;
    }
    nn::with_torch_errors(
        [&] { score_groups(decoder, std::span(groups).subspan(first, last - first), options); });
    progress.advance(n_requests);
    first = last;
  }

  TaskResult result;
  result.items = static_cast<int64_t>(items.size());
  int64_t n_right = 0, n_right_norm = 0;
  size_t next = 0;
  for (const TaskItem& item : items) {
    const std::span<const Request> choices = std::span(requests).subspan(next, item.continuations.size());
    next += choices.size();
    if (choices.size() == 1) {
      n_right += choices[0].greedy ? 1 : 0;
      n_right_norm += choices[0].greedy ? 1 : 0;
      continue;
    }
    std::vector<double> sums, means;
    for (size_t c = 0; c < choices.size(); ++c) {
      sums.push_back(choices[c].log_p);
      means.push_back(choices[c].log_p /
                      static_cast<double>(std::max<int64_t>(1, n_characters(item.continuations[c]))));
    }
    const auto best = [](const std::vector<double>& scores) {
      return std::max_element(scores.begin(), scores.end()) - scores.begin();
    };
    n_right += best(sums) == item.gold ? 1 : 0;
    n_right_norm += best(means) == item.gold ? 1 : 0;
  }
  result.accuracy = static_cast<double>(n_right) / static_cast<double>(result.items);
  result.accuracy_norm = static_cast<double>(n_right_norm) / static_cast<double>(result.items);
  return result;
}

}  // namespace elastify::eval
