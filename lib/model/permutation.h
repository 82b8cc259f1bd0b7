#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/file.h"
#include "io/tensor.h"
#include "model/spec.h"

namespace elastify {

/// An order of the units of every space: new[i] = old[order[i]].
struct Permutation {
  std::string spec_hash;
  std::string metric;                        ///< source of the order: "taylor", "random", ...
  std::vector<std::vector<int64_t>> orders;  ///< [spaces][n_units]
};

Permutation identity_permutation(const ModelSpec& spec);
Permutation inverse(const Permutation& permutation);
/// \throws Error  unless the permutation was made for this spec and every order is a permutation of its
///   space's units
void check(const Permutation& permutation, const ModelSpec& spec);
/// SHA-256 of the orders.
std::string digest(const Permutation& permutation);

/// HDF5: attributes `format` = "elastify.permutation", `version` = 1, `spec_hash`, `metric`;
/// datasets /orders/<space name>, int64 [n_units].
void save_permutation(const Permutation& permutation, const ModelSpec& spec, const fs::path& path);
/// \throws Error  naming file and space
Permutation load_permutation(const fs::path& path, const ModelSpec& spec);

/// Moves the units of every axis of one tensor: block `order[i]` of the source becomes block i. Quantised
/// tensors can move whole rows only.
/// \throws Error
HostTensor permute(const HostTensor& tensor, const TensorSpec& spec, const Permutation& permutation);

/// The leading part of a tensor at these widths, as a copy. Quantised rows can be cut only between blocks.
/// \throws Error  naming the tensor and the nearest widths that its type can carry
HostTensor slice(const HostTensor& tensor, const TensorSpec& spec, const Widths& widths);

}  // namespace elastify
