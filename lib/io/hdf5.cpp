#include "io/hdf5.h"

#include <hdf5.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"
#include "io/byte_reader.h"

namespace elastify {
namespace {

// An HDF5 identifier and the function that closes it.
class Handle {
 public:
  Handle() = default;
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  ~Handle() { reset(); }
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)), close_(other.close_) {}
  Handle& operator=(Handle&& other) noexcept {
    if (this != &other) {
      reset();
      id_ = std::exchange(other.id_, H5I_INVALID_HID);
      close_ = other.close_;
    }
    return *this;
  }

  hid_t get() const { return id_; }
  bool valid() const { return id_ >= 0; }
  herr_t reset() { return valid() ? close_(std::exchange(id_, H5I_INVALID_HID)) : 0; }

 private:
  hid_t id_ = H5I_INVALID_HID;
  herr_t (*close_)(hid_t) = nullptr;
};

// HDF5 prints its errors to stderr unless told not to; the setting is the calling thread's.
void silence_errors() {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

// The innermost message on HDF5's error stack: the cause.
std::string cause() {
  std::string message = "unknown cause";
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned n, const H5E_error2_t* error, void* out) -> herr_t {
        if (n == 0 && error->desc != nullptr) *static_cast<std::string*>(out) = printable(error->desc);
        return 0;
      },
      &message);
  return message;
}

Handle checked(hid_t id, herr_t (*close)(hid_t), std::string_view action) {
  if (id < 0) fail("cannot {}: {}", action, cause());
  return {id, close};
}

void check(herr_t status, std::string_view action) {
  if (status < 0) fail("cannot {}: {}", action, cause());
}

std::string describe_type(hid_t type) {
  const size_t bits = H5Tget_size(type) * 8;
  switch (H5Tget_class(type)) {
    case H5T_INTEGER:
      return fmt::format("{}{}", H5Tget_sign(type) == H5T_SGN_NONE ? "uint" : "int", bits);
    case H5T_FLOAT:
      return fmt::format("float{}", bits);
    case H5T_STRING:
      return "string";
    default:
      return "another type";
  }
}

// Every path that leads to the object, and the object itself: /a/b/c gives /a, /a/b, /a/b/c.
std::vector<std::string> prefixes(std::string_view path) {
  std::vector<std::string> result;
  for (size_t end = path.find('/', 1); end != std::string_view::npos; end = path.find('/', end + 1))
    result.emplace_back(path.substr(0, end));
  result.emplace_back(path);
  return result;
}

bool is_absolute(std::string_view path) {
  return path.size() > 1 && path.front() == '/' && path.back() != '/' &&
         path.find("//") == std::string_view::npos && path.find('\0') == std::string_view::npos;
}

constexpr hsize_t kSymmetricChunk = 256;

Handle scalar_space() {
  return checked(H5Screate(H5S_SCALAR), H5Sclose, "make a data space");
}

}  // namespace

struct Hdf5Writer::State {
  explicit State(const fs::path& path) : target(path) {}

  void write(std::string_view path, hid_t stored_type, hid_t memory_type, const void* values, size_t n);
  void write_symmetric(std::string_view path, std::span<const double> values, hsize_t n);
  /// Makes a new dataset and the groups that lead to it.
  Handle create(std::string_view path, hid_t stored_type, std::span<const hsize_t> dims, hsize_t chunk);
  void attribute(std::string_view name, hid_t stored_type, hid_t memory_type, const void* value);

  // The order matters: HDF5 writes into the temporary file of `target` and has to close it first.
  AtomicFile target;
  Handle file;
};

