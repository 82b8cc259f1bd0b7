#include "export/lora_gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "base/error.h"
#include "export/gguf_metadata.h"
#include "export/levels.h"
#include "model/rope_order.h"
#include "model/tensor_match.h"

// Source: llama.cpp, src/llama-adapter.cpp. adapter.lora.alpha has to be a float: llama.cpp aborts if it is
// an integer.

namespace elastify::exporter {
namespace {

HostTensor scaled(const HostTensor& tensor, float scale) {
  if (scale == 1) return tensor;
  HostTensor result = HostTensor::allocate(DType::kF32, tensor.shape);
  const std::span<std::byte> target = result.writable();
  for (size_t i = 0; i < target.size(); i += sizeof(float)) {
    float value = 0;
    std::memcpy(&value, tensor.bytes.data() + i, sizeof(float));
    value *= scale;
    std::memcpy(target.data() + i, &value, sizeof(float));
  }
  return result;
}

HostTensor encoded(const std::string& name, const HostTensor& tensor, DType type) {
  HostTensor result = convert(tensor, type);
  if (type != DType::kF16) return result;
  for (size_t i = 0; i < result.bytes.size(); i += sizeof(uint16_t)) {
    uint16_t bits = 0;
    std::memcpy(&bits, result.bytes.data() + i, sizeof(bits));
    if ((bits & 0x7c00) == 0x7c00)
      throw Error(fmt::format("{}: element {} is beyond the largest f16, 65504", name, i / sizeof(bits)),
                  "--adapter-type f32");
  }
  return result;
}

std::optional<HostTensor> half_of(const GgufFile& file, const std::string& name,
                                  std::set<std::string>& left) {
  if (!file.contains(name)) return std::nullopt;
  left.erase(name);
  HostTensor tensor = convert(file.tensor(name), DType::kF32);
  if (tensor.shape.size() != 2)
    fail("{}: expected two dimensions, got shape {}", name, to_string(tensor.shape));
  return tensor;
}

std::span<const float> floats(const HostTensor& tensor) {
  return {reinterpret_cast<const float*>(tensor.bytes.data()), tensor.bytes.size() / sizeof(float)};
}
std::span<float> writable_floats(HostTensor& tensor) {
  const std::span<std::byte> bytes = tensor.writable();
  return {reinterpret_cast<float*>(bytes.data()), bytes.size() / sizeof(float)};
}

/// The rows of a file's matrix that hold a matrix of the model.
struct RowsInFile {
  int64_t first = 0, n = 0;
  int64_t total = 0;  ///< rows of the file's matrix; more than n if it fuses q, k and v
};

RowsInFile rows_in_file(const TensorSpec& tensor, const ModelSpec& spec, const Widths& widths,
                        const GgufArchitecture& architecture) {
  const std::string name = name_in_file(tensor, architecture);
  RowsInFile rows;
  for (const TensorSpec& each : spec.tensors) {
    if (each.layer != tensor.layer || name_in_file(each, architecture) != name) continue;
    const int64_t n = shape_at(each, widths)[0];
    if (each.role == tensor.role) rows = {rows.total, n, rows.total};
    rows.total += n;
  }
  return rows;
}

/// Adds ranks to the adapter of a file's matrix.
/// \param b  for the matrix's rows from `first_row` on; the other rows get zeros
void append(LoraMatrix& matrix, const HostTensor& a, const HostTensor& b, int64_t first_row) {
  const int64_t rank = matrix.rank(), total = rank + a.shape[0];
  HostTensor ranks = HostTensor::allocate(DType::kF32, {total, a.shape[1]});
  const auto end = std::copy(matrix.a.bytes.begin(), matrix.a.bytes.end(), ranks.writable().begin());
  std::copy(a.bytes.begin(), a.bytes.end(), end);
  HostTensor blocks = HostTensor::allocate(DType::kF32, {matrix.b.shape[0], total});
  const auto put = [&](const HostTensor& block, int64_t row, int64_t column) {
    const int64_t n = block.shape[1];
    for (int64_t i = 0; i < block.shape[0]; ++i)
      std::copy_n(floats(block).begin() + i * n, n,
                  writable_floats(blocks).begin() + (row + i) * total + column);
  };
  put(matrix.b, 0, 0);
  put(b, first_row, rank);
  matrix.a = std::move(ranks);
  matrix.b = std::move(blocks);
}

/// The part of a file's adapter that belongs to one matrix: its rows of b, and the ranks that are not zero in
/// these rows.
/// \returns none if all ranks are zero there
std::optional<TensorRepair> part_of(const HostTensor& a, const HostTensor& b, const RowsInFile& rows) {
  const int64_t rank = b.shape[1];
  const std::span<const float> own =
      floats(b).subspan(static_cast<size_t>(rows.first * rank), static_cast<size_t>(rows.n * rank));
  std::vector<int64_t> used;
  for (int64_t r = 0; r < rank; ++r) {
    bool is_used = false;
    for (int64_t i = 0; i < rows.n && !is_used; ++i) is_used = own[static_cast<size_t>(i * rank + r)] != 0;
    if (is_used) used.push_back(r);
  }
  if (used.empty()) return std::nullopt;
  const auto n_used = static_cast<int64_t>(used.size()), columns = a.shape[1];
  HostTensor left = HostTensor::allocate(DType::kF32, {n_used, columns}),
             right = HostTensor::allocate(DType::kF32, {rows.n, n_used});
  for (int64_t u = 0; u < n_used; ++u) {
    const int64_t r = used[static_cast<size_t>(u)];
    std::copy_n(floats(a).begin() + r * columns, columns, writable_floats(left).begin() + u * columns);
    for (int64_t i = 0; i < rows.n; ++i)
      writable_floats(right)[static_cast<size_t>(i * n_used + u)] = own[static_cast<size_t>(i * rank + r)];
  }
  return TensorRepair{.weight = {}, .a = std::move(left), .b = std::move(right), .bias = {}};
}

/// Reads the adapter of a matrix from a file; none if the matrix has none.
/// \param left  names of the file's tensors; those that are read are removed
std::optional<TensorRepair> read_adapter(const GgufFile& file, const std::string& name,
                                         const RowsInFile& rows, std::set<std::string>& left) {
  const std::string a_name = name + ".lora_a", b_name = name + ".lora_b";
  auto a = half_of(file, a_name, left), b = half_of(file, b_name, left);
  if (a.has_value() != b.has_value())
    fail("{}: incomplete adapter: {} is missing", a ? a_name : b_name, a ? b_name : a_name);
  if (!a) return std::nullopt;
  const double alpha = file.metadata().number("adapter.lora.alpha").value_or(0);
  if (alpha != 0) b = scaled(*b, static_cast<float>(alpha / static_cast<double>(a->shape[0])));
  if (rows.total == rows.n)
    return TensorRepair{.weight = {}, .a = std::move(a), .b = std::move(b), .bias = {}};
  if (b->shape != Shape{rows.total, a->shape[0]})
    fail("{}: expected shape {}, got {}", b_name, to_string({rows.total, a->shape[0]}), to_string(b->shape));
  return part_of(*a, *b, rows);
}

void require_key(const GgufMetadata& keys, const char* key, std::string_view expected) {
  if (const std::string found = keys.require_string(key); found != expected)
    fail("{}: expected \"{}\", got \"{}\"", key, expected, found);
}

}  // namespace

std::string lora_name(double nominal) {
  return "lora" + level_suffix(nominal) + ".gguf";
}

std::vector<LoraMatrix> lora_matrices(const LevelRepairs& repairs, const ModelSpec& spec, const Level& level,
                                      const GgufArchitecture& architecture) {
  std::vector<LoraMatrix> matrices;
  for (const TensorSpec* tensor : repairable_tensors(spec, level.widths)) {
    const TensorRepair* repair = repairs.find(*tensor);
    if (repair == nullptr || !repair->a) continue;
    const std::string name = name_in_file(*tensor, architecture);
    const RowsInFile rows = rows_in_file(*tensor, spec, level.widths, architecture);
    if (matrices.empty() || matrices.back().name != name)
      matrices.push_back({name, HostTensor::allocate(DType::kF32, {0, repair->a->shape[1]}),
                          HostTensor::allocate(DType::kF32, {rows.total, 0})});
    append(matrices.back(), *repair->a,
           is_rotary(tensor->role)
               ? reorder_rope_rows(*repair->b, spec.head_dim, RopeOrder::kHalves, architecture.rope)
               : *repair->b,
           rows.first);
  }
  return matrices;
}

int64_t n_lora_params(const std::vector<LoraMatrix>& matrices) {
  int64_t n = 0;
  for (const LoraMatrix& matrix : matrices) n += n_elements(matrix.a.shape) + n_elements(matrix.b.shape);
  return n;
}

std::string write_lora(const std::vector<LoraMatrix>& matrices, const GgufArchitecture& architecture,
                       const GgufMetadata& keys, DType type, const fs::path& path) {
  int64_t largest = 0;
  for (const LoraMatrix& matrix : matrices) largest = std::max(largest, matrix.rank());
  const auto alpha = static_cast<float>(largest);
  std::vector<TensorInfo> infos;
  std::vector<HostTensor> tensors;
  const auto add = [&](std::string name, const HostTensor& tensor) {
    tensors.push_back(encoded(name, tensor, type));
    infos.push_back({std::move(name), type, tensor.shape});
  };
  for (const LoraMatrix& matrix : matrices) {
    add(matrix.name + ".lora_a", matrix.a);
    add(matrix.name + ".lora_b", scaled(matrix.b, static_cast<float>(matrix.rank()) / alpha));
  }
  GgufMetadata all;
  all.set("general.type", std::string("adapter"));
  all.set("general.architecture", std::string(architecture.name));
  all.set("adapter.type", std::string("lora"));
  all.set("adapter.lora.alpha", alpha);
  for (const auto& [key, value] : keys.entries()) all.set(key, value);
  GgufWriter writer(path, all, std::move(infos));
  for (const HostTensor& tensor : tensors) writer.write(tensor.bytes);
  return writer.finish();
}

LevelRepairs read_lora(const fs::path& path, const ModelSpec& model, const GgufArchitecture& architecture,
                       double nominal) {
  return with_context(path.string(), [&] {
    const GgufFile file = GgufFile::open(path);
    const GgufMetadata& keys = file.metadata();
    require_key(keys, "general.type", "adapter");
    require_key(keys, "adapter.type", "lora");
    require_key(keys, "general.architecture", architecture.name);
    std::set<std::string> left;
    for (const TensorInfo& tensor : file.tensors()) left.insert(tensor.name);
    const Level level = make_level(model, nominal, full_widths(model));
    LevelRepairs repairs = empty_repairs(model, nominal, Compensation::kAdapter);
    for (const TensorSpec* tensor : repairable_tensors(model, level.widths)) {
      if (!is_layer_matrix(tensor->role)) continue;
      const RowsInFile rows = rows_in_file(*tensor, model, level.widths, architecture);
      auto repair = read_adapter(file, name_in_file(*tensor, architecture), rows, left);
      if (!repair) continue;
      if (is_rotary(tensor->role) && architecture.rope != RopeOrder::kHalves && repair->b->shape[0] == rows.n)
        repair->b = reorder_rope_rows(*repair->b, model.head_dim, architecture.rope, RopeOrder::kHalves);
      repairs.at(*tensor) = std::move(*repair);
    }
    if (!left.empty())
      throw Error(fmt::format("unexpected tensors: {}",
                              list_some(std::vector<std::string>(left.begin(), left.end()))),
                  "adapters may be of the seven matrices of the layers that the level keeps");
    check(repairs, model, level);
    return repairs;
  });
}

}  // namespace elastify::exporter
