#include "export/lora_gguf.h"

#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "support/errors.h"
#include "support/temporary_directory.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

namespace elastify {
namespace {

using exporter::architecture_named;
using exporter::GgufArchitecture;
using exporter::LoraMatrix;

/// Widths that differ by layer.
Level uneven_level(const ModelSpec& spec) {
  Widths widths = full_widths(spec);
  widths[spec.attention_space(0)] = 1;
  widths[spec.mlp_space(1)] = 24;
  return make_level(spec, 0.6, widths);
}

HostTensor counted(Shape shape, float first) {
  std::vector<float> values(static_cast<size_t>(n_elements(shape)));
  for (size_t i = 0; i < values.size(); ++i) values[i] = first + 0.5F * static_cast<float>(i);
  return test::tensor_of(values, std::move(shape));
}

/// Ranks 1 to 4 on all seven matrices.
LevelRepairs adapters_of(const ModelSpec& spec, const Level& level) {
  LevelRepairs repairs = empty_repairs(spec, level.nominal, Compensation::kAdapter);
  int64_t rank = 0;
  for (const TensorSpec* tensor : repairable_tensors(spec, level.widths)) {
    if (!is_layer_matrix(tensor->role)) continue;
    const Shape shape = shape_at(*tensor, level.widths);
    rank = rank % 4 + 1;
    repairs.at(*tensor).a = counted({rank, shape[1]}, -3);
    repairs.at(*tensor).b = counted({shape[0], rank}, 1);
  }
  return repairs;
}

struct Written {
  test::TemporaryDirectory directory;
  ModelSpec spec;
  Level level;
  const GgufArchitecture& architecture;
  LevelRepairs repairs;
  fs::path path = directory / "lora.gguf";

