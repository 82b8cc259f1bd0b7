#include "model/permutation.h"

#include <cstring>
#include <numeric>

#include "base/error.h"
#include "base/hash.h"
#include "io/hdf5.h"

namespace elastify {
namespace {

constexpr const char* kFormat = "elastify.permutation";
constexpr int64_t kVersion = 1;

/// \throws Error  unless `order` holds each of 0 .. n_units - 1 once
void check_order(const std::vector<int64_t>& order, const AxisSpace& space) {
  if (static_cast<int64_t>(order.size()) != space.n_units)
    fail("{}: expected {} units, got {}", space.name, space.n_units, order.size());
  std::vector<bool> seen(order.size(), false);
  for (const int64_t unit : order) {
    if (unit < 0 || unit >= space.n_units)
      fail("{}: unit {} is outside 0 to {}", space.name, unit, space.n_units - 1);
    if (seen[static_cast<size_t>(unit)]) fail("{}: unit {} appears twice", space.name, unit);
    seen[static_cast<size_t>(unit)] = true;
  }
}

void require_shape(const HostTensor& tensor, const TensorSpec& spec) {
  if (tensor.shape != spec.shape)
    fail("{}: expected shape {}, got {}", spec.name, to_string(spec.shape), to_string(tensor.shape));
  const uint64_t bytes = n_bytes(tensor.dtype, tensor.shape);
  if (tensor.bytes.size() != bytes)
    fail("{}: expected {} bytes, got {}", spec.name, bytes, tensor.bytes.size());
}

/// The order of one axis's units. It is checked here as well, since it determines which bytes are copied.
const std::vector<int64_t>& order_for(const TensorSpec& spec, size_t axis, const Permutation& permutation) {
  const auto space = static_cast<size_t>(spec.axes[axis].space);
  if (space >= permutation.orders.size()) fail("{}: the permutation has no order for its units", spec.name);
  const std::vector<int64_t>& order = permutation.orders[space];
  const int64_t n_units = spec.shape[axis] / spec.axes[axis].block;
  check_order(order, {spec.name, SpaceKind::kMlp, spec.layer, n_units});
  return order;
}

/// Permutes units that are consecutive runs of `unit` bytes.
HostTensor permute_runs(const HostTensor& tensor, const std::vector<int64_t>& order, size_t unit) {
  HostTensor moved = HostTensor::allocate(tensor.dtype, tensor.shape);
  std::byte* const target = moved.writable().data();
  const std::byte* const source = tensor.bytes.data();
  const auto n_units = static_cast<int64_t>(order.size());
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n_units; ++i) {
    const auto from = static_cast<size_t>(order[static_cast<size_t>(i)]);
    std::memcpy(target + static_cast<size_t>(i) * unit, source + from * unit, unit);
  }
  return moved;
}

template <typename Element>
void gather_rows(const std::byte* source, std::byte* target, int64_t n_rows,
                 const std::vector<int64_t>& order) {
  const auto width = static_cast<int64_t>(order.size());
  const auto* const from = reinterpret_cast<const Element*>(source);
  auto* const to = reinterpret_cast<Element*>(target);
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < n_rows; ++row) {
    const Element* const old_row = from + row * width;
    Element* const new_row = to + row * width;
    for (int64_t i = 0; i < width; ++i) new_row[i] = old_row[order[static_cast<size_t>(i)]];
  }
}

/// Permutes units that are runs of `block` elements inside every row.
HostTensor permute_columns(const HostTensor& tensor, const std::vector<int64_t>& order, int64_t block) {
  HostTensor moved = HostTensor::allocate(tensor.dtype, tensor.shape);
  std::byte* const target = moved.writable().data();
  const std::byte* const source = tensor.bytes.data();
  const int64_t rows = n_rows(tensor.shape);
  const auto element = static_cast<size_t>(info(tensor.dtype).block_bytes);
  const bool aligned = reinterpret_cast<uintptr_t>(source) % element == 0;
  if (block == 1 && aligned && element == 4) {
    gather_rows<uint32_t>(source, target, rows, order);
  } else if (block == 1 && aligned && element == 2) {
    gather_rows<uint16_t>(source, target, rows, order);
  } else {
    const size_t unit = element * static_cast<size_t>(block);
    const size_t row_size = unit * order.size();
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
      const size_t begin = static_cast<size_t>(row) * row_size;
      for (size_t i = 0; i < order.size(); ++i)
        std::memcpy(target + begin + i * unit, source + begin + static_cast<size_t>(order[i]) * unit, unit);
    }
  }
  return moved;
}

HostTensor permute_axis(const HostTensor& tensor, const TensorSpec& spec, size_t axis,
                        const std::vector<int64_t>& order) {
  const bool innermost = axis + 1 == spec.shape.size();
  if (innermost && !is_float(tensor.dtype))
    throw Error(fmt::format("{}: units lie inside rows of {}, which cannot be taken apart", spec.name,
                            info(tensor.dtype).name),
                "convert the tensor to a float type first");
  if (axis == 0) return permute_runs(tensor, order, tensor.bytes.size() / order.size());
  if (innermost) return permute_columns(tensor, order, spec.axes[axis].block);
  fail("{}: units on an axis that is neither the first nor the last", spec.name);
}