Handle Hdf5Writer::State::create(std::string_view path, hid_t stored_type, std::span<const hsize_t> dims,
                                 hsize_t chunk) {
  if (!is_absolute(path)) fail("expected a path like /group/name");
  const auto link_options = checked(H5Pcreate(H5P_LINK_CREATE), H5Pclose, "set options");
  check(H5Pset_char_encoding(link_options.get(), H5T_CSET_UTF8), "set options");
  for (const std::string& prefix : prefixes(path)) {
    const bool exists = H5Lexists(file.get(), prefix.c_str(), H5P_DEFAULT) > 0;
    if (prefix == path) {
      if (exists) fail("written twice");
    } else if (!exists) {
      const auto options = checked(H5Pcreate(H5P_GROUP_CREATE), H5Pclose, "set options");
      check(H5Pset_obj_track_times(options.get(), false), "set options");
      checked(H5Gcreate2(file.get(), prefix.c_str(), link_options.get(), options.get(), H5P_DEFAULT),
              H5Gclose, "make the group");
    }
  }
  const auto options = checked(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "set options");
  check(H5Pset_obj_track_times(options.get(), false), "set options");
  check(H5Pset_fill_time(options.get(), H5D_FILL_TIME_NEVER), "set options");
  if (chunk > 0) {
    const std::vector<hsize_t> chunks(dims.size(), chunk);
    check(H5Pset_chunk(options.get(), static_cast<int>(dims.size()), chunks.data()), "set options");
  }
  const auto space = checked(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr), H5Sclose,
                             "make a data space");
  return checked(H5Dcreate2(file.get(), std::string(path).c_str(), stored_type, space.get(),
                            link_options.get(), options.get(), H5P_DEFAULT),
                 H5Dclose, "make the dataset");
}

void Hdf5Writer::State::write(std::string_view path, hid_t stored_type, hid_t memory_type, const void* values,
                              size_t n) {
  with_context(fmt::format("{}: {}", target.path().string(), printable(path)), [&] {
    const hsize_t dims[] = {n};
    Handle dataset = create(path, stored_type, dims, 0);
    if (n > 0) check(H5Dwrite(dataset.get(), memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values), "write");
    check(dataset.reset(), "write");
  });
}

void Hdf5Writer::State::write_symmetric(std::string_view path, std::span<const double> values, hsize_t n) {
  with_context(fmt::format("{}: {}", target.path().string(), printable(path)), [&] {
    if (n == 0 || values.size() != n * n) fail("expected {} x {} values, got {}", n, n, values.size());
    const hsize_t dims[] = {n, n}, chunk = std::min<hsize_t>(n, kSymmetricChunk);
    Handle dataset = create(path, H5T_IEEE_F64LE, dims, chunk);
    const auto target_space = checked(H5Dget_space(dataset.get()), H5Sclose, "make a data space");
    std::vector<double> rows;
    for (hsize_t first = 0; first < n; first += chunk) {
      const hsize_t end = std::min(n, first + chunk);
      const hsize_t start[] = {first, 0}, count[] = {end - first, end};
      // The chunk on the diagonal covers both triangles: values above the diagonal are copied from below.
      rows.clear();
      for (hsize_t row = first; row < end; ++row)
        for (hsize_t column = 0; column < end; ++column)
          rows.push_back(values[std::max(row, column) * n + std::min(row, column)]);
      const auto memory = checked(H5Screate_simple(2, count, nullptr), H5Sclose, "make a data space");
      check(H5Sselect_hyperslab(target_space.get(), H5S_SELECT_SET, start, nullptr, count, nullptr),
            "select");
      check(H5Dwrite(dataset.get(), H5T_NATIVE_DOUBLE, memory.get(), target_space.get(), H5P_DEFAULT,
                     rows.data()),
            "write");
    }
    check(dataset.reset(), "write");
  });
}

void Hdf5Writer::State::attribute(std::string_view name, hid_t stored_type, hid_t memory_type,
                                  const void* value) {
  with_context(fmt::format("{}: attribute {}", target.path().string(), printable(name)), [&] {
    const std::string terminated(name);
    if (H5Aexists(file.get(), terminated.c_str()) > 0) fail("written twice");
    const auto space = scalar_space();
    auto attribute = checked(
        H5Acreate2(file.get(), terminated.c_str(), stored_type, space.get(), H5P_DEFAULT, H5P_DEFAULT),
        H5Aclose, "make the attribute");
    check(H5Awrite(attribute.get(), memory_type, value), "write");
    check(attribute.reset(), "write");
  });
}

