#include "io/llama2c.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "io/byte_reader.h"

namespace elastify {
namespace {

constexpr uint32_t kMagic = 0x616b3432;  // "ak42", read as a little-endian number
constexpr int32_t kVersion = 2;
constexpr uint64_t kHeaderBytes = 256;  // of version 2

uint64_t checked_product(uint64_t a, uint64_t b) {
  uint64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result)) fail("header: the tensors have more than 2^64 bytes");
  return result;
}
uint64_t checked_sum(uint64_t a, uint64_t b) {
  uint64_t result = 0;
  if (__builtin_add_overflow(a, b, &result)) fail("header: the tensors have more than 2^64 bytes");
  return result;
}

bool has_magic(std::span<const std::byte> bytes) {
  uint32_t magic = 0;
  if (bytes.size() < sizeof magic) return false;
  std::memcpy(&magic, bytes.data(), sizeof magic);
  return magic == kMagic;
}

void require_multiple(std::string_view name, int64_t value, std::string_view of, int64_t divisor) {
  if (value % divisor != 0)
    fail("header: expected {} to be a multiple of {} {}, got {}", name, of, divisor, value);
}

Llama2cHeader read_header(ByteReader& reader, bool quantised) {
  Llama2cHeader header;
  if (quantised) {
    reader.read<uint32_t>("magic");
    const auto version = reader.read<int32_t>("version");
    if (version != kVersion)
      fail("header: expected version {} after the magic ak42, got {}", kVersion, version);
    header.version = version;
  }
  const std::array<std::pair<std::string_view, int64_t*>, 7> fields = {{{"dim", &header.d_model},
                                                                        {"hidden_dim", &header.d_ff},
                                                                        {"n_layers", &header.n_layers},
                                                                        {"n_heads", &header.n_heads},
                                                                        {"n_kv_heads", &header.n_kv_heads},
                                                                        {"vocab_size", &header.n_vocab},
                                                                        {"seq_len", &header.max_seq}}};
  for (const auto& [name, value] : fields) {
    *value = reader.read<int32_t>("header");
    if (!quantised && value == &header.n_vocab &&
        *value < 0) {  // a negative number says that there is a classifier
      header.tied = false;
      *value = -*value;
    }
    if (*value <= 0) fail("header: expected {} to be positive, got {}", name, *value);
  }
  if (quantised) {
    const auto shared = reader.read<uint8_t>("header");
    if (shared > 1) fail("header: expected shared_classifier to be 0 or 1, got {}", shared);
    header.tied = shared == 1;
    header.group_size = reader.read<int32_t>("header");
    if (header.group_size <= 0) fail("header: expected group_size to be positive, got {}", header.group_size);
    reader.take(kHeaderBytes - reader.position(), "header");
  }
  require_multiple("dim", header.d_model, "n_heads", header.n_heads);
  require_multiple("n_heads", header.n_heads, "n_kv_heads", header.n_kv_heads);
  const int64_t head = header.d_model / header.n_heads;
  if (head % 2 != 0) fail("header: expected the head size to be even, got {}", head);
  return header;
}

// One kind of tensor. The file holds kind after kind.
struct Kind {
  std::string_view name;
  Shape shape;
  bool per_layer = true;
  bool norm = false;
  bool skipped = false;  // in the file, but of no use
};

std::vector<Kind> kinds(const Llama2cHeader& h) {
  const int64_t head = h.d_model / h.n_heads;
  const int64_t d_kv = head * h.n_kv_heads;
  const Kind tok_embeddings = {"tok_embeddings", {h.n_vocab, h.d_model}, false};
  const Kind attention_norm = {"attention_norm", {h.d_model}, true, true};
  const Kind ffn_norm = {"ffn_norm", {h.d_model}, true, true};
  const Kind norm = {"norm", {h.d_model}, false, true};
  const Kind wq = {"wq", {h.d_model, h.d_model}}, wk = {"wk", {d_kv, h.d_model}};
  const Kind wv = {"wv", {d_kv, h.d_model}}, wo = {"wo", {h.d_model, h.d_model}};
  const Kind w1 = {"w1", {h.d_ff, h.d_model}}, w2 = {"w2", {h.d_model, h.d_ff}},
             w3 = {"w3", {h.d_ff, h.d_model}};
  std::vector<Kind> result;
  if (h.version == 0) {
    const Shape angles = {h.max_seq, head / 2};
    result = {tok_embeddings,
              attention_norm,
              wq,
              wk,
              wv,
              wo,
              ffn_norm,
              w1,
              w2,
              w3,
              norm,
              Kind{"freq_cis_real", angles, false, false, true},
              Kind{"freq_cis_imag", angles, false, false, true}};
  } else {
    result = {attention_norm, ffn_norm, norm, tok_embeddings, wq, wk, wv, wo, w1, w2, w3};
  }
  if (!h.tied) result.push_back({"output", {h.n_vocab, h.d_model}, false});
  return result;
}

