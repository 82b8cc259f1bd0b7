#include "model/imatrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include <fmt/ranges.h>

#include "base/error.h"
#include "io/byte_reader.h"
#include "io/gguf.h"

namespace elastify {
namespace {

constexpr std::string_view kSums = ".in_sum2", kCounts = ".counts";
constexpr const char* kType = "imatrix";
constexpr const char* kDatasets = "imatrix.datasets";
constexpr const char* kChunkCount = "imatrix.chunk_count";
constexpr const char* kChunkSize = "imatrix.chunk_size";
constexpr const char* kDigest = "elastify.permutation_digest";
constexpr const char* kOtherModel = "this importance matrix was measured on another model";

void check_entry(const ImatrixEntry& entry) {
  if (!std::isfinite(entry.count) || entry.count <= 0) fail("expected a positive count, got {}", entry.count);
  for (size_t i = 0; i < entry.sum_squares.size(); ++i)
    if (!std::isfinite(entry.sum_squares[i]) || entry.sum_squares[i] < 0)
      fail("expected sums of squares, got {} for column {}", entry.sum_squares[i], i);
}

void check_chunks(const Imatrix& imatrix) {
  for (const auto& [what, value] :
       {std::pair("chunk count", imatrix.chunk_count), std::pair("chunk size", imatrix.chunk_size)})
    if (!std::in_range<uint32_t>(value)) fail("{}: expected 0 to 2^32 - 1, got {}", what, value);
}

/// Reads a tensor of one row.
/// \throws Error  unless it is [1, n] of f32
std::vector<float> one_row(const HostTensor& tensor) {
  if (tensor.dtype != DType::kF32) fail("expected f32, got {}", info(tensor.dtype).name);
  if (const int64_t rows = n_rows(tensor.shape); rows != 1)
    fail("expected one matrix, got {}: mixtures of experts are not supported", rows);
  std::vector<float> values(static_cast<size_t>(tensor.shape.back()));
  std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  return values;
}

std::vector<float> one_row(const GgufFile& file, const std::string& name) {
  return with_context(printable(name), [&] { return one_row(file.tensor(name)); });
}

Imatrix read_gguf_form(const fs::path& path) {
  const GgufFile file = GgufFile::open(path);
  return with_context(path.string(), [&] {
    const GgufMetadata& keys = file.metadata();
    if (const auto type = keys.string("general.type"); type && *type != kType)
      fail("key general.type: expected {}, got {}", kType, printable(*type));
    Imatrix imatrix;
    if (const auto* datasets = keys.strings(kDatasets)) imatrix.datasets = *datasets;
    imatrix.chunk_count = keys.integer(kChunkCount).value_or(0);
    imatrix.chunk_size = keys.integer(kChunkSize).value_or(0);
    check_chunks(imatrix);
    imatrix.permutation_digest = keys.string(kDigest).value_or("");
    for (const TensorInfo& tensor : file.tensors()) {  // the file may hold other statistics besides these two
      const std::string_view stored = tensor.name;
      if (stored.ends_with(kCounts)) {
        const std::string name(stored.substr(0, stored.size() - kCounts.size()));
        if (!file.contains(name + std::string(kSums)))
          fail("{}: has counts but no sums of squares", printable(name));
      }
      if (!stored.ends_with(kSums)) continue;
      const std::string name(stored.substr(0, stored.size() - kSums.size()));
      const std::string counts = name + std::string(kCounts);
      if (!file.contains(counts)) fail("{}: has sums of squares but no counts", printable(name));
      ImatrixEntry entry{.sum_squares = one_row(file, tensor.name), .count = 0};
      const std::vector<float> count = one_row(file, counts);
      if (count.size() != 1) fail("{}: expected one count, got {}", printable(counts), count.size());
      entry.count = static_cast<double>(count[0]);
      with_context(printable(name), [&] { check_entry(entry); });
      imatrix.entries.emplace(name, std::move(entry));
    }
    if (imatrix.entries.empty()) fail("not an importance matrix: no tensor's name ends in {}", kSums);
    return imatrix;
  });
}

std::string read_name(ByteReader& reader, std::string_view what) {
  const auto length = reader.read<int32_t>(what);
  if (length < 0) fail("{}: expected a length, got {}", what, length);
  const auto bytes = reader.take(static_cast<uint64_t>(length), what);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

ImatrixEntry read_old_entry(ByteReader& reader) {
  const auto n_calls = reader.read<int32_t>("number of calls");
  const auto n_in = reader.read<int32_t>("number of values");
  if (n_in < 1) fail("expected at least one value, got {}", n_in);
  const auto bytes = reader.take(static_cast<uint64_t>(n_in) * sizeof(float), "values");
  ImatrixEntry entry{.sum_squares = std::vector<float>(static_cast<size_t>(n_in)),
                     .count = static_cast<double>(n_calls)};
  std::memcpy(entry.sum_squares.data(), bytes.data(), bytes.size());
  check_entry(entry);
  return entry;
}

Imatrix read_old_form(const fs::path& path) {
  const auto file = MappedFile::open(path);
  return with_context(path.string(), [&] {
    ByteReader reader(file->bytes());
    const auto n_entries = reader.read<int32_t>("number of entries");
    // The shortest entry has a name of one byte and one value: 17 bytes.
    if (n_entries < 1 || static_cast<uint64_t>(n_entries) > reader.left() / 17)
      throw Error(fmt::format("not an importance matrix: starts neither with GGUF nor with a number of "
                              "entries that fit into its {} bytes",
                              file->bytes().size()),
                  "expected what llama-imatrix writes, or a profile");
    Imatrix imatrix;
    for (int32_t i = 0; i < n_entries; ++i) {
      const std::string name = read_name(reader, fmt::format("name of entry {}", i));
      with_context(printable(name), [&] {
        if (!imatrix.entries.emplace(name, read_old_entry(reader)).second) fail("the entry appears twice");
      });
    }
    if (reader.left() > 0) imatrix.chunk_count = reader.read<int32_t>("number of chunks");
    check_chunks(imatrix);
    if (reader.left() > 0) imatrix.datasets.push_back(read_name(reader, "name of the dataset"));
    if (reader.left() > 0) fail("{} bytes follow the last entry", reader.left());
    return imatrix;
  });
}

bool is_hdf5(const fs::path& path) {
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size())
      .starts_with("\x89HDF\r\n");
}

/// The tensors of a layer that an importance matrix may list, by name in GGUF.
std::map<std::string_view, const TensorSpec*> matrices(const ModelSpec& spec) {
  std::map<std::string_view, const TensorSpec*> found;
  for (const TensorSpec& tensor : spec.tensors)
    if (tensor.shape.size() == 2) found.emplace(tensor.gguf_name, &tensor);
  return found;
}

}  // namespace

Imatrix load_imatrix(const fs::path& path) {
  return GgufFile::has_magic(path) ? read_gguf_form(path) : read_old_form(path);
}

std::string save_imatrix(const Imatrix& imatrix, const fs::path& path) {
  GgufMetadata keys;
  std::vector<TensorInfo> tensors;
  with_context(path.string(), [&] {
    keys.set("general.type", std::string(kType));
    keys.set(kDatasets, GgufArray{imatrix.datasets});
    check_chunks(imatrix);
    keys.set(kChunkCount, static_cast<uint32_t>(imatrix.chunk_count));
    keys.set(kChunkSize, static_cast<uint32_t>(imatrix.chunk_size));
    if (!imatrix.permutation_digest.empty()) keys.set(kDigest, imatrix.permutation_digest);
    for (const auto& [name, entry] : imatrix.entries) {
      with_context(name, [&one = entry] { check_entry(one); });
      tensors.push_back(
          {name + std::string(kSums), DType::kF32, {1, static_cast<int64_t>(entry.sum_squares.size())}});
      tensors.push_back({name + std::string(kCounts), DType::kF32, {1, 1}});
    }
  });
  GgufWriter writer(path, keys, std::move(tensors));
  for (const auto& [name, entry] : imatrix.entries) {
    const auto count = static_cast<float>(entry.count);
    writer.write(std::as_bytes(std::span(entry.sum_squares)));
    writer.write(std::as_bytes(std::span(&count, 1)));
  }
  return writer.finish();
}

void check(const Imatrix& imatrix, const ModelSpec& spec) {
  const auto known = matrices(spec);
  for (const auto& [name, entry] : imatrix.entries) {
    const auto tensor = known.find(name);
    if (tensor == known.end())
      throw Error(fmt::format("{}: the model has no such matrix", printable(name)), kOtherModel);
    const int64_t expected = tensor->second->shape.back();
    if (static_cast<int64_t>(entry.sum_squares.size()) != expected)
      throw Error(fmt::format("{}: expected {} columns, got {}", name, expected, entry.sum_squares.size()),
                  kOtherModel);
  }
}

std::optional<Site> site_of(Role role) {
  switch (role) {
    case Role::kQuery:
    case Role::kKey:
    case Role::kValue:
      return Site::kAttnInput;
    case Role::kAttnOut:
      return Site::kAttnOut;
    case Role::kGate:
    case Role::kUp:
      return Site::kFfnInput;
    case Role::kDown:
      return Site::kFfnDown;
    default:
      return std::nullopt;
  }
}

Imatrix imatrix_of(const Profile& profile, const ModelSpec& spec) {
  const auto expected = static_cast<size_t>(4 * spec.n_layers);
  if (profile.inputs.size() != expected || profile.n_tokens < 1)
    throw Error("the profile has no means of the inputs", "run `elastify profile` again on the source model");
  Imatrix imatrix;
  imatrix.datasets = {profile.corpus};
  imatrix.chunk_size = profile.seq_len;
  imatrix.chunk_count = profile.seq_len > 0 ? profile.n_tokens / profile.seq_len : 0;
  for (const TensorSpec& tensor : spec.tensors) {
    const auto site = site_of(tensor.role);
    if (!site) continue;
    const InputMeans& means =
        profile.inputs[static_cast<size_t>(4 * tensor.layer) + static_cast<size_t>(*site)];
    ImatrixEntry entry{.sum_squares = {}, .count = static_cast<double>(profile.n_tokens)};
    for (const double mean_square : means.mean_square)
      entry.sum_squares.push_back(static_cast<float>(mean_square * entry.count));
    imatrix.entries.emplace(tensor.gguf_name, std::move(entry));
  }
  with_context("means of the inputs", [&] { check(imatrix, spec); });
  return imatrix;
}

Imatrix open_imatrix(const fs::path& path, const ModelSpec& spec) {
  if (is_hdf5(path)) {
    const Profile profile = load_profile(path, spec);
    return with_context(path.string(), [&] { return imatrix_of(profile, spec); });
  }
  Imatrix imatrix = load_imatrix(path);
  with_context(path.string(), [&] {
    check(imatrix, spec);
    if (!imatrix.permutation_digest.empty())
      throw Error("belongs to a reordered model, expected one of the source model",
                  "give what was measured on the source model, before it was reordered");
  });
  return imatrix;
}

std::vector<std::vector<double>> input_mean_squares(const Imatrix& imatrix, const ModelSpec& spec) {
  check(imatrix, spec);
  std::vector<std::vector<double>> means(static_cast<size_t>(4 * spec.n_layers));
  std::vector<std::vector<std::string_view>> names(means.size());
  for (const TensorSpec& tensor : spec.tensors) {
    const auto site = site_of(tensor.role);
    if (!site) continue;
    const size_t index = static_cast<size_t>(4 * tensor.layer) + static_cast<size_t>(*site);
    names[index].push_back(tensor.gguf_name);
    const auto found = imatrix.entries.find(tensor.gguf_name);
    if (found == imatrix.entries.end() || !means[index].empty()) continue;
    for (const float sum : found->second.sum_squares)
      means[index].push_back(static_cast<double>(sum) / found->second.count);
  }
  for (size_t i = 0; i < means.size(); ++i)
    if (means[i].empty())
      throw Error(fmt::format("no entry for {}", fmt::join(names[i], " or ")), kOtherModel);
  return means;
}

Imatrix reordered(const Imatrix& imatrix, const ModelSpec& spec, const Permutation& permutation) {
  check(imatrix, spec);
  check(permutation, spec);
  if (!imatrix.permutation_digest.empty()) fail("the importance matrix was reordered before");
  Imatrix moved = imatrix;
  moved.permutation_digest = digest(permutation);
  const auto known = matrices(spec);
  for (auto& [name, entry] : moved.entries) {
    const AxisUse& columns = known.at(name)->axes.back();
    if (columns.space < 0) continue;
    const auto& order = permutation.orders[static_cast<size_t>(columns.space)];
    const std::vector<float>& old = imatrix.entries.at(name).sum_squares;
    for (size_t i = 0; i < order.size(); ++i)
      std::copy_n(old.begin() + order[i] * columns.block, columns.block,
                  entry.sum_squares.begin() + static_cast<int64_t>(i) * columns.block);
  }
  return moved;
}

Imatrix narrowed(const Imatrix& imatrix, const ModelSpec& spec, const Widths& widths) {
  check(imatrix, spec);
  check_widths(spec, widths);
  Imatrix narrow = imatrix;
  const auto known = matrices(spec);
  std::erase_if(narrow.entries,
                [&](const auto& entry) { return !is_kept(spec, *known.at(entry.first), widths); });
  for (auto& [name, entry] : narrow.entries)
    entry.sum_squares.resize(static_cast<size_t>(shape_at(*known.at(name), widths).back()));
  return narrow;
}

}  // namespace elastify