Hdf5Writer::Hdf5Writer(const fs::path& path) {
  silence_errors();
  state_ = std::make_unique<State>(path);
  with_context(path.string(), [&] {
    const auto access = checked(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "set options");
    // The format of HDF5 1.8 has checksums on all metadata. In older formats damage goes unnoticed.
    check(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_V18), "set options");
    const auto creation = checked(H5Pcreate(H5P_FILE_CREATE), H5Pclose, "set options");
    check(H5Pset_obj_track_times(creation.get(), false), "set options");
    state_->file =
        checked(H5Fcreate(state_->target.temporary().c_str(), H5F_ACC_TRUNC, creation.get(), access.get()),
                H5Fclose, "write");
  });
}

Hdf5Writer::~Hdf5Writer() = default;

void Hdf5Writer::write(std::string_view path, std::span<const float> values) {
  state_->write(path, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, values.data(), values.size());
}
void Hdf5Writer::write(std::string_view path, std::span<const double> values) {
  state_->write(path, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, values.data(), values.size());
}
void Hdf5Writer::write(std::string_view path, std::span<const int64_t> values) {
  state_->write(path, H5T_STD_I64LE, H5T_NATIVE_INT64, values.data(), values.size());
}

void Hdf5Writer::write_symmetric(std::string_view path, std::span<const double> values, int64_t n) {
  state_->write_symmetric(path, values, static_cast<hsize_t>(n));
}

