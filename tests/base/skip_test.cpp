#include "support/skip.h"

#include <doctest/doctest.h>

#include <fmt/format.h>

#include "base/child_process.h"
#include "base/file.h"
#include "support/temporary_directory.h"

namespace elastify {
namespace {

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

}  // namespace

// Run by the test below alone.
TEST_CASE("skips, an example: all of it" * doctest::skip()) {
  test::skip("examples are absent");
}

TEST_CASE("skips, an example: a part of it" * doctest::skip()) {
  CHECK(true);
  test::skip("examples are absent");
}

TEST_CASE("skips, an example: for another reason" * doctest::skip()) {
  test::skip("another tool has not run");
}

TEST_CASE("skips, an example: fails, too" * doctest::skip()) {
  test::skip("examples are absent");
  CHECK(false);
}

TEST_CASE("skips: ctest says at its end which test cases skipped, and why") {
  const test::TemporaryDirectory directory;
  const std::string self = fs::read_symlink("/proc/self/exe").string(),
                    skips = (directory.path() / "Testing/skips.txt").string();
  fs::copy(fs::path(ELASTIFY_BINARY_DIR) / "CTestCustom.cmake", directory.path());
  std::string tests;
  for (const auto& [name, cases] : {std::pair("whole", "*all of it,*another reason"),
                                    std::pair("part", "*all of it,*a part of it"), std::pair("bad", "*too")})
    tests += fmt::format(
        "add_test({0} [[{1}]] --no-skip [[-tc={2}]])\n"
        "set_tests_properties({0} PROPERTIES SKIP_RETURN_CODE {3} ENVIRONMENT [[ELASTIFY_SKIPS={4}]])\n",
        name, self, cases, test::kSkippedStatus, skips);
  write_text(directory.path() / "CTestTestfile.cmake", tests);
  const auto run_ctest = [&](const std::string& option, const std::string& value) {
    return run_child({"ctest", "--test-dir", directory.path().string(), option, value}, 60).out;
  };
  const std::string all = run_ctest("-R", ".");
  CAPTURE(all);
  CHECK(all.find("1 - whole (Skipped)") != std::string::npos);
  CHECK(all.find("part .............................   Passed") != std::string::npos);
  CHECK(all.find("3 - bad (Failed)") != std::string::npos);
  CHECK(
      all.ends_with("skipped: 4 test cases\n"
                    "  another tool has not run:\n"
                    "    skips, an example: for another reason\n"
                    "  examples are absent:\n"
                    "    skips, an example: a part of it\n"
                    "    skips, an example: all of it\n"
                    "    skips, an example: fails, too\n"));
  const std::string again = run_ctest("-R", "part");
  CHECK(
      again.ends_with("skipped: 2 test cases\n"
                      "  examples are absent:\n"
                      "    skips, an example: a part of it\n"
                      "    skips, an example: all of it\n"));
  CHECK(run_ctest("-N", "").find("skipped:") == std::string::npos);
}

TEST_CASE("skips: every test of ours can be shown as skipped") {
  const std::string tests = read_text(fs::path(ELASTIFY_BINARY_DIR) / "tests/CTestTestfile.cmake");
  CHECK(count(tests, "\nadd_test(") > 0);
  CHECK(count(tests, "SKIP_RETURN_CODE \"77\"") == count(tests, "\nadd_test("));
  CHECK(count(tests, "ELASTIFY_SKIPS=") == count(tests, "\nadd_test("));
}

}  // namespace elastify