  Written(const std::string& family, std::string_view name)
      : spec(test::make_tiny_spec(family, {.tied = true})),
        level(uneven_level(spec)),
        architecture(architecture_named(name)),
        repairs(adapters_of(spec, level)) {
    write(exporter::lora_matrices(repairs, spec, level, architecture));
  }
  void write(const std::vector<LoraMatrix>& matrices) const {
    exporter::write_lora(matrices, architecture, {}, DType::kF32, path);
  }
  LevelRepairs read() const {
    return exporter::read_lora(path, narrowed(spec, level.widths), architecture, level.nominal);
  }
  std::string refusal() const {
    const std::string said = test::message_of([&] { read(); });
    CHECK(said.find(path.string() + ": ") == 0);
    return said;
  }
};

/// Rewrites the file with changed tensors.
void change(const Written& made,
            const std::function<void(std::vector<std::pair<std::string, HostTensor>>&)>& by) {
  std::vector<std::pair<std::string, HostTensor>> tensors;
  GgufMetadata keys;
  {
    const GgufFile file = GgufFile::open(made.path);
    for (const TensorInfo& each : file.tensors())
      tensors.emplace_back(each.name, test::tensor_of(test::values_of(file.tensor(each.name)), each.shape));
    keys = file.metadata();
  }
  by(tensors);
  std::vector<TensorInfo> infos;
  for (const auto& [name, tensor] : tensors) infos.push_back({name, tensor.dtype, tensor.shape});
  GgufWriter writer(made.path, keys, infos);
  for (const auto& [name, tensor] : tensors) writer.write(tensor.bytes);
  writer.finish();
}

TEST_SUITE("export") {
  TEST_CASE("lora: adapters of all seven matrices come back as they were, in every architecture") {
    for (const auto& [family, name] : {std::pair{"llama", "llama"},
                                       {"llama", "deci"},
                                       {"qwen2", "qwen2"},
                                       {"qwen2", "deci"},
                                       {"qwen3", "qwen3"},
                                       {"qwen3", "openelm"}}) {
      CAPTURE(family);
      CAPTURE(name);
      const Written made(family, name);
      const LevelRepairs found = made.read();
      size_t n = 0;
      for (const TensorSpec* tensor : repairable_tensors(made.spec, made.level.widths)) {
        if (!is_layer_matrix(tensor->role)) continue;
        CAPTURE(tensor->name);
        const TensorRepair *before = made.repairs.find(*tensor), *after = found.find(*tensor);
        REQUIRE(after != nullptr);
        CHECK(test::same_bytes(*before->a, *after->a));
        REQUIRE(before->b->shape == after->b->shape);
        const auto expected = test::values_of(*before->b), values = test::values_of(*after->b);
        for (size_t i = 0; i < values.size(); ++i) CHECK(values[i] == doctest::Approx(expected[i]));
        ++n;
      }
      CHECK(n == 14);
      CHECK(found.parts() == Compensation::kAdapter);
    }
  }

  TEST_CASE("lora: rows of q and k go as those of the weights do, rows of the others stay") {
    const Written made("llama", "llama");
    const auto matrices = exporter::lora_matrices(made.repairs, made.spec, made.level, made.architecture);
    CHECK(matrices.size() == 14);
    for (const LoraMatrix& matrix : matrices) {
      CAPTURE(matrix.name);
      const int64_t index = [&] {
        for (size_t i = 0; i < made.spec.tensors.size(); ++i)
          if (made.spec.tensors[i].gguf_name == matrix.name) return static_cast<int64_t>(i);
        return int64_t{-1};
      }();
      REQUIRE(index >= 0);
      const TensorSpec& tensor = made.spec.tensors[static_cast<size_t>(index)];
      const TensorRepair& repair = *made.repairs.find(tensor);
      CHECK(test::same_bytes(matrix.a, *repair.a));
      const auto before = test::values_of(*repair.b), after = test::values_of(matrix.b);
      const auto rank = static_cast<size_t>(matrix.rank());
      const bool rotary = tensor.role == Role::kQuery || tensor.role == Role::kKey;
      CHECK((before == after) == !rotary);
      if (!rotary) continue;
      // Heads of 8: rows 0 4 1 5 2 6 3 7.
      for (const auto& [row, source] :
           {std::pair{size_t{1}, size_t{4}}, {size_t{2}, size_t{1}}, {size_t{7}, size_t{7}}})
        CHECK(after[row * rank] == before[source * rank]);
    }
    const auto halves =
        exporter::lora_matrices(made.repairs, made.spec, made.level, architecture_named("qwen2"));
    CHECK(test::same_bytes(halves.front().b, *made.repairs.find(0, Role::kQuery)->b));
  }

  TEST_CASE(
      "lora: q, k and v of one tensor have one adapter of blocks, and only what does something is read") {
    const Written made("qwen3", "openelm");
    const GgufFile file = GgufFile::open(made.path);
    // Layer 0: 1 of 2 groups, 2 query heads of 8 rows; ranks 1, 2, 3 of q, k and v.
    CHECK(file.tensor("blk.0.attn_qkv.weight.lora_a").shape == Shape{6, 32});
    CHECK(file.tensor("blk.0.attn_qkv.weight.lora_b").shape == Shape{16 + 8 + 8, 6});
    const auto b = test::values_of(file.tensor("blk.0.attn_qkv.weight.lora_b"));
    for (size_t row = 0; row < 32; ++row)
      for (size_t rank = 0; rank < 6; ++rank) {
        const bool own = row < 16 ? rank < 1 : row < 24 ? rank >= 1 && rank < 3 : rank >= 3;
        CHECK((b[row * 6 + rank] != 0) == own);
      }
  }

  TEST_CASE("lora: files that do not belong to the level are refused by tensor") {
    struct Bad {
      std::string family, architecture, message;
      std::function<void(std::vector<std::pair<std::string, HostTensor>>&)> by;
    };
    const auto replace = [](const std::string& name, std::optional<HostTensor> with) {
      return [=](std::vector<std::pair<std::string, HostTensor>>& all) {
        for (auto each = all.begin(); each != all.end(); ++each)
          if (each->first == name) {
            if (with)
              each->second = *with;
            else
              all.erase(each);
            return;
          }
        FAIL("no tensor " << name);
      };
    };
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::string q = "blk.0.attn_q.weight.lora_", up = "blk.1.ffn_up.weight.lora_",
                      qkv = "blk.0.attn_qkv.weight.lora_";
    const std::vector<Bad> table{
        {"llama", "deci", "lora_A.weight: expected shape [1, 32], got [1, 40]",
         replace(q + "a", counted({1, 40}, 0))},
        {"llama", "deci", "lora_B.weight: expected shape [16, 1], got [8, 1]",
         replace(q + "b", counted({8, 1}, 0))},
        {"llama", "deci", "lora_B.weight: expected shape [16, 1], got [15, 1]",
         replace(q + "b", counted({15, 1}, 0))},
        {"llama", "deci", q + "a: incomplete adapter: " + q + "b is missing", replace(q + "b", std::nullopt)},
        {"llama", "deci", up + "b: incomplete adapter: " + up + "a is missing",
         replace(up + "a", std::nullopt)},
        {"llama", "deci", "up_proj.lora_A.weight: element 0: expected a finite number, got nan",
         replace(up + "a", counted({1, 32}, nan))},
        {"llama", "deci", "unexpected tensors: output.weight.lora_a",
         [](auto& all) {
           all.emplace_back("output.weight.lora_a", counted({1, 32}, 0));
         }},
        {"qwen3", "openelm", qkv + "b: expected shape [32, 6], got [24, 6]",
         replace(qkv + "b", counted({24, 6}, 1))},
        {"qwen3", "openelm", qkv + "a: incomplete adapter", replace(qkv + "b", std::nullopt)},
        {"qwen3", "openelm", "unexpected tensors: blk.0.attn_q.weight.lora_a",
         [](auto& all) {
           all.emplace_back("blk.0.attn_q.weight.lora_a", counted({1, 32}, 0));
         }},
    };
    for (const Bad& bad : table) {
      CAPTURE(bad.message);
      const Written made(bad.family, bad.architecture);
      change(made, bad.by);
      const std::string said = made.refusal();
      CAPTURE(said);
      CHECK(said.find(bad.message) != std::string::npos);
    }
    const Written made("llama", "deci");
    CHECK(test::message_of([&] {
            exporter::read_lora(made.path, narrowed(made.spec, made.level.widths),
                                architecture_named("llama"), 0.6);
          }).find("general.architecture: expected \"llama\", got \"deci\"") != std::string::npos);
    CHECK(test::message_of([] {
            architecture_named("gemma");
          }).find("\"gemma\": levels are not written in this architecture") != std::string::npos);
  }
}

}  // namespace
}  // namespace elastify
