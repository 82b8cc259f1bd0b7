#pragma once

#include <ATen/ATen.h>

// Included after LibTorch, because LibTorch's logging also defines a CHECK.
#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "base/file.h"
#include "support/skip.h"
#include "support/temporary_directory.h"

namespace elastify::interop {

inline fs::path tool(const std::string& name) {
  return fs::path(ELASTIFY_BINARY_DIR) / "interop" / name;
}

/// Whether tests/interop/setup.sh has built its programs. If not, the test case skips.
inline bool has_oracle() {
  if (fs::exists(tool("llama_oracle"))) return true;
  test::skip("tests/interop/setup.sh has not run");
  return false;
}

inline int shell(const std::string& command) {
  return std::system(command.c_str());
}

/// Logits of stock llama.cpp for every position, [T, V]; float32 KV cache, no flash attention.
/// \param lora  adapter to apply; empty: none
inline at::Tensor stock_logits(const fs::path& model, const std::vector<int32_t>& ids, int64_t n_vocab,
                               const fs::path& lora = {}) {
  const test::TemporaryDirectory directory;
  const fs::path in = directory.path() / "ids", out = directory.path() / "logits",
                 log = directory.path() / "log";
  std::ofstream(in, std::ios::binary)
      .write(reinterpret_cast<const char*>(ids.data()), static_cast<std::streamsize>(ids.size() * 4));
  const std::string adapter = lora.empty() ? "" : fmt::format("--lora '{}'", lora.string());
  const int status = shell(fmt::format("'{}' '{}' {} '{}' '{}' >'{}' 2>&1", tool("llama_oracle").string(),
                                       model.string(), adapter, in.string(), out.string(), log.string()));
  if (status != 0) {
    FAIL("stock llama.cpp does not run " << model.string() << ":\n" << read_text(log));
  }
  const std::string bytes = read_text(out);
  const auto n = static_cast<int64_t>(ids.size());
  REQUIRE(bytes.size() == static_cast<size_t>(n * n_vocab * 4));
  return at::from_blob(const_cast<char*>(bytes.data()), {n, n_vocab}, at::kFloat).clone();
}

/// Largest difference over the standard deviation.
inline double difference(const at::Tensor& expected, const at::Tensor& found) {
  return (expected - found).abs().max().item<double>() / expected.std().item<double>();
}

/// Root mean square of the difference over the standard deviation.
inline double rms(const at::Tensor& expected, const at::Tensor& found) {
  return (expected - found).square().mean().sqrt().item<double>() / expected.std().item<double>();
}

inline std::vector<int32_t> some_ids(int64_t n, int64_t n_vocab) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>((i * 7919 + 13) % n_vocab));
  return ids;
}

}  // namespace elastify::interop
