#include "io/hdf5.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "support/bytes.h"
#include "support/errors.h"
#include "support/mutations.h"
#include "support/temporary_directory.h"

using namespace elastify;
using namespace elastify::test;

namespace {

const std::vector<float> kFloats = {0.5F, -1.25F, std::numeric_limits<float>::infinity()};
const std::vector<double> kDoubles = {0.1, -0.2};
const std::vector<int64_t> kIntegers = {3, -4, std::numeric_limits<int64_t>::max()};

void write_profile(const fs::path& path) {
  Hdf5Writer writer(path);
  writer.attribute("model", "a longer text, \u00e9");
  writer.attribute("empty", "");
  writer.attribute("tokens", int64_t{1} << 40);
  writer.attribute("loss", 0.125);
  writer.write("/layers.0.mlp/importance/taylor", kFloats);
  writer.write("/layers.0.mlp/importance/norm", std::vector<float>(1000, 2.0F));
  writer.write("/layers/removal_loss", kDoubles);
  writer.write("/permutation", kIntegers);
  writer.write("/nothing", std::span<const float>());
  writer.commit();
}

void read_all(const fs::path& path) {
  const Hdf5Reader reader(path);
  for (const std::string& name : reader.list("/")) CHECK(reader.contains("/" + name));
  size_t n = reader.floats("/layers.0.mlp/importance/taylor").size();
  n += reader.floats("/layers.0.mlp/importance/norm").size();
  n += reader.doubles("/layers/removal_loss").size() + reader.integers("/permutation").size();
  n += reader.string_attribute("model").size();
  n += static_cast<size_t>(reader.integer_attribute("tokens") != 0) +
       (reader.number_attribute("loss") > 0 ? 1 : 0);
  CHECK(n > 0);
}

}  // namespace

TEST_CASE("hdf5: datasets and attributes are read back as written") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "sub/profile.h5";
  write_profile(path);
  const Hdf5Reader reader(path);
  CHECK(reader.floats("/layers.0.mlp/importance/taylor") == kFloats);
  CHECK(reader.doubles("/layers/removal_loss") == kDoubles);
  CHECK(reader.integers("/permutation") == kIntegers);
  CHECK(reader.floats("/nothing").empty());
  CHECK(reader.string_attribute("model") == "a longer text, \u00e9");
  CHECK(reader.string_attribute("empty").empty());
  CHECK(reader.integer_attribute("tokens") == int64_t{1} << 40);
  CHECK(reader.number_attribute("loss") == 0.125);
  CHECK(reader.list("/") == std::vector<std::string>{"layers", "layers.0.mlp", "nothing", "permutation"});
  CHECK(reader.list("/layers.0.mlp/importance") == std::vector<std::string>{"norm", "taylor"});
  CHECK(reader.contains("/"));
  CHECK(reader.contains("/layers.0.mlp/importance"));
  CHECK(!reader.contains("/layers.0.mlp/absent/taylor"));
  CHECK(!reader.contains("layers"));
  CHECK(!reader.contains(""));
  CHECK(reader.has_attribute("model"));
  CHECK(!reader.has_attribute("absent"));
}

TEST_CASE("hdf5: the same content gives the same bytes") {
  const TemporaryDirectory directory;
  write_profile(directory / "a.h5");
  write_profile(directory / "b.h5");
  CHECK(read_bytes(directory / "a.h5") == read_bytes(directory / "b.h5"));
}

TEST_CASE("hdf5: a file appears at commit or not at all") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "profile.h5";
  {
    Hdf5Writer writer(path);
    writer.write("/values", kFloats);
    CHECK(!fs::exists(path));
  }
  CHECK(fs::is_empty(directory.path()));
}

TEST_CASE("hdf5: large attributes and many datasets are kept") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "profile.h5";
  const std::string text(200'000, 'x');
  {
    Hdf5Writer writer(path);
    writer.attribute("specification", text);
    for (int i = 0; i < 500; ++i)
      writer.write("/layers/" + std::to_string(i) + "/x", std::vector<float>(3, static_cast<float>(i)));
    writer.commit();
  }
  const Hdf5Reader reader(path);
  CHECK(reader.string_attribute("specification") == text);
  CHECK(reader.list("/layers").size() == 500);
  CHECK(reader.floats("/layers/499/x") == std::vector<float>(3, 499.0F));
}