bool is_quantised(const Llama2cHeader& header, const Kind& kind) {
  return header.version != 0 && !kind.norm;
}

// Bytes of one tensor's values, and of the scales after them.
std::pair<uint64_t, uint64_t> sizes(const Llama2cHeader& header, const Kind& kind) {
  const auto n = static_cast<uint64_t>(n_elements(kind.shape));
  if (!is_quantised(header, kind)) return {checked_product(n, 4), 0};
  const auto group = static_cast<uint64_t>(header.group_size);
  if (n % group != 0)
    fail("header: expected {} {} to be a multiple of group_size {}", kind.name, to_string(kind.shape), group);
  return {n, checked_product(n / group, 4)};
}

}  // namespace

Llama2cFile Llama2cFile::open(const fs::path& path) {
  Llama2cFile result;
  result.file_ = MappedFile::open(path);
  with_context(path.string(), [&] { result.parse(); });
  return result;
}

void Llama2cFile::parse() {
  const auto bytes = file_->bytes();
  ByteReader reader(bytes);
  header_ = read_header(reader, has_magic(bytes));
  const std::vector<Kind> all = kinds(header_);
  const auto n_layers = static_cast<uint64_t>(header_.n_layers);

  // The size is checked first, because it bounds the number of tensors by the size of the file.
  uint64_t expected = reader.position();
  for (const Kind& kind : all) {
    const auto [values, scales] = sizes(header_, kind);
    expected =
        checked_sum(expected, checked_product(checked_sum(values, scales), kind.per_layer ? n_layers : 1));
  }
  if (expected != bytes.size())
    fail("header: dim {}, hidden_dim {}, n_layers {} and so on need a file of {} bytes, but it has {}",
         header_.d_model, header_.d_ff, header_.n_layers, expected, bytes.size());

  uint64_t offset = reader.position();
  for (const Kind& kind : all) {
    const auto [values, scales] = sizes(header_, kind);
    for (uint64_t layer = 0; layer < (kind.per_layer ? n_layers : 1); ++layer) {
      if (!kind.skipped) {
        std::string name = kind.per_layer ? fmt::format("{}.{}", kind.name, layer) : std::string(kind.name);
        index_.emplace(name, tensors_.size());
        tensors_.push_back({std::move(name), DType::kF32, kind.shape});
        places_.push_back({offset, offset + values, is_quantised(header_, kind)});
      }
      offset += values + scales;
    }
  }
}

bool Llama2cFile::matches(const fs::path& path) {
  const auto file = MappedFile::open(path);
  if (has_magic(file->bytes())) return true;
  try {
    Llama2cFile candidate;
    candidate.file_ = file;
    candidate.parse();
    return true;
  } catch (const Error&) {
    return false;
  }
}

HostTensor Llama2cFile::tensor(std::string_view name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) fail("{}: there is no tensor {}", file_->path().string(), printable(name));
  const Shape& shape = tensors_[found->second].shape;
  const Place& place = places_[found->second];
  const auto n = static_cast<uint64_t>(n_elements(shape));
  if (!place.quantised)
    return {DType::kF32, shape, file_->bytes().subspan(place.offset, n * sizeof(float)), file_};

  HostTensor result = HostTensor::allocate(DType::kF32, shape);
  auto* target = reinterpret_cast<float*>(result.writable().data());
  const auto* values = reinterpret_cast<const int8_t*>(file_->bytes().data() + place.offset);
  const std::byte* scales = file_->bytes().data() + place.scale_offset;  // not always aligned
  const auto group_size = static_cast<uint64_t>(header_.group_size);
  const uint64_t n_groups = n / group_size;
#pragma omp parallel for schedule(static) if (n > 100'000)
  for (uint64_t group = 0; group < n_groups; ++group) {
    float scale;
    std::memcpy(&scale, scales + group * sizeof scale, sizeof scale);
    const int8_t* q = values + group * group_size;
    float* y = target + group * group_size;
    for (uint64_t i = 0; i < group_size; ++i) y[i] = static_cast<float>(q[i]) * scale;
  }
  return result;
}

}  // namespace elastify