void Hdf5Writer::attribute(std::string_view name, std::string_view value) {
  const auto type = checked(H5Tcopy(H5T_C_S1), H5Tclose, "make a string type");
  check(H5Tset_size(type.get(), std::max<size_t>(value.size(), 1)), "make a string type");
  check(H5Tset_strpad(type.get(), H5T_STR_NULLPAD), "make a string type");
  check(H5Tset_cset(type.get(), H5T_CSET_UTF8), "make a string type");
  state_->attribute(name, type.get(), type.get(), value.empty() ? "" : value.data());
}
void Hdf5Writer::attribute(std::string_view name, int64_t value) {
  state_->attribute(name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}
void Hdf5Writer::attribute(std::string_view name, double value) {
  state_->attribute(name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &value);
}

void Hdf5Writer::commit() {
  with_context(state_->target.path().string(), [&] { check(state_->file.reset(), "write"); });
  state_->target.commit();
}

struct Hdf5Reader::State {
  explicit State(const fs::path& file_path) : path(file_path) {}

  template <typename T>
  std::vector<T> read(std::string_view name, hid_t stored_type, hid_t memory_type,
                      std::string_view expected) const;
  Handle attribute(std::string_view name) const;
  template <typename T>
  T number_attribute(std::string_view name, hid_t stored_type, hid_t memory_type,
                     std::string_view expected) const;
  bool exists(std::string_view name) const;
  std::string place(std::string_view name) const {
    return fmt::format("{}: {}", path.string(), printable(name));
  }

  fs::path path;
  uint64_t size = 0;
  Handle file;
};

bool Hdf5Reader::State::exists(std::string_view name) const {
  if (!is_absolute(name)) return name == "/";
  return std::ranges::all_of(prefixes(name), [&](const std::string& prefix) {
    return H5Lexists(file.get(), prefix.c_str(), H5P_DEFAULT) > 0;
  });
}

template <typename T>
std::vector<T> Hdf5Reader::State::read(std::string_view name, hid_t stored_type, hid_t memory_type,
                                       std::string_view expected) const {
  return with_context(place(name), [&]() -> std::vector<T> {
    if (!exists(name)) fail("expected a dataset of {}, but there is none", expected);
    const Handle dataset(H5Dopen2(file.get(), std::string(name).c_str(), H5P_DEFAULT), H5Dclose);
    if (!dataset.valid()) fail("expected a dataset of {}: {}", expected, cause());
    const auto type = checked(H5Dget_type(dataset.get()), H5Tclose, "read the type");
    if (H5Tequal(type.get(), stored_type) <= 0)
      fail("expected {}, got {}", expected, describe_type(type.get()));
    const auto space = checked(H5Dget_space(dataset.get()), H5Sclose, "read the shape");
    const int rank = H5Sget_simple_extent_ndims(space.get());
    if (rank != 1) fail("expected 1 axis, got {}", rank);
    hsize_t n = 0;
    check(H5Sget_simple_extent_dims(space.get(), &n, nullptr), "read the shape");
    const auto options = checked(H5Dget_create_plist(dataset.get()), H5Pclose, "read the layout");
    if (H5Pget_nfilters(options.get()) != 0) fail("expected plain values, got compressed ones");
    // A dataset may claim more values than are stored, or more than the file can hold.
    const hsize_t stored = H5Dget_storage_size(dataset.get());
    if (n > size / sizeof(T) || stored / sizeof(T) < n)
      fail("{} values of {} need more than the {} bytes stored in a file of {}", n, expected, stored, size);
    std::vector<T> values(n);
    if (n > 0)
      check(H5Dread(dataset.get(), memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), "read");
    return values;
  });
}

Handle Hdf5Reader::State::attribute(std::string_view name) const {
  const std::string terminated(name);
  if (H5Aexists(file.get(), terminated.c_str()) <= 0) fail("there is no such attribute");
  Handle attribute = checked(H5Aopen(file.get(), terminated.c_str(), H5P_DEFAULT), H5Aclose, "open");
  const auto space = checked(H5Aget_space(attribute.get()), H5Sclose, "read the shape");
  if (H5Sget_simple_extent_npoints(space.get()) != 1) fail("expected one value");
  return attribute;
}

template <typename T>
T Hdf5Reader::State::number_attribute(std::string_view name, hid_t stored_type, hid_t memory_type,
                                      std::string_view expected) const {
  return with_context(fmt::format("{}: attribute {}", path.string(), printable(name)), [&] {
    const Handle opened = attribute(name);
    const auto type = checked(H5Aget_type(opened.get()), H5Tclose, "read the type");
    if (H5Tequal(type.get(), stored_type) <= 0)
      fail("expected {}, got {}", expected, describe_type(type.get()));
    T value{};
    check(H5Aread(opened.get(), memory_type, &value), "read");
    return value;
  });
}

Hdf5Reader::Hdf5Reader(const fs::path& path) : state_(std::make_unique<State>(path)) {
  silence_errors();
  state_->size = MappedFile::open(path)->bytes().size();  // also gives a clear message if there is no file
  with_context(path.string(), [&] {
    if (H5Fis_hdf5(path.c_str()) <= 0) fail("not an HDF5 file");
    state_->file = Handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
    if (!state_->file.valid())
      throw Error(fmt::format("damaged HDF5 file: {}", cause()),
                  "the file is cut off or was changed; make it again");
  });
}

Hdf5Reader::~Hdf5Reader() = default;

bool Hdf5Reader::has_magic(const fs::path& path) {
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size())
      .starts_with("\x89HDF\r\n");
}

bool Hdf5Reader::contains(std::string_view path) const {
  return state_->exists(path);
}

std::vector<std::string> Hdf5Reader::list(std::string_view group) const {
  return with_context(state_->place(group), [&] {
    if (!state_->exists(group)) fail("expected a group, but there is none");
    const Handle opened(H5Gopen2(state_->file.get(), std::string(group).c_str(), H5P_DEFAULT), H5Gclose);
    if (!opened.valid()) fail("expected a group: {}", cause());
    std::vector<std::string> names;
    const auto collect = [](hid_t, const char* name, const H5L_info_t*, void* out) -> herr_t {
      static_cast<std::vector<std::string>*>(out)->emplace_back(name);
      return 0;
    };
    check(H5Literate(opened.get(), H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, collect, &names), "list");
    std::ranges::sort(names);
    return names;
  });
}

