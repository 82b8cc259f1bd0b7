#include "base/file.h"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <iterator>

#include "support/bytes.h"
#include "support/errors.h"
#include "support/temporary_directory.h"

using namespace elastify;
using namespace elastify::test;

namespace {

size_t n_entries(const fs::path& directory) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(directory), {}));
}

}  // namespace

TEST_CASE("file: a mapped file has the bytes of the file") {
  const TemporaryDirectory directory;
  const std::string text(100'000, 'x');
  write_bytes(directory / "file", text);
  const auto file = MappedFile::open(directory / "file");
  CHECK(std::string(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()) == text);
  file->release(file->bytes());
  CHECK(file->bytes()[99'999] == std::byte{'x'});
  write_bytes(directory / "empty", "");
  CHECK(MappedFile::open(directory / "empty")->bytes().empty());
}

TEST_CASE("file: anything but a readable regular file is refused, without waiting") {
  const TemporaryDirectory directory;
  const fs::path pipe = directory / "pipe", absent = directory / "absent";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(message_of([&] { MappedFile::open(pipe); }) == pipe.string() + ": not a regular file");
  CHECK(message_of([&] { MappedFile::open(directory.path()); }) ==
        directory.path().string() + ": not a regular file");
  CHECK(message_of([&] { MappedFile::open(absent); }) ==
        absent.string() + ": cannot open: No such file or directory");
}

TEST_CASE("file: a text that is larger than allowed is refused") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "text";
  write_bytes(path, "12345");
  CHECK(read_text(path, 5) == "12345");
  CHECK(message_of([&] { read_text(path, 4); }) ==
        path.string() + ": 5 bytes, more than the 4 that a file of this kind may have");
}

TEST_CASE("file: an atomic file appears at commit, and directories are made for it") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "a/b/file";
  {
    AtomicFile file(path);
    file.write("one ");
    file.write("two");
    CHECK(file.size() == 7);
    CHECK(!fs::exists(path));
    file.commit();
    CHECK(read_bytes(path) == "one two");
  }
  CHECK(read_bytes(path) == "one two");
  CHECK(n_entries(path.parent_path()) == 1);
}

TEST_CASE("file: an atomic file that is not committed leaves the old file and nothing else") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "file";
  write_text(path, "old");
  {
    AtomicFile file(path);
    file.write("new");
  }
  CHECK(read_bytes(path) == "old");
  CHECK(n_entries(directory.path()) == 1);
  write_text(path, "new");
  CHECK(read_bytes(path) == "new");
  CHECK(n_entries(directory.path()) == 1);
}

TEST_CASE("file: an atomic file cannot replace a directory, and leaves no temporary file when it fails") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "taken";
  fs::create_directories(path / "inside");
  CHECK(message_of([&] { write_text(path, "text"); }) == path.string() + ": cannot write: Is a directory");
  CHECK(n_entries(directory.path()) == 1);
  const fs::path below_a_file = directory / "file/below";
  write_bytes(directory / "file", "");
  CHECK(message_of([&] { write_text(below_a_file, "text"); }) ==
        below_a_file.parent_path().string() + ": cannot make the directory: Not a directory");
}

TEST_CASE("file: an atomic directory appears at commit or not at all") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "out";
  { const AtomicDirectory abandoned(path, false); }
  CHECK(n_entries(directory.path()) == 0);
  {
    AtomicDirectory out(path.string() + "/", false);
    write_bytes(out.path() / "file", "one");
    CHECK(!fs::exists(path));
    out.commit();
  }
  CHECK(read_bytes(path / "file") == "one");
  CHECK(n_entries(directory.path()) == 1);
}

TEST_CASE("file: an atomic directory replaces another only if asked to") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "out";
  fs::create_directory(path);
  write_bytes(path / "old", "old");
  CHECK_THROWS_AS(AtomicDirectory(path, false), UsageError);
  {
    const AtomicDirectory abandoned(path, true);
    write_bytes(abandoned.path() / "new", "new");
  }
  CHECK(fs::exists(path / "old"));
  {
    AtomicDirectory out(path, true);
    write_bytes(out.path() / "new", "new");
    out.commit();
  }
  CHECK(!fs::exists(path / "old"));
  CHECK(read_bytes(path / "new") == "new");
  CHECK(n_entries(directory.path()) == 1);
}
