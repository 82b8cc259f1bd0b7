#include "support/skip.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>

namespace elastify::test {
namespace {

int n_run = 0;
int n_skipped = 0;
bool has_skipped = false;

class SkipCounter final : public doctest::IReporter {
 public:
  explicit SkipCounter(const doctest::ContextOptions&) {}

  void test_case_start(const doctest::TestCaseData&) override { has_skipped = false; }
  void test_case_end(const doctest::CurrentTestCaseStats& stats) override {
    ++n_run;
    n_skipped += has_skipped && stats.numAssertsCurrentTest == 0;
  }

  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override {}
  void test_run_end(const doctest::TestRunStats&) override {}
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData&) override {}
};

REGISTER_LISTENER("skips", 1, SkipCounter);

}  // namespace

void skip(const std::string& reason) {
  has_skipped = true;
  MESSAGE("skipped: " << reason);
  if (const char* path = std::getenv("ELASTIFY_SKIPS")) {
    const std::string line = reason + '\t' + doctest::getContextOptions()->currentTest->m_name + '\n';
    std::ofstream(path, std::ios::app) << line << std::flush;  // in one write, because tests run in parallel
  }
}

bool all_skipped() {
  return n_run > 0 && n_skipped == n_run;
}

}  // namespace elastify::test
