#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "data/corpus.h"
#include "support/decoders.h"

namespace elastify::test {

inline TokenBatches random_batches(int64_t n, int64_t seq_len, int64_t n_vocab, uint64_t seed = 5) {
  TokenBatches batches;
  batches.seq_len = seq_len;
  const at::Tensor ids = random_ids(n, seq_len, n_vocab, seed).to(at::kInt);
  for (int64_t i = 0; i < n; ++i) {
    const int32_t* first = ids.data_ptr<int32_t>() + i * seq_len;
    batches.sequences.emplace_back(first, first + seq_len);
  }
  batches.digest = std::to_string(seed);
  return batches;
}

inline at::Tensor ids_of(const TokenBatches& batches, size_t first, size_t n) {
  std::vector<at::Tensor> rows;
  for (size_t i = first; i < first + n; ++i) rows.push_back(at::tensor(batches.sequences[i]).to(at::kLong));
  return at::stack(rows);
}

/// Spearman's rank correlation. It assumes that no two values are equal.
template <typename T>
double rank_correlation(const std::vector<T>& a, const std::vector<T>& b) {
  const auto ranks = [](const std::vector<T>& values) {
    std::vector<size_t> order(values.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t i, size_t j) { return values[i] < values[j]; });
    std::vector<double> result(values.size());
    for (size_t rank = 0; rank < order.size(); ++rank) result[order[rank]] = static_cast<double>(rank);
    return result;
  };
  const std::vector<double> x = ranks(a), y = ranks(b);
  const double n = static_cast<double>(a.size());
  double squares = 0;
  for (size_t i = 0; i < x.size(); ++i) squares += (x[i] - y[i]) * (x[i] - y[i]);
  return 1 - 6 * squares / (n * (n * n - 1));
}

}  // namespace elastify::test
