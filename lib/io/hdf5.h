#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"

namespace elastify {

/// An HDF5 file of whole datasets, through the C API. Paths are absolute inside the file
/// ("/layers/removal_loss"); missing groups are made. Written atomically and without time stamps, so that
/// the same content gives the same bytes.
class Hdf5Writer {
 public:
  explicit Hdf5Writer(const fs::path& path);
  ~Hdf5Writer();
  Hdf5Writer(const Hdf5Writer&) = delete;
  Hdf5Writer& operator=(const Hdf5Writer&) = delete;

  void write(std::string_view path, std::span<const float> values);
  void write(std::string_view path, std::span<const double> values);
  void write(std::string_view path, std::span<const int64_t> values);
  /// Writes a symmetric matrix in square chunks. Only the chunks that the lower triangle touches are stored.
  /// \param values  [n, n]; only the lower triangle is read
  void write_symmetric(std::string_view path, std::span<const double> values, int64_t n);
  /// Sets an attribute of the root group.
  void attribute(std::string_view name, std::string_view value);
  void attribute(std::string_view name, int64_t value);
  void attribute(std::string_view name, double value);
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

class Hdf5Reader {
 public:
  /// \throws Error naming the file if it is absent, truncated or not HDF5
  explicit Hdf5Reader(const fs::path& path);
  ~Hdf5Reader();
  static bool has_magic(const fs::path& path);
  Hdf5Reader(const Hdf5Reader&) = delete;
  Hdf5Reader& operator=(const Hdf5Reader&) = delete;

  bool contains(std::string_view path) const;
  std::vector<std::string> list(std::string_view group) const;  ///< child names, sorted
  // \throws Error naming path, expected and found type or rank
  std::vector<float> floats(std::string_view path) const;
  std::vector<double> doubles(std::string_view path) const;
  std::vector<int64_t> integers(std::string_view path) const;
  /// Reads a matrix that write_symmetric() wrote, and fills both triangles.
  /// \throws Error  if it is not [n, n]
  std::vector<double> symmetric(std::string_view path, int64_t n) const;
  uint64_t stored_bytes(std::string_view path) const;  ///< bytes that a dataset takes in the file
  bool has_attribute(std::string_view name) const;
  std::string string_attribute(std::string_view name) const;
  int64_t integer_attribute(std::string_view name) const;
  double number_attribute(std::string_view name) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace elastify