/// Throws an error that names the widths next to `width` at which rows of this type can be cut.
[[noreturn]] void refuse_cut(const TensorSpec& spec, DType dtype, const AxisUse& use, int64_t width,
                             int64_t n_units) {
  const int64_t block_size = info(dtype).block_size;
  const int64_t step = block_size / std::gcd(block_size, use.block);
  const int64_t below = width / step * step;
  const int64_t above = std::min(below + step, n_units);
  throw Error(fmt::format("{}: {} rows cannot be cut to {} of {} units: blocks hold {} elements", spec.name,
                          info(dtype).name, width, n_units, block_size),
              below > 0 ? fmt::format("the nearest widths are {} and {}", below, above)
                        : fmt::format("the nearest width is {}", above));
}

}  // namespace

Permutation identity_permutation(const ModelSpec& spec) {
  Permutation permutation{.spec_hash = spec_hash(spec), .metric = "none", .orders = {}};
  for (const AxisSpace& space : spec.spaces) {
    std::vector<int64_t>& order = permutation.orders.emplace_back(static_cast<size_t>(space.n_units));
    std::iota(order.begin(), order.end(), 0);
  }
  return permutation;
}

Permutation inverse(const Permutation& permutation) {
  Permutation back = permutation;
  for (size_t space = 0; space < permutation.orders.size(); ++space) {
    const std::vector<int64_t>& order = permutation.orders[space];
    check_order(order,
                {fmt::format("space {}", space), SpaceKind::kMlp, 0, static_cast<int64_t>(order.size())});
    for (size_t i = 0; i < order.size(); ++i)
      back.orders[space][static_cast<size_t>(order[i])] = static_cast<int64_t>(i);
  }
  return back;
}

void check(const Permutation& permutation, const ModelSpec& spec) {
  if (permutation.orders.size() != spec.spaces.size())
    fail("expected orders for {} spaces, got {}", spec.spaces.size(), permutation.orders.size());
  for (size_t i = 0; i < spec.spaces.size(); ++i) check_order(permutation.orders[i], spec.spaces[i]);
  if (permutation.spec_hash != spec_hash(spec))
    throw Error("the permutation belongs to another model", "make it again from a profile of this model");
}

std::string digest(const Permutation& permutation) {
  Sha256 sha;
  for (const std::vector<int64_t>& order : permutation.orders) {
    const auto size = static_cast<int64_t>(order.size());
    sha.update(std::as_bytes(std::span(&size, 1)));
    sha.update(std::as_bytes(std::span(order)));
  }
  return sha.finish();
}

void save_permutation(const Permutation& permutation, const ModelSpec& spec, const fs::path& path) {
  check(permutation, spec);
  Hdf5Writer file(path);
  file.attribute("format", std::string_view(kFormat));
  file.attribute("version", kVersion);
  file.attribute("spec_hash", std::string_view(permutation.spec_hash));
  file.attribute("metric", std::string_view(permutation.metric));
  for (size_t i = 0; i < spec.spaces.size(); ++i)
    file.write("/orders/" + spec.spaces[i].name, std::span<const int64_t>(permutation.orders[i]));
  file.commit();
}

Permutation load_permutation(const fs::path& path, const ModelSpec& spec) {
  const Hdf5Reader file(path);
  return with_context(path.string(), [&] {
    if (!file.has_attribute("format") || file.string_attribute("format") != kFormat)
      fail("not a permutation file (attribute format is not {})", kFormat);
    if (const int64_t version = file.integer_attribute("version"); version != kVersion)
      fail("version {} of the format is not supported; supported is {}", version, kVersion);
    Permutation permutation{.spec_hash = file.string_attribute("spec_hash"),
                            .metric = file.string_attribute("metric"),
                            .orders = {}};
    for (const AxisSpace& space : spec.spaces) {
      const std::string place = "/orders/" + space.name;
      if (!file.contains(place)) fail("{}: no order for this space", space.name);
      permutation.orders.push_back(file.integers(place));
    }
    check(permutation, spec);
    return permutation;
  });
}

HostTensor permute(const HostTensor& tensor, const TensorSpec& spec, const Permutation& permutation) {
  require_shape(tensor, spec);
  HostTensor moved = tensor;
  for (size_t axis = 0; axis < spec.axes.size(); ++axis) {
    if (spec.axes[axis].space >= 0)
      moved = permute_axis(moved, spec, axis, order_for(spec, axis, permutation));
  }
  return moved;
}

HostTensor slice(const HostTensor& tensor, const TensorSpec& spec, const Widths& widths) {
  require_shape(tensor, spec);
  for (size_t axis = 0; axis < spec.axes.size(); ++axis) {
    const AxisUse& use = spec.axes[axis];
    if (use.space < 0) continue;
    const int64_t n_units = spec.shape[axis] / use.block;
    const int64_t width =
        static_cast<size_t>(use.space) < widths.size() ? widths[static_cast<size_t>(use.space)] : 0;
    if (width < 1 || width > n_units) fail("{}: width is {}, expected 1 to {}", spec.name, width, n_units);
    const bool innermost = axis + 1 == spec.axes.size();
    if (innermost && width * use.block % info(tensor.dtype).block_size != 0)
      refuse_cut(spec, tensor.dtype, use, width, n_units);
  }

  HostTensor part = HostTensor::allocate(tensor.dtype, shape_at(spec, widths));
  const std::span<std::byte> target = part.writable();
  const auto kept_row = static_cast<size_t>(row_bytes(tensor.dtype, part.shape.back()));
  const auto full_row = static_cast<size_t>(row_bytes(tensor.dtype, tensor.shape.back()));
  if (kept_row == full_row) {
    std::memcpy(target.data(), tensor.bytes.data(), target.size());
    return part;
  }
  const int64_t rows = n_rows(part.shape);
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(target.data() + static_cast<size_t>(row) * kept_row,
                tensor.bytes.data() + static_cast<size_t>(row) * full_row, kept_row);
  }
  return part;
}

}  // namespace elastify
