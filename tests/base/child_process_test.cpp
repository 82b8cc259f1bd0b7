#include "base/child_process.h"

#include <doctest/doctest.h>

#include <csignal>

#include "support/errors.h"

namespace elastify {

TEST_CASE("child process: output, exit status and time are reported") {
  const ChildOutcome outcome = run_child({"sh", "-c", "echo out; echo err >&2; cat; exit 3"}, 60);
  CHECK(outcome.out == "out\n");  // and nothing was on its standard input
  CHECK(outcome.err == "err\n");
  CHECK(outcome.status == 3);
  CHECK_FALSE(outcome.succeeded());
  CHECK(outcome.how() == "ended with exit status 3");
  CHECK(outcome.seconds > 0);
  CHECK(outcome.peak_rss_bytes > 100'000);
  CHECK(run_child({"true"}, 60).succeeded());
}

TEST_CASE("child process: a crash is an outcome") {
  const ChildOutcome outcome = run_child({"sh", "-c", "echo last words >&2; kill -ABRT $$"}, 60);
  CHECK(outcome.signal == SIGABRT);
  CHECK(outcome.err == "last words\n");
  CHECK(outcome.how() == "was ended by signal 6 (Aborted)");
}

TEST_CASE("child process: the time limit kills the program and everything that it started") {
  const ChildOutcome outcome = run_child({"sh", "-c", "sleep 600 & echo $!; wait"}, 0.2);
  CHECK(outcome.timed_out);
  CHECK_FALSE(outcome.succeeded());
  CHECK(outcome.how().starts_with("took longer than"));
  const int grandchild = std::stoi(outcome.out);
  // The process that adopts it may not have reaped it yet.
  const std::string gone = fmt::format(
      "for i in $(seq 100); do s=$(ps -o stat= -p {}); case $s in ''|Z*) exit 0;; esac; sleep 0.05; "
      "done; exit 1",
      grandchild);
  CHECK(run_child({"sh", "-c", gone}, 60).succeeded());
}

TEST_CASE("child process: a program that cannot be started is an error") {
  CHECK(test::message_of([] { run_child({"/nowhere/llama-bench"}, 1); }) ==
        "/nowhere/llama-bench: cannot start: No such file or directory");
}

}  // namespace elastify