TEST_CASE("hdf5: absent names and wrong types are refused, saying what was expected and what was found") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "profile.h5";
  write_profile(path);
  const Hdf5Reader reader(path);
  const auto refusal = [&](auto&& body) { return message_of(body).substr(path.string().size()); };
  CHECK(refusal([&] { reader.floats("/absent"); }) ==
        ": /absent: expected a dataset of float32, but there is none");
  CHECK(refusal([&] { reader.floats("/permutation/below"); }) ==
        ": /permutation/below: expected a dataset of float32, but there is none");
  CHECK(refusal([&] { reader.floats("/layers"); }) ==
        ": /layers: expected a dataset of float32: not a dataset");
  CHECK(refusal([&] { reader.floats("/permutation"); }) == ": /permutation: expected float32, got int64");
  CHECK(refusal([&] { reader.floats("/layers/removal_loss"); }) ==
        ": /layers/removal_loss: expected float32, got float64");
  CHECK(refusal([&] { reader.doubles("/layers.0.mlp/importance/taylor"); }) ==
        ": /layers.0.mlp/importance/taylor: expected float64, got float32");
  CHECK(refusal([&] { reader.integers("/layers/removal_loss"); }) ==
        ": /layers/removal_loss: expected int64, got float64");
  CHECK(refusal([&] { reader.list("/permutation"); }) == ": /permutation: expected a group: not a group");
  CHECK(refusal([&] { reader.list("/absent"); }) == ": /absent: expected a group, but there is none");
  CHECK(refusal([&] { reader.string_attribute("absent"); }) ==
        ": attribute absent: there is no such attribute");
  CHECK(refusal([&] { reader.string_attribute("loss"); }) ==
        ": attribute loss: expected string, got float64");
  CHECK(refusal([&] { reader.integer_attribute("model"); }) ==
        ": attribute model: expected int64, got string");
  CHECK(refusal([&] { reader.number_attribute("tokens"); }) ==
        ": attribute tokens: expected float64, got int64");
}

TEST_CASE("hdf5: the writer refuses relative paths and writing twice") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "profile.h5";
  Hdf5Writer writer(path);
  const auto refusal = [&](auto&& body) { return message_of(body).substr(path.string().size()); };
  writer.write("/a/b", kFloats);
  writer.attribute("name", "value");
  CHECK(refusal([&] { writer.write("/a/b", kFloats); }) == ": /a/b: written twice");
  CHECK(refusal([&] { writer.write("/a", kFloats); }) == ": /a: written twice");
  CHECK(refusal([&] { writer.attribute("name", int64_t{1}); }) == ": attribute name: written twice");
  for (const char* wrong : {"", "/", "a", "/a/", "//a"})
    CHECK(refusal([&] { writer.write(wrong, kFloats); }) ==
          std::string(": ") + wrong + ": expected a path like /group/name");
}

TEST_CASE("hdf5: files that are absent, cut off or of another kind are refused") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "profile.h5", absent = directory / "absent.h5";
  CHECK(message_of([&] { Hdf5Reader reader(absent); }) ==
        absent.string() + ": cannot open: No such file or directory");
  write_profile(path);
  const std::string valid = read_bytes(path);
  for (const std::string& bytes : {std::string(), std::string("GGUF"), std::string(5000, 'x')}) {
    write_bytes(path, bytes);
    CHECK(message_of([&] { Hdf5Reader reader(path); }) == path.string() + ": not an HDF5 file");
  }
  for (size_t size = 48; size < valid.size(); size += 41) {
    CAPTURE(size);
    write_bytes(path, valid.substr(0, size));
    REQUIRE(
        message_of([&] { Hdf5Reader reader(path); }).starts_with(path.string() + ": damaged HDF5 file: "));
  }
}

TEST_CASE("hdf5: mutated files are read or refused") {
  const TemporaryDirectory directory;
  write_profile(directory / "valid.h5");
  const MutationCount count = read_mutations(read_bytes(directory / "valid.h5"), 3000, read_all);
  CHECK(count.accepted > 100);
  CHECK(count.refused > 1000);
}
