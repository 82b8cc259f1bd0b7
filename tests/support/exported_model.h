#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "export/export_model.h"
#include "io/gguf.h"
#include "model/permutation.h"
#include "plan/make_plan.h"
#include "support/temporary_directory.h"
#include "support/tiny_model.h"

// Tiny models, plans for them, and their export.

namespace elastify::test {

/// Narrows only the first layer: at 0.5 to one KV group and one grid step, at 0.75 by one grid step of its
/// MLP.
inline ElasticPlan uneven_plan(const ModelSpec& spec, int64_t grid) {
  ElasticPlan plan;
  plan.spec_hash = spec_hash(spec);
  plan.method = "anchors";
  plan.grid = grid;
  plan.anchors = {1};
  Widths narrow = full_widths(spec), middle = narrow;
  narrow[spec.attention_space(0)] = 1;
  narrow[spec.mlp_space(0)] = grid;
  middle[spec.mlp_space(0)] = std::max(grid, middle[spec.mlp_space(0)] - grid);
  plan.levels = {make_level(spec, 0.5, narrow), make_level(spec, 0.75, middle),
                 make_level(spec, 1, full_widths(spec))};
  return plan;
}

inline ElasticPlan uniform_plan(const ModelSpec& spec, int64_t grid,
                                std::vector<double> levels = {0.6, 0.8}) {
  plan::PlanOptions options;
  options.grid = grid;
  options.levels = std::move(levels);
  return plan::make_plan(spec, nullptr, options);
}

inline Permutation shuffled(const ModelSpec& spec) {
  Permutation permutation = identity_permutation(spec);
  std::mt19937_64 random(5);
  for (auto& order : permutation.orders) std::shuffle(order.begin(), order.end(), random);
  return permutation;
}

/// A tiny model on disk and places to export it to.
struct ExportedModel {
  TemporaryDirectory directory;
  fs::path path = directory / "model";
  explicit ExportedModel(const ModelSpec& spec, DType dtype = DType::kF32) {
    write_tiny_hf_model(spec, path, 11, dtype);
  }
  Checkpoint open() const { return Checkpoint::open(path); }
  fs::path make(const std::string& name) const {
    fs::create_directories(directory / name);
    return directory / name;
  }
  std::vector<exporter::ArtifactFile> to(const fs::path& target, const ElasticPlan& plan,
                                         const exporter::ExportOptions& options,
                                         const Vocabulary* vocabulary = nullptr) const {
    const Checkpoint source = open();
    return exporter::export_model(source, vocabulary, identity_permutation(source.spec()), plan, options,
                                  nlohmann::ordered_json::object(), target);
  }
};

/// Whether every row of `part` is the beginning of the same row of `full`.
inline bool is_prefix(const HostTensor& part, const HostTensor& full) {
  if (part.dtype != full.dtype || part.shape.size() != full.shape.size()) return false;
  const uint64_t kept = row_bytes(part.dtype, part.shape.back()),
                 all = row_bytes(full.dtype, full.shape.back());
  const auto rows = static_cast<uint64_t>(n_rows(part.shape));
  if (kept > all || rows > static_cast<uint64_t>(n_rows(full.shape)) || part.bytes.size() != rows * kept)
    return false;
  for (uint64_t row = 0; row < rows; ++row)
    if (!std::equal(part.bytes.data() + row * kept, part.bytes.data() + (row + 1) * kept,
                    full.bytes.data() + row * all))
      return false;
  return true;
}

/// Checks that every tensor of a level's file is a prefix of that in the full model's file of the same
/// architecture.
inline void check_file_prefixes(const fs::path& level, const fs::path& full) {
  const GgufFile narrow = GgufFile::open(level), wide = GgufFile::open(full);
  REQUIRE(narrow.tensors().size() == wide.tensors().size());
  for (const TensorInfo& tensor : narrow.tensors()) {
    CAPTURE(tensor.name);
    CHECK(is_prefix(narrow.tensor(tensor.name), wide.tensor(tensor.name)));
  }
}

inline ModelSpec wide_spec(const std::string& family, bool tied = false) {
  return make_tiny_spec(family, {.d_model = 64,
                                 .head_dim = 32,
                                 .n_kv_heads = 3,
                                 .heads_per_group = 1,
                                 .d_ff = 128,
                                 .n_vocab = 40,
                                 .tied = tied});
}

/// Three layers whose rows are whole blocks of 256 at every level of uneven_plan(spec, 256).
inline ModelSpec blocks_spec() {
  return make_tiny_spec(
      "llama",
      {.n_layers = 3, .d_model = 256, .head_dim = 64, .n_kv_heads = 2, .heads_per_group = 4, .d_ff = 512});
}

}  // namespace elastify::test