std::vector<float> Hdf5Reader::floats(std::string_view path) const {
  return state_->read<float>(path, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, "float32");
}
std::vector<double> Hdf5Reader::doubles(std::string_view path) const {
  return state_->read<double>(path, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, "float64");
}
std::vector<int64_t> Hdf5Reader::integers(std::string_view path) const {
  return state_->read<int64_t>(path, H5T_STD_I64LE, H5T_NATIVE_INT64, "int64");
}

std::vector<double> Hdf5Reader::symmetric(std::string_view path, int64_t n) const {
  return with_context(state_->place(path), [&] {
    if (!state_->exists(path)) fail("expected a dataset of float64, but there is none");
    const Handle dataset(H5Dopen2(state_->file.get(), std::string(path).c_str(), H5P_DEFAULT), H5Dclose);
    if (!dataset.valid()) fail("expected a dataset of float64: {}", cause());
    const auto type = checked(H5Dget_type(dataset.get()), H5Tclose, "read the type");
    if (H5Tequal(type.get(), H5T_IEEE_F64LE) <= 0)
      fail("expected float64, got {}", describe_type(type.get()));
    const auto space = checked(H5Dget_space(dataset.get()), H5Sclose, "read the shape");
    hsize_t dims[H5S_MAX_RANK] = {};
    const int rank = H5Sget_simple_extent_dims(space.get(), dims, nullptr);
    const auto side = static_cast<hsize_t>(n);
    if (rank != 2 || dims[0] != side || dims[1] != side) fail("expected {} x {} values", n, n);
    // A dataset may claim more values than are stored: the lower triangle alone is more than half of them.
    if (H5Dget_storage_size(dataset.get()) / sizeof(double) < side * side / 2)
      fail("{} x {} values need more than the {} bytes that are stored", n, n,
           H5Dget_storage_size(dataset.get()));
    std::vector<double> values(side * side);
    check(H5Dread(dataset.get(), H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), "read");
    for (hsize_t row = 0; row < side; ++row)
      for (hsize_t column = row + 1; column < side; ++column)
        values[row * side + column] = values[column * side + row];
    return values;
  });
}

uint64_t Hdf5Reader::stored_bytes(std::string_view path) const {
  return with_context(state_->place(path), [&]() -> uint64_t {
    if (!state_->exists(path)) fail("expected a dataset, but there is none");
    const Handle dataset(H5Dopen2(state_->file.get(), std::string(path).c_str(), H5P_DEFAULT), H5Dclose);
    if (!dataset.valid()) fail("expected a dataset: {}", cause());
    return H5Dget_storage_size(dataset.get());
  });
}

bool Hdf5Reader::has_attribute(std::string_view name) const {
  return H5Aexists(state_->file.get(), std::string(name).c_str()) > 0;
}

std::string Hdf5Reader::string_attribute(std::string_view name) const {
  return with_context(fmt::format("{}: attribute {}", state_->path.string(), printable(name)),
                      [&]() -> std::string {
                        const Handle attribute = state_->attribute(name);
                        const auto type = checked(H5Aget_type(attribute.get()), H5Tclose, "read the type");
                        if (H5Tget_class(type.get()) != H5T_STRING)
                          fail("expected string, got {}", describe_type(type.get()));
                        if (H5Tis_variable_str(type.get()) > 0)
                          fail("expected a string of fixed length, got one of variable length");
                        const size_t length = H5Tget_size(type.get());
                        if (length > state_->size)
                          fail("{} bytes are more than the {} of the file", length, state_->size);
                        std::string value(length, '\0');
                        check(H5Aread(attribute.get(), type.get(), value.data()), "read");
                        value.resize(value.find_last_not_of('\0') + 1);
                        return value;
                      });
}

int64_t Hdf5Reader::integer_attribute(std::string_view name) const {
  return state_->number_attribute<int64_t>(name, H5T_STD_I64LE, H5T_NATIVE_INT64, "int64");
}
double Hdf5Reader::number_attribute(std::string_view name) const {
  return state_->number_attribute<double>(name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, "float64");
}

}  // namespace elastify
